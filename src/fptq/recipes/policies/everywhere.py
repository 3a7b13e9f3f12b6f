"""Piecewise-linear quantization as such: regions for every activation that can be cut and whose own error falls by it.

Nothing is tried on the engine, and tails cost what they cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from fptq.calibrate import Statistic
from fptq.calibrate.piecewise import piecewise_params, sketched_sqnr
from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import Kind
from fptq.numerics import PiecewiseSpec, fake_quantize, fake_quantize_piecewise
from fptq.recipes.policies.offer import rewriting
from fptq.recipes.policies.spots import Extremes, Reaching, lossy_inputs, reaching
from fptq.recipes.policies.two_regions import NAMES, NEGLIGIBLE_DB, Tails, tails_of_all_channels, tails_of_few_channels
from fptq.recipes.workbench import Refined
from fptq.rewrite import Change, float_inputs, sum_regions


def everywhere_in_regions(found: Refined, extremes: Extremes, *, count: int, p: float) -> Refined:
    """The network with several regions for its activations.

    Args:
        found: The network with its numbers.
        extremes: What the channels of the activations of products reach.
        count: How many regions; for the input of products two where few channels need a tail and that is as good.
        p: Exponent of the error that breakpoints minimise.
    """
    noted = [*_of_products(found, extremes, count=count, p=p), *_of_float_inputs(found, count=count, p=p)]
    if not noted:
        return found
    made = rewriting(*(change for _, change in noted))(found)
    notes = (note for note, _ in noted)
    return replace(made, encoding=replace(made.encoding, rewrites=(*made.encoding.rewrites, *notes)))


def _of_products(found: Refined, extremes: Extremes, *, count: int, p: float) -> Iterator[tuple[str, Change]]:
    """Cuts of the inputs of products, and what the report says of them."""
    for spot in lossy_inputs(found):
        tails = _best(reaching(spot, extremes), count, p)
        if tails.sqnr_db >= spot.sqnr_db:
            local = f"its own SQNR {spot.sqnr_db:.1f} -> {tails.sqnr_db:.1f} dB"
            yield f"{tails.policy} for {spot.cut.value} ({local}, {tails.detail})", tails.change


def _best(spot: Reaching, count: int, p: float) -> Tails:
    """The cheapest of those that leave all but the most of the signal."""
    forms = [tails_of_all_channels(spot, regions=count, p=p), *tails_of_few_channels(spot)]
    most = max(tails.sqnr_db for tails in forms)
    good = [tails for tails in forms if tails.sqnr_db >= most - NEGLIGIBLE_DB]
    return min(good, key=lambda tails: (tails.extra, -tails.sqnr_db))


def _of_float_inputs(found: Refined, *, count: int, p: float) -> Iterator[tuple[str, Change]]:
    """The same of what float operations read, where that loses less."""
    for cut in float_inputs(found.encoding.plan):
        sketch = found.statistics.states.get(Statistic(cut.value, Kind.SKETCH))
        if not isinstance(sketch, Sketch):
            continue
        spec = PiecewiseSpec(region=cut.spec, regions=count)
        params = piecewise_params(spec, sketch, p=p)
        uniform = partial(fake_quantize, spec=cut.spec, params=found.encoding.params[cut.placements[0]])
        before = sketched_sqnr(sketch, uniform)
        after = sketched_sqnr(sketch, partial(fake_quantize_piecewise, spec=spec, params=params))
        if after > before:
            local = f"its own SQNR {before:.1f} -> {after:.1f} dB"
            note = f"{NAMES[count]} regions for {cut.value} ({local}, read in float without gain)"
            yield note, partial(sum_regions, cut=cut, params=params)
