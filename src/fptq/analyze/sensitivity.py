"""What each precision of each layer would cost in output error: one forward and one backward run for all of them.

For a layer whose output changes by `d` when it is quantized alone, the output error to first order is `|J d|^2` with
the Jacobian `J` of what lies behind. A backward pass from a random projection of the output gives `g` with
`E[(g . d)^2] = |J d|^2`; the products are taken where `g` arrives, so that neither gradients nor errors are kept.

Source: Fisher information as in BRECQ (Li et al. 2021, arXiv 2102.05426, equation 10); one backward pass for all
formats as in ModelOpt's auto_quantize. What differs: products are summed within tiles of the output before they are
squared. Within a tile errors act together and may cancel; far apart they reach other outputs, and products of theirs
are only noise of the estimate. A network that pools its output into one vector has one tile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fptq.analyze.tiles import TILES, weighted_square
from fptq.analyze.units import Site, Unit
from fptq.errors import ModelError
from fptq.execute import Executor
from fptq.execute.objective import Objective, projection
from fptq.execute.overlay import Overlay
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.plan.encoding import Encoding
from fptq.types import Feeds, FeedSource, Progress, silent

_LINEAR = query.CONVOLUTIONS | {"MatMul", "Gemm"}
"""Operations whose result is a product with each of their activations."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Predicted output error by unit and format.

    Attributes:
        units: The rows.
        formats: The columns, "float" not among them: it costs nothing.
        loss: f64[units, formats], >= 0, in the unit of the objective, mean over the samples.
        objective: What the numbers mean.
        samples: How many samples were seen.
        method: "fisher", or "leave-one-in" where the output has no gradient.
    """

    units: tuple[Unit, ...]
    formats: tuple[str, ...]
    loss: NDArray[np.float64]
    objective: Objective
    samples: int
    method: Literal["fisher", "leave-one-in"] = "fisher"

    def ranked(self, precision: str) -> list[tuple[str, float]]:
        """Units and their losses at one format, the worst first."""
        column = self.loss[:, self.formats.index(precision)]
        return [(self.units[i].name, float(column[i])) for i in np.argsort(-column)]


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions:
    """How sensitivities are estimated.

    Attributes:
        objective: The loss.
        seed: Of the random projections.
    """

    objective: Objective = Objective.SQUARED
    seed: int = 0


def fisher_sensitivity(
    executor: Executor,
    units: Sequence[Unit],
    encodings: Mapping[str, Encoding],
    feeds: FeedSource,
    *,
    options: SensitivityOptions | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """The Fisher-weighted output error of every unit in every format.

    Args:
        executor: The float network.
        units: What is decided together; see `units_of`.
        encodings: For each format the numbers of all placements.
        feeds: Unlabelled samples.
        options: Objective and seed.
        progress: Told after every sample.

    Raises:
        ModelError: The output depends on no unit by a gradient; see `leave_one_in`.
    """
    options = options or SensitivityOptions()
    probe = _Probe.of(executor, units, encodings)
    generator = torch.Generator().manual_seed(options.seed)
    total, samples = len(feeds), 0
    progress(0, total, "sensitivity")
    for sample in feeds:
        probe.add(sample, options.objective, generator)
        samples += 1
        progress(samples, total, "sensitivity")
    return Sensitivity(
        units=tuple(units),
        formats=tuple(encodings),
        loss=probe.loss / max(samples, 1),
        objective=options.objective,
        samples=samples,
    )


@dataclass(frozen=True, kw_only=True)
class _Watch:
    """One site of a unit.

    Attributes:
        row: The unit's.
        site: The site.
        part: Computes its output.
        overlays: Quantize its placements, by format.
        exact: Value to compare the output with.
        input: The placement of the only thing that is quantized, where that is one factor of a product: then the
            gradient that arrives there has passed the product already.
    """

    row: int
    site: Site
    part: Executor
    overlays: tuple[Overlay, ...]
    exact: str
    input: Placement | None

    @property
    def reads(self) -> frozenset[str]:
        """Values that must be known when the gradient arrives."""
        return frozenset((self.input.value,) if self.input else (*self.site.inputs, self.exact))


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """Products of gradients and errors, gathered during backward passes."""

    executor: Executor
    watches: Mapping[Placement, Sequence[_Watch]]
    loss: NDArray[np.float64]
    tiles: int

    @classmethod
    def of(cls, executor: Executor, units: Sequence[Unit], encodings: Mapping[str, Encoding]) -> _Probe:
        watches: dict[Placement, list[_Watch]] = {}
        shared = [Overlay(encoding=encoding) for encoding in encodings.values()]
        for row, unit in enumerate(units):
            for site in unit.sites:
                watch = _Watch(
                    row=row,
                    site=site,
                    part=executor.part(site.inputs, [site.output]),
                    overlays=tuple(overlay.restricted(site.placements) for overlay in shared),
                    exact=_exact(executor.model, site.output),
                    input=_factor(executor.model, site, unit),
                )
                watches.setdefault(watch.input or Placement(site.output), []).append(watch)
        pooled = all(len(info.shape or ()) < 3 for info in executor.model.outputs)
        zeros = np.zeros((len(units), len(encodings)))
        return cls(executor=executor, watches=watches, loss=zeros, tiles=1 if pooled else TILES)

    def add(self, sample: Feeds, objective: Objective, generator: torch.Generator) -> None:
        """One sample: forward with a watch on every site, backward from a random projection."""
        waiting = Counter(name for group in self.watches.values() for watch in group for name in watch.reads)
        with torch.enable_grad():
            outputs = self.executor.run(sample, hook=_Run(probe=self, waiting=waiting))
            target = projection(objective, outputs, generator)
            if target.requires_grad:
                target.backward()  # type: ignore[no-untyped-call]
        if not self.loss.any():
            raise ModelError(
                "the output has no gradient with respect to any quantized layer",
                rule="the Fisher method needs one",
                remedy="Leave-one-in needs none",
            )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The hook of one sample.

    Attributes:
        probe: What gathers the products.
        waiting: How many watches have yet to read a value.
        values: Those that some have.
    """

    probe: _Probe
    waiting: Counter[str]
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        if placement.consumer is None and placement.value in self.waiting:
            self.values[placement.value] = tensor.detach()
        if placement in self.probe.watches:
            if not tensor.requires_grad:  # the first layers: nothing in front of them needs a gradient
                tensor = tensor.detach().requires_grad_()
            elif placement.consumer is not None:  # the value's other readers have gradients of their own
                tensor = tensor.view_as(tensor)
            tensor.register_hook(lambda gradient: self._arrived(placement, gradient))  # type: ignore[no-untyped-call]
        return tensor

    def _arrived(self, placement: Placement, gradient: torch.Tensor) -> None:
        with torch.no_grad():
            for watch in self.probe.watches[placement]:
                self.probe.loss[watch.row] += _products(watch, gradient, self.values, self.probe.tiles)
                self._let_go(watch.reads)

    def _let_go(self, names: frozenset[str]) -> None:
        self.waiting.subtract(names)
        for name in names:
            if not self.waiting[name]:
                del self.values[name]


