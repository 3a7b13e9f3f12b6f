"""Two regions for the activations that lose most: tried one by one, where the second product is cheap.

The worst are those whose quantizer leaves least of the signal that calibration has seen. Each is cut at the breakpoints
that leave most, among those whose tail the rest of the budget pays for, and judged like every other trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from fptq.calibrate import Statistic
from fptq.calibrate.piecewise import piecewise_params, sketched_sqnr
from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import Kind
from fptq.graph import query
from fptq.graph.model import Model
from fptq.numerics import (
    PiecewiseSpec,
    fake_quantize,
    fake_quantize_piecewise,
    params_from_breakpoints,
)
from fptq.plan.encoding import Encoding
from fptq.recipes.problem import Problem
from fptq.recipes.refine import EFFORTS, Bench, Refined, Score
from fptq.rewrite import FloatInput, ProductInput, Regions, branched, float_inputs, product_inputs, summed
from fptq.rewrite.channels import channel_extremes
from fptq.types import Array, FeedSource, Progress, silent

REGIONS: Mapping[str, int] = MappingProxyType({"two": 2, "three": 3})
"""How many, by the recipe's word for it."""
_NAMES = {count: name for name, count in REGIONS.items()}
TAIL_SHARE = 0.1
"""Weights that all tails may read again, as a share of those of the quantized layers: the cost in time and in size."""
_FEW, _HEADROOM = 1 / 8, 1.5
"""Channels with a tail that are few, as a share, and how far beyond what calibration has seen the others may reach.

A channel without a tail saturates beyond the breakpoint. Where most channels have one, the others are those that
calibration happened to see little of: on 8 sequences of a protein language model that lost 3 dB of the output's SQNR on
other sequences, while the activation's own rose by 19 dB.
"""
_LEAST_GAIN_DB, _NEGLIGIBLE_DB = 3.0, 0.5
"""Of the SQNR of the activation itself: what is worth a trial, and what is not worth more channels."""


@dataclass(frozen=True, kw_only=True)
class _Worst:
    """An activation that loses much, with what calibration knows of it."""

    cut: ProductInput
    sketch: Sketch
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class _Offer:
    """A way to cut an activation.

    Attributes:
        cut: The activation.
        regions: Where it is cut.
        before_db: Its SQNR with one region [dB].
        after_db: With two [dB].
    """

    cut: ProductInput
    regions: Regions
    before_db: float
    after_db: float

    @property
    def cost(self) -> float:
        """Elements of weights that are read again."""
        tails = len(self.regions.params.regions) - 1
        return tails * self.cut.weights * len(self.regions.channels) / self.cut.channels

    def __str__(self) -> str:
        local = f"its own SQNR {self.before_db:.1f} -> {self.after_db:.1f} dB"
        tail = f"tail of {len(self.regions.channels)} of {self.cut.channels} channels"
        return f"{_NAMES[len(self.regions.params.regions)]} regions for {self.cut.value} ({local}, {tail})"


def in_two_regions(found: Refined, *, problem: Problem, score: Score, progress: Progress = silent) -> Refined:
    """The network with two regions for the activations where that lowers the output error at little cost.

    Args:
        found: What is to lose less; its plan gets a quantizer for every tail.
        problem: The samples, and the recipe: it says how many activations are tried.
        score: Judges an encoding.
        progress: Told about measurements.
    """
    match problem.recipe.regions:
        case "one":
            return found
        case "two" | "three" as count:
            extremes = extremes_of(found, problem.calibration)
            return everywhere_in_regions(found, extremes, count=REGIONS[count], p=problem.recipe.p)
    effort = EFFORTS[problem.recipe.recipe]
    worst = _worst(found)[: effort.regions]
    if not worst:
        return found
    bench = Bench(problem=problem, effort=effort, score=score, progress=progress, best=found)
    if not math.isfinite(bench.best_db):
        return found
    extremes = extremes_of(found, problem.calibration, [one.cut for one in worst])
    budget = TAIL_SHARE * _quantized_weights(found)
    for one in worst:
        offer = _best_offer(list(_offers(one, extremes[one.cut.value], problem.recipe.p)), budget)
        if offer is not None:
            before = bench.best
            bench.contest(_cut(bench, offer))
            budget -= offer.cost if bench.best is not before else 0
    return replace(bench.best, tried=(*found.tried, *bench.tried))


Extremes = Mapping[str, tuple[Array, Array]]
"""The lowest and highest value of each channel, f64[C] each, by the activation's name."""


def extremes_of(found: Refined, samples: FeedSource, cuts: Iterable[ProductInput] | None = None) -> Extremes:
    """What the channels of the activations of products reach; without `cuts` of all that can be cut.

    Args:
        found: The network with its plan.
        samples: What is run.
        cuts: Some of `product_inputs`.
    """
    cuts = product_inputs(found.model, found.encoding.plan) if cuts is None else cuts
    axes = {cut.value: cut.axis for cut in cuts}
    return channel_extremes(found.model, axes, samples) if axes else {}


def everywhere_in_regions(found: Refined, extremes: Extremes, *, count: int = 2, p: float) -> Refined:
    """The network with several regions for every activation that can be cut, and whose own error falls by it.

    Nothing is tried on the engine, and tails cost what they cost: this is piecewise-linear quantization as such.

    Args:
        found: The network with its numbers.
        extremes: What the channels reach, as `extremes_of` finds it.
        count: How many regions; for the input of products two where few channels need a tail and that is as good.
        p: Exponent of the error that breakpoints minimise.
    """
    for one in _worst(found):
        offers = list(_offers(one, extremes[one.cut.value], p, regions=count))
        offer = _best_offer(offers, math.inf, least_gain_db=0)
        if offer is not None:
            found = _with(found, str(offer), partial(branched, cut=offer.cut, regions=offer.regions))
    for cut in float_inputs(found.encoding.plan):
        sketch = found.statistics.states.get(Statistic(cut.value, Kind.SKETCH))
        if isinstance(sketch, Sketch):
            found = _summed(found, cut, sketch, count=count, p=p)
    return found


