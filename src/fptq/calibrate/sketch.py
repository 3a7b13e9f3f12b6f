"""A histogram that needs no range in advance and merges without error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from fptq.calibrate.states import Extremes, Kind, Reading
from fptq.types import Array

TENSOR_BINS = 4096
CHANNEL_BINS = 1024
_EMPTY = -148  # below the exponent of every f32 but 0
_GOLDEN = (5.0**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """Counts of one tensor or channel; bin `i` on either side of 0 holds magnitudes in `[i, i + 1) * width`.

    Attributes:
        low: Exact lowest value, from all elements, not only from the counted ones.
        high: Exact highest value.
        width: A power of two.
        negative: i64[B], by magnitude.
        positive: i64[B].
        zeros: How many values were exactly 0.
    """

    low: float
    high: float
    width: float
    negative: Array
    positive: Array
    zeros: int

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.negative.sum() + self.positive.sum()) + self.zeros

    @cached_property
    def magnitudes(self) -> Array:
        """Counts of `|x|`, zeros left out, i64[B]."""
        counts: Array = self.negative + self.positive
        return counts

    @cached_property
    def points(self) -> tuple[Array, Array]:
        """Nonzero values that stand for the counts, and how often: f64[K], i64[K].

        Within its bin a value sits at a golden-ratio fraction rather than in the middle: a regular grid of values
        would beat with the grid of a quantizer whose step is not far from the bin width.
        """
        fractions = (np.arange(self.positive.size) * _GOLDEN + 0.5) % 1
        at = (np.arange(self.positive.size) + fractions) * self.width
        below, above = np.flatnonzero(self.negative)[::-1], np.flatnonzero(self.positive)
        values = np.clip(np.concatenate([-at[below], at[above]]), self.low, self.high)
        return values, np.concatenate([self.negative[below], self.positive[above]])


@dataclass(frozen=True, kw_only=True, eq=False)
class Sketch:
    """Histograms of a strided sample of a tensor, or of each of its channels, with the exact extremes.

    The range of a histogram is a power of two and doubles when a value does not fit: pairs of bins are added, so
    the counts are those of one histogram filled at the final range, in any order and with any merging.

    Attributes:
        extremes: Exact lowest and highest values.
        exponents: i64[R]: the extremes of row r are in (-2^e, 2^e).
        counts: i64[R, 2 B + 1]: negative bins from the far end, exact zeros, positive bins.
    """

    kind: ClassVar[Kind] = Kind.SKETCH
    extremes: Extremes
    exponents: Array
    counts: Array

    @classmethod
    def of(cls, reading: Reading) -> Self:
        """The state after one run."""
        if reading.sample is None:
            raise ValueError("a sketch needs a sample")
        bins = TENSOR_BINS if reading.low.ndim == 0 else CHANNEL_BINS
        top = np.maximum(np.abs(reading.low), np.abs(reading.high)).reshape(-1)
        exponents = np.where(top > 0, np.frexp(top)[1], _EMPTY).astype(np.int64)
        width = 2 * bins + 1
        factors = np.ldexp(float(bins), -exponents)  # f64: scaling an f32 by a power of two is exact
        factor = factors[0] if reading.channels is None else factors[reading.channels]
        scaled = np.multiply(reading.sample, factor, dtype=np.float64)
        code = scaled.astype(np.int64)
        code += scaled > 0
        code -= scaled < 0
        code += bins
        if reading.channels is not None:
            code += reading.channels * width
        counts = np.bincount(code, minlength=top.size * width).reshape(top.size, width)
        return cls(extremes=Extremes.of(reading), exponents=exponents, counts=counts)

    @property
    def extent(self) -> tuple[int, ...]:
        """Shape of the scale."""
        return self.extremes.extent

    def merged(self, other: Self) -> Self:
        """The state of both sets of runs."""
        exponents = np.maximum(self.exponents, other.exponents)
        counts = _coarsened(self, exponents) + _coarsened(other, exponents)
        return type(self)(extremes=self.extremes.merged(other.extremes), exponents=exponents, counts=counts)

    def joined(self, other: Self) -> Self:
        """The state of the union of two tensors."""
        return self.merged(other)

    def histograms(self) -> tuple[Histogram, ...]:
        """One for the tensor, or one for each channel."""
        bins = self.counts.shape[1] // 2
        lows, highs = self.extremes.low.reshape(-1), self.extremes.high.reshape(-1)
        return tuple(
            Histogram(
                low=float(lows[row]),
                high=float(highs[row]),
                width=float(np.ldexp(1.0 / bins, int(self.exponents[row]))),
                negative=counts[:bins][::-1],
                positive=counts[bins + 1 :],
                zeros=int(counts[bins]),
            )
            for row, counts in enumerate(self.counts)
        )

    def to_arrays(self) -> dict[str, Array]:
        """The state as arrays, the counts without their many zeros."""
        where = np.flatnonzero(self.counts)
        return {
            **self.extremes.to_arrays(),
            "exponents": self.exponents,
            "shape": np.array(self.counts.shape),
            "where": where,
            "counts": self.counts.reshape(-1)[where],
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """The inverse of `to_arrays`."""
        counts = np.zeros(tuple(arrays["shape"]), dtype=np.int64)
        counts.reshape(-1)[arrays["where"]] = arrays["counts"]
        return cls(extremes=Extremes.from_arrays(arrays), exponents=arrays["exponents"], counts=counts)


def _coarsened(sketch: Sketch, exponents: Array) -> Array:
    """The counts at wider ranges."""
    if (exponents == sketch.exponents).all():
        return sketch.counts
    counts = sketch.counts.copy()
    bins = counts.shape[1] // 2
    for row in np.flatnonzero(exponents > sketch.exponents):
        shift = int(exponents[row] - sketch.exponents[row])
        counts[row, bins + 1 :] = _halved(counts[row, bins + 1 :], shift)
        counts[row, :bins] = _halved(counts[row, :bins][::-1], shift)[::-1]
    return counts


def _halved(counts: Array, times: int) -> Array:
    """Counts by magnitude after the bin width was doubled `times` times."""
    merged = counts.reshape(-1, min(1 << min(times, 62), counts.size)).sum(axis=1)
    return np.pad(merged, (0, counts.size - merged.size))
