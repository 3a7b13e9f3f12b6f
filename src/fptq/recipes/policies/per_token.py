"""A scale for each token, found when the network runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from fptq.numerics import fake_quantize, params_from_range
from fptq.recipes.policies.offer import Offer, rewriting
from fptq.recipes.policies.spots import Spot
from fptq.recipes.workbench import Bench
from fptq.rewrite import scale_tokens, takes_tokens
from fptq.rewrite.per_token import Ends, reach

_SHORTER = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""How far the shorter side of a row may reach, of the longer one: one zero point serves all rows."""


def per_token(spot: Spot, bench: Bench) -> Iterator[Offer]:
    """The ends that leave most of the signal; none for a convolution, which mixes tokens."""
    if takes_tokens(bench.best.model, spot.cut):
        yield rows_scaled(spot)


def rows_scaled(spot: Spot) -> Offer:
    """The ends that leave most of the signal, for an activation that takes tokens."""
    return max((_offer(spot, ends) for ends in _ends(spot)), key=lambda offer: offer.sqnr_db)


def _ends(spot: Spot) -> Iterator[Ends]:
    low, high = -float(spot.low.min()), float(spot.high.max())
    if not low and not spot.cut.spec.symmetric:
        yield 0.0, 1.0
        return
    for share in _SHORTER[: 1 if spot.cut.spec.symmetric else None]:
        yield (-share, 1.0) if high >= low else (-1.0, share)


def _offer(spot: Spot, ends: Ends) -> Offer:
    far = reach(spot.rows, ends)
    quantized = fake_quantize(spot.rows / far, spot.cut.spec, params_from_range(spot.cut.spec, *ends)) * far
    return Offer(
        policy="per token",
        detail=f"rows scaled to [{ends[0]:g}, {ends[1]:g}]",
        sqnr_db=spot.left_by(quantized),
        make=rewriting(partial(scale_tokens, cut=spot.cut, ends=ends)),
    )
