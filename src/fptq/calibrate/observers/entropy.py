"""The range whose quantized histogram says most about the original one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fptq.calibrate.observers.base import params_by_histogram
from fptq.calibrate.sketch import Histogram
from fptq.calibrate.states import Kind, State
from fptq.numerics import QuantizerSpec, UniformParams
from fptq.types import Array

_CANDIDATES = 100
_SMALLEST = 0.05  # of the full range


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Minimises the Kullback-Leibler divergence of the quantized histogram from the clipped original.

    For each candidate range: P is the histogram with everything outside added to the outermost bins; Q spreads the
    mass of each quantization level evenly over those of its bins that are not empty (Migacz, "8-bit inference with
    TensorRT", GTC 2017). Exact zeros are left out: every quantizer represents them. Where both signs occur,
    symmetric quantizers are judged on magnitudes, and both ends of asymmetric ones shrink together.
    """

    name: ClassVar[str] = "entropy"
    needs: ClassVar[Kind] = Kind.SKETCH

    def params(self, spec: QuantizerSpec, state: State) -> UniformParams:
        """The quantizer of the best range."""
        return params_by_histogram(spec, state, lambda histogram: _range(histogram, spec))


def _range(histogram: Histogram, spec: QuantizerSpec) -> tuple[float, float]:
    levels = spec.qmax - spec.qmin + 1
    beyond = np.arange(histogram.positive.size) + 0.5
    if spec.symmetric:
        at, counts = beyond, histogram.magnitudes
        low, high, levels = 0.0, max(-histogram.low, histogram.high), levels // 2
    else:
        at = np.concatenate([-beyond[::-1], beyond])
        counts = np.concatenate([histogram.negative[::-1], histogram.positive])
        low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    filled = np.flatnonzero(counts)
    best = _best_fraction(at[filled] * histogram.width, counts[filled], (low, high), levels)
    return (-high * best, high * best) if spec.symmetric else (low * best, high * best)


def _best_fraction(at: Array, counts: Array, full: tuple[float, float], levels: int) -> float:
    """The share of the full range with the least divergence.

    Args:
        at: f64[K], where the bins are, in ascending order.
        counts: i64[K], all > 0.
        full: The lowest and highest value.
        levels: How many codes there are for the range.
    """
    fractions = np.linspace(1.0, _SMALLEST, _CANDIDATES)
    divergences = [_divergence(at, counts, (full[0] * f, full[1] * f), levels) for f in fractions]
    return float(fractions[int(np.argmin(divergences))]) if counts.size > levels else 1.0


def _divergence(at: Array, counts: Array, window: tuple[float, float], levels: int) -> float:
    """KL(P || Q) in nats; infinite where fewer bins than levels are left and every range would look perfect."""
    first, last = np.searchsorted(at, window[0]), np.searchsorted(at, window[1], side="right")
    inside = counts[first:last]
    if inside.size < levels:
        return float("inf")
    p = inside.astype(np.float64)
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    level = ((at[first:last] - window[0]) * (levels / (window[1] - window[0]))).astype(np.int64)
    mass, filled = np.bincount(level, weights=inside), np.bincount(level)
    q = (mass / np.maximum(filled, 1))[level]
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))
