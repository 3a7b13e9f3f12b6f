"""Where quantization hurts: the error of every layer by itself, and what has gathered up to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fptq.analyze.units import Site, Unit
from fptq.execute import Executor
from fptq.execute.overlay import Overlay, watching
from fptq.graph.placement import Placement
from fptq.plan.encoding import Encoding
from fptq.types import Feeds, FeedSource, Progress, silent


@dataclass(frozen=True, kw_only=True)
class Error:
    """How far a value is from its float self, pooled over all samples.

    Attributes:
        sqnr_db: 10 log10(sum float^2 / sum (float - quantized)^2) [dB]; inf where nothing changed.
        cosine: Of the two values as one vector each.
        relative_l2: Norm of the difference over the norm of the float value, >= 0.
    """

    sqnr_db: float
    cosine: float
    relative_l2: float


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """The errors of a site's output.

    Attributes:
        unit: Name of the unit.
        value: The value that was compared.
        local: With this site quantized and its inputs as the float network computes them.
        accumulated: In the quantized network.
    """

    unit: str
    value: str
    local: Error
    accumulated: Error


def layer_errors(
    executor: Executor,
    units: Sequence[Unit],
    encoding: Encoding,
    feeds: FeedSource,
    *,
    progress: Progress = silent,
) -> tuple[LayerError, ...]:
    """Local and accumulated error of every site, from one float run and one quantized run per sample.

    Args:
        executor: The float network.
        units: Whose sites are looked at.
        encoding: The quantized network.
        feeds: Unlabelled samples.
        progress: Told after every sample.
    """
    sites = [(unit.name, site, executor.part(site.inputs, [site.output])) for unit in units for site in unit.sites]
    local, gathered = ([_Sums() for _ in sites] for _ in range(2))
    whole = Overlay(encoding=encoding)
    total = len(feeds)
    progress(0, total, "error by layer")
    for done, sample in enumerate(feeds, start=1):
        with torch.no_grad():
            exact = _values(executor, sample, [site for _, site, _ in sites])
            for sums, (_, site, part) in zip(local, sites, strict=True):
                found = part.run(exact, hook=whole.restricted(site.placements))[site.output]
                sums.add(exact[site.output], found)
            fetched = executor.run(sample, hook=whole, fetch=[site.output for _, site, _ in sites])
            for sums, (_, site, _) in zip(gathered, sites, strict=True):
                sums.add(exact[site.output], fetched[site.output])
        progress(done, total, "error by layer")
    return tuple(
        LayerError(unit=name, value=site.output, local=one.result(), accumulated=all_.result())
        for (name, site, _), one, all_ in zip(sites, local, gathered, strict=True)
    )


def _values(executor: Executor, sample: Feeds, sites: Sequence[Site]) -> dict[str, torch.Tensor]:
    """What the sites read and compute in the float network."""
    wanted = {name for site in sites for name in (*site.inputs, site.output)}
    found: dict[str, torch.Tensor] = {}

    def see(placement: Placement, tensor: torch.Tensor) -> None:
        if placement.consumer is None and placement.value in wanted:
            found[placement.value] = tensor

    executor.run(sample, hook=watching(see))
    return found


@dataclass(kw_only=True)
class _Sums:
    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    error: float = 0.0

    def add(self, exact: torch.Tensor, found: torch.Tensor) -> None:
        self.signal += float(exact.square().sum(dtype=torch.float64))
        self.other += float(found.square().sum(dtype=torch.float64))
        self.product += float((exact * found).sum(dtype=torch.float64))
        self.error += float((exact - found).square().sum(dtype=torch.float64))

    def result(self) -> Error:
        ratio = self.error / self.signal if self.signal > 0 else math.inf if self.error > 0 else 0.0
        norm = math.sqrt(self.signal * self.other)
        return Error(
            sqnr_db=math.inf if ratio == 0 else -10 * math.log10(ratio),
            cosine=self.product / norm if norm > 0 else 1.0,
            relative_l2=math.sqrt(ratio),
        )
