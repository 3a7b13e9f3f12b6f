"""A range that leaves out a fixed share of the values on either side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fptq.calibrate.observers.base import params_by_histogram
from fptq.calibrate.sketch import Histogram
from fptq.calibrate.states import Kind, State
from fptq.numerics import QuantizerSpec, UniformParams


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """Leaves out `100 - percentile` percent of the values at each end.

    Attributes:
        percentile: Above 50, up to 100. At 100 nothing that was sampled is left out.
    """

    name: ClassVar[str] = "percentile"
    needs: ClassVar[Kind] = Kind.SKETCH
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile = {self.percentile}: it is above 50 and at most 100")

    def params(self, spec: QuantizerSpec, state: State) -> UniformParams:
        """The quantizer of the range between the two percentiles."""
        return params_by_histogram(spec, state, self._range)

    def _range(self, histogram: Histogram) -> tuple[float, float]:
        left_out = int((1 - self.percentile / 100) * histogram.total + 1e-6)
        high = _upper(histogram.negative, histogram.zeros, histogram.positive, left_out) * histogram.width
        low = -_upper(histogram.positive, histogram.zeros, histogram.negative, left_out) * histogram.width
        return max(min(low, histogram.high), histogram.low), min(max(high, histogram.low), histogram.high)


def _upper(far: np.ndarray, zeros: int, near: np.ndarray, left_out: int) -> int:
    """Outer edge, in bins, of the bin that holds the highest value once `left_out` are removed.

    Args:
        far: Counts by magnitude on the other side of 0.
        zeros: Count of exact zeros.
        near: Counts by magnitude on the side whose end is looked for.
        left_out: How many of the highest values to pass over.
    """
    bins = near.size
    descending = np.concatenate([near[::-1], [zeros], far])
    edges = np.concatenate([np.arange(bins, 0, -1), [0], -np.arange(bins)])
    passed = np.searchsorted(np.cumsum(descending), left_out, side="right")
    return int(edges[min(int(passed), edges.size - 1)])
