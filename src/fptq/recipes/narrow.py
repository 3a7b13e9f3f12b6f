"""Numbers for weights of few bits: which range and which zero point lose least is found by running the network.

The error of the weights themselves says little: clipping lowers it, and moves the mean of every output with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fptq.calibrate import Statistics, solve
from fptq.config import Recipe
from fptq.graph.model import Model
from fptq.plan import Encoding, Plan
from fptq.recipes.formats import Format
from fptq.recipes.observers import Pair, calibration_options, first_pair
from fptq.types import Feeds, FeedSource, silent

NARROW = 8
"""Fewer bits are narrow."""
_FEWEST, _MOST, _BYTES = 2, 64, 4_000_000
"""Samples that are run for a choice: as many as these bytes hold, between the two numbers."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What numbers are found from.

    Attributes:
        model: The float network.
        statistics: What calibration found.
        recipe: Its observers' options.
        pair: Observers of activations and weights at eight bits and above.
        samples: At least one; the first few are run.
    """

    model: Model
    statistics: Statistics
    recipe: Recipe
    pair: Pair
    samples: FeedSource

    def numbers(self, plan: Plan, given: Format) -> Encoding:
        """The encoding of a plan whose layers, or most of them, have a format.

        Args:
            plan: In that format.
            given: The format.
        """
        # What is best at eight bits says little about few codes: the extremes waste most of them.
        activations = self.pair[0] if given.activations >= NARROW else first_pair(self.recipe)[0]
        if given.weights >= NARROW:
            return self._solved(plan, (activations, self.pair[1]))
        plans = (plan, _around_zero(plan))
        tried = [self._solved(one, (activations, weights)) for one in plans for weights in ("minmax", "lp")]
        return self._least(tried)

    def _solved(self, plan: Plan, pair: Pair) -> Encoding:
        return solve(self.model, plan, self.statistics, options=calibration_options(self.recipe, pair))

    def _least(self, tried: Sequence[Encoding]) -> Encoding:
        """The encoding whose network loses least."""
        losses = lost(self.model, tried, self.samples)
        return tried[losses.index(min(losses))]


def lost(model: Model, encodings: Sequence[Encoding], samples: FeedSource) -> list[float]:
    """The losses of quantized networks against their float self, on a few samples.

    Args:
        model: The float network.
        encodings: The quantized ones.
        samples: At least one; the first few are run.
    """
    from fptq.analyze.mixed import encoding_losses
    from fptq.execute import Executor
    from fptq.execute.objective import natural

    few = tuple(_few(samples))
    return encoding_losses(Executor.open(model), encodings, few, natural(model), progress=silent)


def _few(samples: Iterable[Feeds]) -> Iterator[Feeds]:
    size = 0
    for number, sample in enumerate(samples):
        if number >= _MOST or (number >= _FEWEST and size >= _BYTES):
            return
        size += sum(array.nbytes for array in sample.values())
        yield sample


def _around_zero(plan: Plan) -> Plan:
    """The plan with symmetric weights: a zero point is worth less than a range without a wasted code, or more."""
    specs = {p: plan.specs[p] for p in plan.weights if not plan.specs[p].symmetric}
    return plan.with_specs({p: replace(spec, signed=True, symmetric=True) for p, spec in specs.items()})
