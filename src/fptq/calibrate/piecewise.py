"""Breakpoints of piecewise-linear quantizers from what calibration keeps of an activation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fptq.calibrate.observers.lp import Lp
from fptq.calibrate.sketch import Sketch
from fptq.numerics import PiecewiseParams, PiecewiseSpec, Values, searched_params, sqnr_of
from fptq.types import Array


def piecewise_params(spec: PiecewiseSpec, sketch: Sketch, *, p: float = 2.4) -> PiecewiseParams:
    """The quantizer with the least error on the histograms: of all that was seen, or of what `Lp` would clip to.

    A breakpoint is as exact as the bins are fine: an outlier of 5000 standard deviations, which stretches bins to two
    of them, costs up to 1.7 times the error that the values themselves would have led to.

    Args:
        spec: The quantizer, per tensor or per channel.
        sketch: What was seen of the activation.
        p: Exponent of the error, 1 to 8; the default is that of `Lp`.

    Returns:
        Numbers of the shape of the sketch's scale: `[]` or `[C]`.

    Raises:
        ValueError: The exponent is out of range.
    """
    seen = sketch.extremes.low.reshape(-1), sketch.extremes.high.reshape(-1)
    low, high = (end.reshape(-1) for end in Lp(p=p).params(spec.region, sketch).range(spec.region))
    clip = np.maximum(low, np.minimum(seen[0], 0)), np.minimum(high, np.maximum(seen[1], 0))
    found = searched_params(spec, _values(sketch), clips=[clip], p=p)
    return found.reshaped(sketch.extent)


def sketched_sqnr(sketch: Sketch, quantizer: Callable[[Array], Array]) -> float:
    """What a quantizer leaves of the signal that a sketch has seen: SQNR [dB].

    Args:
        sketch: Of a tensor as a whole.
        quantizer: From f32 values to what becomes of them, one by one.
    """
    values = _values(sketch)
    changed = quantizer(values.rows)
    signal, noise = (
        float((np.square(part.astype(np.float64)) * values.counts).sum())
        for part in (values.rows, values.rows - changed)
    )
    return sqnr_of(signal, noise)


def _values(sketch: Sketch) -> Values:
    """The points of each histogram as a row; columns that a row does not need are zeros that occur 0 times."""
    histograms = sketch.histograms()
    points = [histogram.points for histogram in histograms]
    length = max(values.size for values, _ in points)
    rows = np.zeros((len(points), length + 2), dtype=np.float32)
    counts = np.zeros(rows.shape, dtype=np.float32)
    for row, (values, occurrences) in enumerate(points):
        rows[row, : values.size], counts[row, : values.size] = values, occurrences
        # The extremes were seen, if not by the sample: clipping them off costs what it costs.
        rows[row, length:], counts[row, length:] = (histograms[row].low, histograms[row].high), 1
    widths = np.array([histogram.width for histogram in histograms], dtype=np.float32)
    return Values(rows=rows, counts=counts, resolution=widths[:, None])