def _summed(found: Refined, cut: FloatInput, sketch: Sketch, *, count: int, p: float) -> Refined:
    """The network with several regions in front of a float operation, where that loses less."""
    spec = PiecewiseSpec(region=cut.spec, regions=count)
    params = piecewise_params(spec, sketch, p=p)
    uniform = partial(fake_quantize, spec=cut.spec, params=found.encoding.params[cut.placements[0]])
    before = sketched_sqnr(sketch, uniform)
    after = sketched_sqnr(sketch, partial(fake_quantize_piecewise, spec=spec, params=params))
    if after <= before:
        return found
    local = f"its own SQNR {before:.1f} -> {after:.1f} dB"
    name = f"{_NAMES[count]} regions for {cut.value} ({local}, read in float without gain)"
    return _with(found, name, partial(summed, cut=cut, params=params))


def _with(found: Refined, name: str, rewrite: Callable[[Model, Encoding], tuple[Model, Encoding]]) -> Refined:
    """The network after a rewrite that is not judged."""
    model, encoding = rewrite(found.model, found.encoding)
    exact = model if found.exact is found.model else rewrite(found.exact, found.encoding)[0]
    encoding = replace(encoding, rewrites=(*encoding.rewrites, name))
    return replace(found, model=model, exact=exact, encoding=encoding)


def _worst(found: Refined) -> list[_Worst]:
    """The activations that can be cut, those whose quantizer leaves least of the signal first.

    None where calibration has kept no histograms: an observer that needs none was asked for by name.
    """
    encoding, worst = found.encoding, []
    for cut in product_inputs(found.model, encoding.plan):
        sketch = found.statistics.states.get(Statistic(cut.value, Kind.SKETCH))
        if not isinstance(sketch, Sketch):
            continue
        uniform = partial(fake_quantize, spec=cut.spec, params=encoding.params[cut.placements[0]])
        worst.append(_Worst(cut=cut, sketch=sketch, sqnr_db=sketched_sqnr(sketch, uniform)))
    return sorted(worst, key=lambda one: one.sqnr_db)


def _quantized_weights(found: Refined) -> int:
    stored = found.model.graph.initializers
    weights = (query.constant(stored[value]) for value in {p.value for p in found.encoding.plan.weights})
    return sum(weight.size for weight in weights if weight is not None)


def _offers(one: _Worst, extremes: tuple[Array, Array], p: float, *, regions: int = 2) -> Iterator[_Offer]:
    """Tails of few channels, and some of all channels at the breakpoints that are best for the values alone."""
    two, whole = (PiecewiseSpec(region=one.cut.spec, regions=count) for count in (2, regions))
    everywhere = Regions(params=piecewise_params(whole, one.sketch, p=p), channels=tuple(range(one.cut.channels)))
    for spec, made in ((whole, everywhere), *((two, few) for few in _of_few_channels(two, extremes))):
        after = sketched_sqnr(one.sketch, partial(fake_quantize_piecewise, spec=spec, params=made.params))
        yield _Offer(cut=one.cut, regions=made, before_db=one.sqnr_db, after_db=after)


def _of_few_channels(spec: PiecewiseSpec, extremes: tuple[Array, Array]) -> Iterator[Regions]:
    """The first region holds all channels but 1, 2, 4, ... that reach farthest."""
    low, high = np.minimum(extremes[0], 0), np.maximum(extremes[1], 0)
    full = float(low.min()), float(high.max())
    order = np.argsort(np.maximum(-low, high), kind="stable")
    count = 1
    while count <= _FEW * low.size:
        inner, outer = order[:-count], np.sort(order[-count:])
        ends = max(_HEADROOM * float(low[inner].min()), full[0]), min(_HEADROOM * float(high[inner].max()), full[1])
        if ends != full:
            params = params_from_breakpoints(spec, *full, [ends])
            yield Regions(params=params, channels=tuple(map(int, outer)))
        count *= 2


def _best_offer(offers: list[_Offer], budget: float, *, least_gain_db: float = _LEAST_GAIN_DB) -> _Offer | None:
    """The cheapest of those that leave all but the most of the signal, if that gains enough."""
    affordable = [offer for offer in offers if offer.cost <= budget]
    most = max((offer.after_db for offer in affordable), default=-math.inf)
    good = [offer for offer in affordable if offer.after_db >= most - _NEGLIGIBLE_DB]
    best = min(good, key=lambda offer: (offer.cost, -offer.after_db), default=None)
    return best if best is not None and best.after_db >= best.before_db + least_gain_db else None


def _cut(bench: Bench, offer: _Offer) -> Iterator[tuple[str, Refined]]:
    best, name = bench.best, str(offer)
    model, encoding = branched(best.model, best.encoding, cut=offer.cut, regions=offer.regions)
    exact = model
    if best.exact is not best.model:
        exact, _ = branched(best.exact, best.encoding, cut=offer.cut, regions=offer.regions)
    if bench.computes_the_same(name, model):
        yield name, replace(best, model=model, exact=exact, encoding=encoding)
