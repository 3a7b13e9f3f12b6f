"""The activations whose quantizer leaves least of the signal: where another policy may pay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fptq.calibrate import Statistic
from fptq.calibrate.piecewise import sketched_sqnr
from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import Kind
from fptq.feeds import Part
from fptq.numerics import fake_quantize
from fptq.recipes.problem import Problem
from fptq.recipes.refine import Refined
from fptq.rewrite import ProductInput, product_inputs
from fptq.rewrite.channels import channel_extremes, channel_rows
from fptq.types import Array

_SEEN = 8
"""Calibration samples whose tokens an offer's own SQNR is measured on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lossy:
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
class Spot(_Lossy):
    """An activation that loses much, looked at closely.

    Attributes:
        low: The lowest value of each channel over the calibration samples, f64[C], at most 0.
        high: The highest, at least 0.
        rows: Some of its rows, f32[R, C].
    """

    low: Array
    high: Array
    rows: Array

    def left_by(self, quantized: Array) -> float:
        """What is left of the rows after they became that: SQNR [dB]."""
        return sqnr(self.rows, quantized)


def worst_spots(found: Refined, problem: Problem, count: int) -> list[Spot]:
    """The worst first, at most so many.

    None where calibration has kept no histograms: an observer that needs none was asked for by name.
    """
    spots = sorted(_all(found), key=lambda spot: spot.sqnr_db)[:count]
    return _looked_at(found, problem, spots)


def spot_at(found: Refined, problem: Problem, value: str) -> Spot | None:
    """One activation by name; None where it cannot be quantized otherwise."""
    spots = [spot for spot in _all(found) if spot.cut.value == value]
    return next(iter(_looked_at(found, problem, spots)), None)


def sqnr(exact: Array, changed: Array) -> float:
    """Signal to noise [dB]; infinite where there is no noise."""
    signal = float(np.square(exact, dtype=np.float64).sum())
    noise = float(np.square(exact.astype(np.float64) - changed).sum())
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def _all(found: Refined) -> list[_Lossy]:
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
        spots.append(_Lossy(cut=cut, sketch=sketch, sqnr_db=left, weight_share=share))
    return spots


def _looked_at(found: Refined, problem: Problem, spots: Sequence[_Lossy]) -> list[Spot]:
    if not spots:
        return []
    axes = {spot.cut.value: spot.cut.axis for spot in spots}
    extremes = channel_extremes(found.model, axes, problem.calibration)
    rows = channel_rows(found.model, axes, Part(problem.calibration, min(_SEEN, len(problem.calibration))))
    return [
        Spot(
            **vars(spot),
            low=np.minimum(extremes[spot.cut.value][0], 0),
            high=np.maximum(extremes[spot.cut.value][1], 0),
            rows=rows[spot.cut.value],
        )
        for spot in spots
    ]


def _quantized_weights(found: Refined) -> int:
    stored = found.model.graph.initializers
    sizes = {p.value: stored[p.value].const_value.size for p in found.encoding.plan.weights}  # type: ignore[union-attr]
    return sum(sizes.values())
