"""Where trials are judged: the best network so far, and what was tried on it.

Every trial is judged by the output of the network on its engine, on samples that calibration has not seen. What does
not bring `MARGIN` is dropped, so a recipe can be tried on a network that it does not suit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from fptq.calibrate import Statistics, collect, needed, solve
from fptq.config import Recipe
from fptq.errors import ParityError
from fptq.feeds import Part
from fptq.graph.model import Model
from fptq.graph.parity import check_rewrite
from fptq.plan.encoding import Encoding
from fptq.plan.plan import Plan
from fptq.recipes.observers import Pair, calibration_options, first_pair, other_observers
from fptq.recipes.problem import Problem
from fptq.types import Feeds, FeedSource, Progress

_LOG = logging.getLogger(__name__)

MARGIN = 0.05
"""What a trial must gain to be kept [dB]: less is noise of the held-out samples."""
TRIED_ON = 16
"""Calibration samples for the trial of a rewritten network."""

Smoothing = Callable[[Model, Iterable[Feeds]], Model | None]
"""A rewrite that measures activations on a few samples; None where it has nothing to do."""

Score = Callable[[Model, Encoding], float]
"""Output SQNR of an encoding on the engine, on held-out samples [dB]."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial.

    Attributes:
        name: What was tried.
        before_db: Output SQNR without it, on held-out samples [dB].
        after_db: Output SQNR with it [dB]; NaN where the network did not stay what it was, and was not run.
        kept: Whether the result has it.
    """

    name: str
    before_db: float
    after_db: float
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A network with its numbers, and how they came about.

    Attributes:
        model: The float network, with the rewrites that were kept.
        exact: The same without corrected biases: it computes what the float network does.
        encoding: The numbers; the rewrites are listed in it.
        statistics: What calibration found in `exact`.
        observers: Observers of activations and weights.
        tried: Every trial, in order.
    """

    model: Model
    exact: Model
    encoding: Encoding
    statistics: Statistics
    observers: Pair
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is tried.

    Attributes:
        judges: Held-out samples that judge, at most.
        alphas: Exponents of levelled concatenations that are tried.
        smoothings: Ways to smooth activations that are compared, by name.
        spots: Activations that other policies are tried on, at most.
        calibrates_again: Whether such a policy may need another pass over the samples.
        steps: What is tried on a plan, in order.
    """

    judges: int
    alphas: tuple[float, ...]
    smoothings: Mapping[str, Smoothing] = field(default_factory=lambda: MappingProxyType({}))
    spots: int = 0
    calibrates_again: bool = False
    steps: tuple[Callable[[Bench], None], ...]


def unrefined(model: Model, plan: Plan, *, statistics: Statistics, recipe: Recipe) -> Refined:
    """A plan with the numbers of the recipe's first observers.

    Args:
        model: The float network that the plan was made for.
        plan: What becomes what.
        statistics: What calibration found for the plan and all observers that `refine` is to compare.
        recipe: Its observers.
    """
    pair = first_pair(recipe)
    encoding = solve(model, plan, statistics, options=calibration_options(recipe, pair))
    return Refined(model=model, exact=model, encoding=encoding, statistics=statistics, observers=pair)


@dataclass(kw_only=True)
class Bench:
    """The best so far, and what was tried.

    Attributes:
        problem: The samples, and the recipe.
        effort: How much is tried.
        score: Judges an encoding.
        progress: Told about calibrations and measurements.
        best: What it starts with, and what is best later.
        best_db: The score of that [dB].
        tried: Every trial, in order.
    """

    problem: Problem
    effort: Effort
    score: Score
    progress: Progress
    best: Refined
    best_db: float = field(init=False)
    tried: list[Tried] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best_db = self.score(self.best.model, self.best.encoding)

    def contest(self, candidates: Iterable[tuple[str, Refined]]) -> None:
        """Replace the best by the best of these, if that gains enough."""
        before, winner, leader, most = self.best_db, self.best, "", self.best_db + MARGIN
        scores: dict[str, float] = {}
        for name, candidate in candidates:
            scores[name] = self.score(candidate.model, candidate.encoding)
            if scores[name] > before + MARGIN:
                candidate, scores[name] = self._on_all_samples(candidate, scores[name])
            if scores[name] > most:
                winner, leader, most = candidate, name, scores[name]
        for name, after in scores.items():
            self.tried.append(Tried(name=name, before_db=before, after_db=after, kept=name == leader))
        if leader:
            note = f"{leader}: output SQNR {before:.2f} -> {most:.2f} dB on held-out samples"
            self.best, self.best_db = _noted(winner, self.best, note), most

    def rewritten(self, name: str, model: Model) -> Iterator[tuple[str, Refined]]:
        """A rewritten network with numbers from a few samples; none where it is not the same network any more."""
        if self.computes_the_same(name, model):
            candidate = replace(self.best, model=model, exact=model)
            yield name, self._calibrated(candidate, Part(self.problem.calibration, TRIED_ON))

    def computes_the_same(self, name: str, model: Model) -> bool:
        """Whether a rewritten network is still the same network; one that is not is listed as tried and dropped."""
        same = computes_the_same(self.best.model, model, self.problem.held_out[0], name=name)
        if not same:
            self.tried.append(Tried(name=name, before_db=self.best_db, after_db=math.nan, kept=False))
        return same

    def observed(self, activations: str) -> Refined:
        """The best network with the numbers of another observer of activations."""
        return self._solved(replace(self.best, observers=(activations, self.best.observers[1])))

    def clipped(self) -> Refined:
        """The best network with weights clipped where that costs least; its activations keep their numbers."""
        best, plan = self.best, self.best.encoding.plan
        pair = best.observers[0], "lp"
        # A weight that shares its scale with an activation has the activation's.
        weights = plan.only(*(p for p in plan.weights if plan.weights.issuperset(plan.tied(p))))
        options = calibration_options(self.problem.recipe, pair)
        params = solve(best.model, weights, best.statistics, options=options).params
        encoding = replace(best.encoding, params={**best.encoding.params, **params})
        return replace(best, encoding=encoding, observers=pair)

    def _on_all_samples(self, candidate: Refined, score: float) -> tuple[Refined, float]:
        """A network that was calibrated on a few samples on all of them, and its score."""
        if candidate.statistics is self.best.statistics or len(self.problem.calibration) <= TRIED_ON:
            return candidate, score
        whole = self._calibrated(candidate, self.problem.calibration)
        return whole, self.score(whole.model, whole.encoding)

    def _calibrated(self, candidate: Refined, samples: FeedSource) -> Refined:
        recipe, plan = self.problem.recipe, candidate.encoding.plan
        names = dict.fromkeys((first_pair(recipe)[0], *other_observers(recipe)))
        options = [calibration_options(recipe, (name, "minmax"), self.problem.threads) for name in names]
        statistics = collect(
            candidate.model,
            needed(plan, [option.observer for option in options]),
            samples,
            options=options[0].run,
            store=self.problem.store,
            progress=self.progress,
        )
        return self._solved(replace(candidate, statistics=statistics))

    def _solved(self, candidate: Refined) -> Refined:
        options = calibration_options(self.problem.recipe, candidate.observers)
        encoding = solve(candidate.model, candidate.encoding.plan, candidate.statistics, options=options)
        return replace(candidate, encoding=replace(encoding, rewrites=candidate.encoding.rewrites))


def computes_the_same(before: Model, after: Model, sample: Feeds, *, name: str) -> bool:
    """Whether a rewrite that may be left out leaves the network's results as they are; where not, that is logged.

    Args:
        before: The network.
        after: The rewritten one.
        sample: What both are run on.
        name: Of the rewrite.
    """
    try:
        check_rewrite(before.graph_model, after.graph_model, sample, name=name)
    except ParityError as error:
        _LOG.warning("%s is not tried: %s", name, error)
        return False
    return True


def _noted(winner: Refined, before: Refined, note: str) -> Refined:
    """The winner with a line about what it is, where its network is another one."""
    if winner.model is before.model:
        return winner
    encoding = replace(winner.encoding, rewrites=(*winner.encoding.rewrites, note))
    return replace(winner, encoding=encoding)
