"""Two regions: what lies between two breakpoints and what exceeds them, in two products of one weight.

The tail is computed for the few channels that reach farthest, or for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from fptq.calibrate.piecewise import piecewise_params, sketched_sqnr
from fptq.numerics import PiecewiseSpec, fake_quantize_piecewise, params_from_breakpoints
from fptq.recipes.policies.offer import Offer, rewriting
from fptq.recipes.policies.spots import Reaching, Spot
from fptq.recipes.workbench import Bench
from fptq.rewrite import Change, Regions, cut_in_regions

REGIONS: Mapping[str, int] = MappingProxyType({"two": 2, "three": 3})
"""How many, by the recipe's word for it."""
NAMES: Mapping[int, str] = MappingProxyType({count: name for name, count in REGIONS.items()})
"""The word for a number of them."""
FEW = 1 / 8
"""Channels that are few, as a share."""
_HEADROOM = 1.5
"""How far beyond what calibration has seen of them the other channels may reach.

A channel without a tail saturates beyond the breakpoint. Where most channels have one, the others are those that
calibration happened to see little of: on 8 sequences of a protein language model that lost 3 dB of the output's SQNR on
other sequences, while the activation's own rose by 19 dB.
"""
NEGLIGIBLE_DB = 0.5
"""Of the SQNR of the activation itself: what is not worth more channels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tails:
    """Regions for the input of products.

    Attributes:
        spot: The activation.
        regions: Where it is cut, and for which channels.
        sqnr_db: What they leave of it [dB].
    """

    spot: Reaching
    regions: Regions
    sqnr_db: float

    @property
    def policy(self) -> str:
        """The policy that it is a form of."""
        return f"{NAMES[len(self.regions.params.regions)]} regions"

    @property
    def detail(self) -> str:
        """Which form."""
        return f"tail of {len(self.regions.channels)} of {self.spot.cut.channels} channels"

    @property
    def extra(self) -> float:
        """Multiplications that the products gain, as a share of those they have."""
        tails = len(self.regions.params.regions) - 1
        return tails * len(self.regions.channels) / self.spot.cut.channels

    @property
    def change(self) -> Change:
        """The rewrite."""
        return partial(cut_in_regions, cut=self.spot.cut, regions=self.regions)

    def offer(self) -> Offer:
        """The same for a contest."""
        return Offer(
            policy=self.policy,
            detail=self.detail,
            sqnr_db=self.sqnr_db,
            extra=self.extra,
            make=rewriting(self.change),
        )


def two_regions(spot: Spot, bench: Bench) -> Iterator[Offer]:
    """The cheapest tail of few channels that leaves all but the most of the signal; one of all, where that is more."""
    few = tails_of_few_channels(spot)
    most = max((tails.sqnr_db for tails in few), default=-math.inf)
    yield from [tails.offer() for tails in few if tails.sqnr_db >= most - NEGLIGIBLE_DB][:1]
    everywhere = tails_of_all_channels(spot, regions=2, p=bench.problem.recipe.p)
    if everywhere.sqnr_db > most + NEGLIGIBLE_DB:
        yield everywhere.offer()


def tails_of_few_channels(spot: Reaching) -> list[Tails]:
    """Two regions, the first of which holds all channels but the 1, 2, 4, ... that reach farthest."""
    spec = PiecewiseSpec(region=spot.cut.spec)
    full = float(spot.low.min()), float(spot.high.max())
    order = np.argsort(np.maximum(-spot.low, spot.high), kind="stable")
    return [
        _tails(spot, spec, Regions(params=params_from_breakpoints(spec, *full, [ends]), channels=channels))
        for count, ends in centres(spot)
        for channels in [tuple(int(channel) for channel in np.sort(order[-count:]))]
    ]


def tails_of_all_channels(spot: Reaching, *, regions: int, p: float) -> Tails:
    """Regions at the breakpoints that are best for the values alone.

    Args:
        spot: The activation.
        regions: How many.
        p: Exponent of the error that breakpoints minimise.
    """
    spec = PiecewiseSpec(region=spot.cut.spec, regions=regions)
    params = piecewise_params(spec, spot.sketch, p=p)
    return _tails(spot, spec, Regions(params=params, channels=tuple(range(spot.cut.channels))))


def centres(spot: Reaching) -> Iterator[tuple[int, tuple[float, float]]]:
    """Where the first region may end: it holds all channels but the 1, 2, 4, ... that reach farthest, and how many."""
    full = float(spot.low.min()), float(spot.high.max())
    order = np.argsort(np.maximum(-spot.low, spot.high), kind="stable")
    count = 1
    while count <= FEW * order.size:
        inner = order[:-count]
        low, high = _HEADROOM * float(spot.low[inner].min()), _HEADROOM * float(spot.high[inner].max())
        ends = max(low, full[0]), min(high, full[1])
        if ends != full:
            yield count, ends
        count *= 2


def _tails(spot: Reaching, spec: PiecewiseSpec, regions: Regions) -> Tails:
    quantizer = partial(fake_quantize_piecewise, spec=spec, params=regions.params)
    return Tails(spot=spot, regions=regions, sqnr_db=sketched_sqnr(spot.sketch, quantizer))
