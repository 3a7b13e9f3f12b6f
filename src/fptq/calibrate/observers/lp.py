"""The range that makes the least error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fptq.calibrate.observers.base import params_by_histogram
from fptq.calibrate.sketch import Histogram
from fptq.calibrate.states import Kind, State
from fptq.numerics import PerChannel, QuantizerSpec, UniformParams, fake_quantize, params_from_range
from fptq.numerics.descent import RATIO, descend, paired, shared
from fptq.types import Array

# Rounds of ever smaller steps of the powers of (low, high): both alike, or all pairs.
_SHARED = shared(np.arange(12.0), np.linspace(-0.8, 0.8, 9), np.linspace(-0.16, 0.16, 9))
_FREE = paired(np.arange(10.0), np.linspace(-0.6, 0.6, 5), np.linspace(-0.2, 0.2, 5))
_ROW_ELEMENTS, _JUDGED_ELEMENTS = 1024, 1 << 18
_CHUNK_ELEMENTS = 1 << 16  # fits the second-level cache


@dataclass(frozen=True, kw_only=True)
class Lp:
    """Minimises the sum of `|x - fake_quantize(x)|^p` over clipping ranges.

    Symmetric quantizers and values of one sign have one bound to search; otherwise both are searched together.

    Attributes:
        p: 2 is the squared error; more weighs large errors more. 2.4 is BRECQ's (Li et al., ICLR 2021). 1 to 8.
    """

    name: ClassVar[str] = "lp"
    needs: ClassVar[Kind] = Kind.SKETCH
    p: float = 2.4

    def __post_init__(self) -> None:
        if not 1 <= self.p <= 8:
            raise ValueError(f"p = {self.p}: it is between 1 and 8")

    def params(self, spec: QuantizerSpec, state: State) -> UniformParams:
        """The quantizer with the least error on the histogram."""
        return params_by_histogram(spec, state, lambda histogram: self._range(histogram, spec))

    def row_params(self, spec: QuantizerSpec, rows: Array) -> UniformParams:
        """The quantizer with the least error on each row; long rows are judged on a strided sample."""
        low, high = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
        length = rows.shape[1]
        kept = max(_ROW_ELEMENTS, _JUDGED_ELEMENTS // rows.shape[0])
        stride = max(1, length // kept)
        while math.gcd(stride, length) > 1:
            stride += 1
        judged = rows[:, ::stride]
        chunk = max(1, _CHUNK_ELEMENTS // judged.shape[1])
        found = [
            _Search(rows=judged[at], counts=None, spec=spec, low=low[at], high=high[at], p=self.p).best()
            for at in (slice(start, start + chunk) for start in range(0, rows.shape[0], chunk))
        ]
        return params_from_range(spec, *(np.concatenate(bounds) for bounds in zip(*found, strict=True)))

    def _range(self, histogram: Histogram, spec: QuantizerSpec) -> tuple[float, float]:
        if histogram.high - histogram.low < (spec.qmax - spec.qmin) * histogram.width:
            return histogram.low, histogram.high  # codes finer than its bins: it cannot tell what rounding costs
        values, counts = histogram.points
        search = _Search(
            rows=values.astype(np.float32)[None],
            counts=counts,
            spec=spec,
            low=np.array([min(histogram.low, 0.0)], dtype=np.float32),
            high=np.array([max(histogram.high, 0.0)], dtype=np.float32),
            p=self.p,
        )
        low, high = search.best()
        return float(low[0]), float(high[0])


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One search for each row, all rows at a time.

    Attributes:
        rows: f32[G, n].
        counts: How often each column occurs, [n]; None: once.
        spec: The quantizer.
        low: f32[G], all <= 0: the full range.
        high: f32[G], all >= 0.
        p: The exponent.
    """

    rows: Array
    counts: Array | None
    spec: QuantizerSpec
    low: Array
    high: Array
    p: float

    def best(self) -> tuple[Array, Array]:
        """The bounds with the least error."""
        alike = self.spec.symmetric or not ((self.low < 0) & (self.high > 0)).any()
        full = np.zeros((2, self.low.size))
        powers, _ = descend(lambda tried: self._error(*self._bounds(tried)), _SHARED if alike else _FREE, full)
        return self._bounds(powers)

    def _bounds(self, powers: Array) -> tuple[Array, Array]:
        shares = (RATIO**powers).astype(np.float32)
        return self.low * shares[0], self.high * shares[1]

    def _error(self, low: Array, high: Array) -> Array:
        by_row = self.spec.with_granularity(PerChannel(axis=0))
        difference = np.abs(self.rows - fake_quantize(self.rows, by_row, params_from_range(by_row, low, high)))
        # Relative to the full range: powers of tiny or huge numbers would leave f32.
        full = np.maximum(np.maximum(-self.low, self.high), np.finfo(np.float32).tiny)
        error = (difference / full[:, None]) ** np.float32(self.p)
        return np.asarray(error.sum(axis=1) if self.counts is None else error @ self.counts.astype(np.float32))
