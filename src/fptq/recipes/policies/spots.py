"""The activations whose quantizer leaves least of the signal: where another policy may pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fptq.calibrate import Statistic
from fptq.calibrate.piecewise import sketched_sqnr
from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import Kind
from fptq.feeds import Part
from fptq.numerics import fake_quantize, sqnr
from fptq.recipes.workbench import Refined
from fptq.rewrite import ProductInput, product_inputs
from fptq.rewrite.channels import channel_extremes, channel_rows
from fptq.types import Array, FeedSource

_SEEN = 8
"""Calibration samples whose tokens an offer's own SQNR is measured on."""


Extremes = Mapping[str, tuple[Array, Array]]
"""The lowest and highest value of each channel, f64[C] each, by the activation's name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lossy:
    """An activation, and what its quantizer leaves of it.

    Attributes:
        cut: Where it is read.
        sketch: What calibration has seen of its values.
        sqnr_db: What its quantizer leaves of that [dB].
        weight_share: Its products' weights, as a share of those of all quantized layers.
    """

    cut: ProductInput
    sketch: Sketch
    sqnr_db: float
    weight_share: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Reaching(Lossy):
    """The same, with how far its channels reach.

    Attributes:
        low: The lowest value of each channel over the calibration samples, f64[C], at most 0.
        high: The highest, at least 0.
    """

    low: Array
    high: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Spot(Reaching):
    """An activation that loses much, looked at closely.

    Attributes:
        rows: Some of its rows, f32[R, C].
    """

    rows: Array

    def left_by(self, quantized: Array) -> float:
        """What is left of the rows after they became that: SQNR [dB]."""
        return sqnr(self.rows, quantized)


def worst_spots(found: Refined, samples: FeedSource, count: int) -> list[Spot]:
    """The worst first, at most so many."""
    return _looked_at(found, samples, lossy_inputs(found)[:count])


def spot_at(found: Refined, samples: FeedSource, value: str) -> Spot | None:
    """One activation by name; None where it cannot be quantized otherwise."""
    spots = [spot for spot in lossy_inputs(found) if spot.cut.value == value]
    return next(iter(_looked_at(found, samples, spots)), None)


def lossy_inputs(found: Refined) -> list[Lossy]:
    """The activations that can be quantized otherwise, those whose quantizer leaves least of the signal first.

    None where calibration has kept no histograms: an observer that needs none was asked for by name.
    """
    encoding, spots = found.encoding, []
    cuts = product_inputs(found.model, encoding.plan)
    everything = _quantized_weights(found)
    for cut in cuts:
        sketch = found.statistics.states.get(Statistic(cut.value, Kind.SKETCH))
        if not isinstance(sketch, Sketch):
            continue
        params = encoding.params[cut.placements[0]]
        left = sketched_sqnr(sketch, partial(fake_quantize, spec=cut.spec, params=params))
        share = cut.weights / everything
        spots.append(Lossy(cut=cut, sketch=sketch, sqnr_db=left, weight_share=share))
    return sorted(spots, key=lambda spot: spot.sqnr_db)


def extremes_of(found: Refined, samples: FeedSource, spots: Sequence[Lossy]) -> Extremes:
    """What the channels of activations reach.

    Args:
        found: The network.
        samples: What is run.
        spots: The activations.
    """
    axes = {spot.cut.value: spot.cut.axis for spot in spots}
    return channel_extremes(found.model, axes, samples) if axes else {}


def reaching(spot: Lossy, extremes: Extremes) -> Reaching:
    """An activation with how far its channels reach."""
    low, high = extremes[spot.cut.value]
    return Reaching(**vars(spot), low=np.minimum(low, 0), high=np.maximum(high, 0))


def _looked_at(found: Refined, samples: FeedSource, spots: Sequence[Lossy]) -> list[Spot]:
    if not spots:
        return []
    axes = {spot.cut.value: spot.cut.axis for spot in spots}
    extremes = extremes_of(found, samples, spots)
    rows = channel_rows(found.model, axes, Part(samples, min(_SEEN, len(samples))))
    return [Spot(**vars(reaching(spot, extremes)), rows=rows[spot.cut.value]) for spot in spots]


def _quantized_weights(found: Refined) -> int:
    stored = found.model.graph.initializers
    sizes = {p.value: stored[p.value].const_value.size for p in found.encoding.plan.weights}  # type: ignore[union-attr]
    return sum(sizes.values())
