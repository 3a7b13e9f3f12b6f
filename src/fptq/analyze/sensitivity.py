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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fptq.analyze.units import Site, Unit
from fptq.errors import ModelError
from fptq.execute import Executor
from fptq.execute.objective import Objective, projection
from fptq.execute.overlay import Overlay
from fptq.graph.placement import Placement
from fptq.plan.encoding import Encoding
from fptq.types import Feeds, FeedSource, Progress, silent

_TILES = 4
"""Tiles per axis, where the output has axes too: larger tiles cancel more, smaller ones are less noisy."""


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
class _Probe:
    """Products of gradients and errors, gathered during backward passes."""

    executor: Executor
    sites: Mapping[str, list[tuple[int, Site, Executor]]]
    overlays: Sequence[Overlay]
    loss: NDArray[np.float64]
    tiles: int

    @classmethod
    def of(cls, executor: Executor, units: Sequence[Unit], encodings: Mapping[str, Encoding]) -> _Probe:
        sites: dict[str, list[tuple[int, Site, Executor]]] = {}
        for row, unit in enumerate(units):
            for site in unit.sites:
                part = executor.part(site.inputs, [site.output])
                sites.setdefault(site.output, []).append((row, site, part))
        overlays = [Overlay(encoding=encoding) for encoding in encodings.values()]
        pooled = all(len(info.shape or ()) < 3 for info in executor.model.outputs)
        zeros = np.zeros((len(units), len(encodings)))
        return cls(executor=executor, sites=sites, overlays=overlays, loss=zeros, tiles=1 if pooled else _TILES)

    def add(self, sample: Feeds, objective: Objective, generator: torch.Generator) -> None:
        """One sample: forward with a watch on every site, backward from a random projection."""
        read = {name for entries in self.sites.values() for _, site, _ in entries for name in site.inputs}
        values: dict[str, torch.Tensor] = {}

        def hook(placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
            if placement.consumer is not None:
                return tensor
            name = placement.value
            if name in self.sites:
                if not tensor.requires_grad:  # the first layers: nothing in front of them needs a gradient
                    tensor = tensor.detach().requires_grad_()
                tensor.register_hook(lambda gradient: self._meet(name, gradient, values))  # type: ignore[no-untyped-call]
            if name in read:
                values[name] = tensor.detach()
            return tensor

        with torch.enable_grad():
            outputs = self.executor.run(sample, hook=hook)
            target = projection(objective, outputs, generator)
            if target.requires_grad:
                target.backward()  # type: ignore[no-untyped-call]
        if not self.loss.any():
            raise ModelError(
                "the output has no gradient with respect to any quantized layer",
                rule="the Fisher method needs one",
                remedy="Leave-one-in needs none",
            )

    def _meet(self, name: str, gradient: torch.Tensor, values: Mapping[str, torch.Tensor]) -> None:
        """The gradient of a site's output has arrived."""
        with torch.no_grad():
            for row, site, part in self.sites[name]:
                fed = {wanted: values[wanted] for wanted in site.inputs}
                exact = values[name] if name in values else part.run(fed)[name]
                for column, overlay in enumerate(self.overlays):
                    changed = part.run(fed, hook=overlay.restricted(site.placements))[name]
                    products = gradient * (changed - exact)
                    self.loss[row, column] += tiled_square(products, channels=site.channels, tiles=self.tiles)


def tiled_square(products: torch.Tensor, *, channels: int = 1, tiles: int = _TILES) -> float:
    """Sum over tiles of the squared sum of the products within a tile.

    Tiles divide every axis but those of samples and channels into `tiles` parts; samples are apart.

    Args:
        products: f32[N, ...].
        channels: The axis whose elements are summed over in every tile.
        tiles: Parts of an axis; 1 sums over all of it.
    """
    if products.ndim < 2:
        return float(products.double().square().sum())
    sums = products.sum(channels)
    for axis in range(1, sums.ndim):
        size = math.ceil(sums.shape[axis] / tiles)
        sums = torch.stack([part.sum(axis) for part in torch.split(sums, size, axis)], axis)
    return float(sums.double().square().sum())
