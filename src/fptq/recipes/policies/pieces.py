"""Channels in pieces of one scale: what a few channels have beyond the others stands behind them, in one product."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from fptq.numerics import UniformParams, params_from_range
from fptq.plan import PROFILES
from fptq.recipes.policies.offer import Offer, rewriting
from fptq.recipes.policies.spots import Spot
from fptq.recipes.policies.two_regions import FEW, NEGLIGIBLE_DB, centres
from fptq.recipes.workbench import Bench
from fptq.rewrite import Pieces, cut_in_pieces

_EVEN = (2, 3, 4, 6, 8)
"""Pieces that the channel that reaches farthest is cut in, apart from what the other channels suggest."""


def pieces(spot: Spot, bench: Bench) -> Iterator[Offer]:
    """The shortest that leaves all but the most of the signal.

    None for signed codes where the engine does not read them behind a Concat.
    """
    profile = PROFILES[bench.best.encoding.plan.engine]
    if spot.cut.spec.signed and "Concat" in profile.unsigned_behind:
        return
    offers = [_offer(spot, found) for found in _cuts(spot)]
    most = max((offer.sqnr_db for offer in offers), default=0.0)
    good = [offer for offer in offers if offer.sqnr_db >= most - NEGLIGIBLE_DB]
    yield from sorted(good, key=lambda offer: (offer.extra, -offer.sqnr_db))[:1]


def _cuts(spot: Spot) -> Iterator[Pieces]:
    """Pieces that end where all channels but a few do, or that share the whole reach evenly."""
    low, high = float(spot.low.min()), float(spot.high.max())
    evenly = [(low / count, high / count) for count in _EVEN]
    for ends in (*(ends for _, ends in centres(spot)), *evenly):
        params = params_from_range(spot.cut.spec, *ends)
        rounds = _rounds(spot, params)
        if 0 < sum(map(len, rounds)) <= FEW * spot.cut.channels:
            yield Pieces(params=params, rounds=rounds)


def _rounds(spot: Spot, params: UniformParams) -> tuple[tuple[int, ...], ...]:
    """Pieces of each channel, up to where it was seen to reach; a few more than `FEW` allows, where it is too many."""
    low, high = (float(end) for end in params.range(spot.cut.spec))
    rounds: list[tuple[int, ...]] = []
    while sum(map(len, rounds)) <= FEW * spot.cut.channels:
        taken = len(rounds) + 1
        step = float(params.scale)  # what a piece lacks by less than a step is no reason for another
        channels = np.flatnonzero((spot.high > high * taken + step) | (spot.low < low * taken - step))
        if not channels.size:
            break
        rounds.append(tuple(int(channel) for channel in channels))
    return tuple(rounds)


def _offer(spot: Spot, found: Pieces) -> Offer:
    size = spot.cut.channels
    return Offer(
        policy="pieces",
        detail=f"{len(found.rounds[0])} of {size} channels in up to {len(found.rounds) + 1} pieces",
        sqnr_db=spot.left_by(found.fake_quantize(spot.rows, spot.cut.spec)),
        extra=found.extra / size,
        make=rewriting(partial(cut_in_pieces, cut=spot.cut, pieces=found)),
    )