def _exact(model: Model, output: str) -> str:
    """Where a site's float output can be read when the gradient arrives.

    Behind a ReLU that nothing else precedes: where that is zero the gradient is, too, and elsewhere both are equal.
    Autograd keeps the ReLU's output anyway.
    """
    value = query.values(model.graph_model)[output]
    reader = query.sole_reader(value)
    relu = reader is not None and reader.op_type == "Relu"
    return str(reader.outputs[0].name) if reader is not None and relu else output


def _factor(model: Model, site: Site, unit: Unit) -> Placement | None:
    """The one activation that a site quantizes, if its node is linear in it."""
    if len(site.placements) != 1 or site.placements & unit.weights:
        return None
    (placement,) = site.placements
    if placement.consumer is None:
        return None
    linear = query.node_named(model.graph_model, placement.consumer).op_type in _LINEAR
    return placement if linear else None


def _products(watch: _Watch, gradient: torch.Tensor, values: Mapping[str, torch.Tensor], tiles: int) -> list[float]:
    """The predicted loss of one site by format, from the gradient of its output, or of its only quantized input."""
    channels, found = watch.site.channels, []
    for overlay in watch.overlays:
        if watch.input is not None:
            exact = values[watch.input.value]
            changed = overlay(watch.input, exact)
        else:
            exact = values[watch.exact]
            fed = {name: values[name] for name in watch.site.inputs}
            changed = watch.part.run(fed, hook=overlay)[watch.site.output]
        found.append(weighted_square(gradient, changed, exact, channels=channels, tiles=tiles))
    return found
