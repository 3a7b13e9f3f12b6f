"""Piecewise-linear quantization as such: regions for every activation that can be cut and whose own error falls by it.

Nothing is tried on the engine, and tails cost what they cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fptq.calibrate import Statistic
from fptq.calibrate.piecewise import piecewise_params, sketched_sqnr
from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import Kind
from fptq.numerics import PiecewiseSpec, fake_quantize, fake_quantize_piecewise
from fptq.recipes.policies.offer import Offer, rewriting
from fptq.recipes.policies.spots import Extremes, Reaching, lossy_inputs, reaching
from fptq.recipes.policies.two_regions import NAMES, NEGLIGIBLE_DB, tails_of_all_channels, tails_of_few_channels
from fptq.recipes.refine import Refined
from fptq.rewrite import FloatInput, float_inputs, summed


def everywhere_in_regions(found: Refined, extremes: Extremes, *, count: int, p: float) -> Refined:
    """The network with several regions for its activations.

    Args:
        found: The network with its numbers.
        extremes: What the channels of the activations of products reach.
        count: How many regions; for the input of products two where few channels need a tail and that is as good.
        p: Exponent of the error that breakpoints minimise.
    """
    for spot in lossy_inputs(found):
        offer = _best(reaching(spot, extremes), count, p)
        if offer.sqnr_db >= spot.sqnr_db:
            local = f"its own SQNR {spot.sqnr_db:.1f} -> {offer.sqnr_db:.1f} dB"
            found = _with(found, f"{offer.policy} for {spot.cut.value} ({local}, {offer.detail})", offer.make)
    for cut in float_inputs(found.encoding.plan):
        sketch = found.statistics.states.get(Statistic(cut.value, Kind.SKETCH))
        if isinstance(sketch, Sketch):
            found = _summed(found, cut, sketch, count=count, p=p)
    return found


def _best(spot: Reaching, count: int, p: float) -> Offer:
    """The cheapest of those that leave all but the most of the signal."""
    offers = [tails_of_all_channels(spot, regions=count, p=p), *tails_of_few_channels(spot)]
    most = max(offer.sqnr_db for offer in offers)
    good = [offer for offer in offers if offer.sqnr_db >= most - NEGLIGIBLE_DB]
    return min(good, key=lambda offer: (offer.extra, -offer.sqnr_db))


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
    name = f"{NAMES[count]} regions for {cut.value} ({local}, read in float without gain)"
    return _with(found, name, rewriting(partial(summed, cut=cut, params=params)))


def _with(found: Refined, name: str, make: Callable[[Refined], Refined | None]) -> Refined:
    """The network after a rewrite that is not judged."""
    made = make(found)
    assert made is not None
    return replace(made, encoding=replace(made.encoding, rewrites=(*made.encoding.rewrites, name)))
