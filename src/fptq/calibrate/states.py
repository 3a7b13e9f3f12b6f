"""What is kept of a tensor between runs: small states that merge exactly and in any order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, Self

import numpy as np

from fptq.types import Array


class Kind(StrEnum):
    """What a state knows."""

    EXTREMES = "extremes"
    BATCH_EXTREMES = "batch_extremes"
    SKETCH = "sketch"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What one run tells about a tensor.

    Attributes:
        low: f32, shape `[]` per tensor or `[C]` per channel.
        high: f32 of the same shape.
        sample: f32[n] of the elements, where a sketch was asked for.
        channels: i64[n], the channel of each of them, where asked for per channel.
    """

    low: Array
    high: Array
    sample: Array | None = None
    channels: Array | None = None


class State(Protocol):
    """A summary of runs. Any order of runs and any way of merging ends in the same arrays."""

    kind: ClassVar[Kind]

    @property
    def extent(self) -> tuple[int, ...]:
        """Shape of the scale: `()` per tensor, `(C,)` per channel."""

    @classmethod
    def of(cls, reading: Reading) -> Self:
        """The state after one run."""

    def merged(self, other: Self) -> Self:
        """The state of both sets of runs of one tensor."""

    def joined(self, other: Self) -> Self:
        """The state of the union of two tensors over the same runs: they share a scale."""

    def to_arrays(self) -> dict[str, Array]:
        """The state as arrays by name."""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """The inverse of `to_arrays`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Extremes:
    """Exact lowest and highest values of all runs.

    Attributes:
        low: f32, `[]` per tensor or `[C]` per channel.
        high: f32 of the same shape.
    """

    kind: ClassVar[Kind] = Kind.EXTREMES
    low: Array
    high: Array

    @classmethod
    def of(cls, reading: Reading) -> Self:
        """The state after one run."""
        return cls(low=np.asarray(reading.low, np.float32), high=np.asarray(reading.high, np.float32))

    @property
    def extent(self) -> tuple[int, ...]:
        """Shape of the scale."""
        return self.low.shape

    def merged(self, other: Self) -> Self:
        """The state of both sets of runs."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return type(self)(low=np.asarray(low), high=np.asarray(high))

    def joined(self, other: Self) -> Self:
        """The state of the union of two tensors."""
        return self.merged(other)

    def to_arrays(self) -> dict[str, Array]:
        """The state as arrays by name."""
        return {"low": self.low, "high": self.high}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """The inverse of `to_arrays`."""
        return cls(low=arrays["low"], high=arrays["high"])


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchExtremes:
    """Sums over runs of the lowest and of the highest value of each run.

    A floating-point sum depends on its order. Here mantissas are summed as integers, one sum for each exponent,
    so it does not.

    Attributes:
        runs: How many runs.
        lows: i64, shape of the scale + `[277]`: sums of 24-bit mantissas by f32 exponent.
        highs: The same of the highest values.
    """

    kind: ClassVar[Kind] = Kind.BATCH_EXTREMES
    runs: int
    lows: Array
    highs: Array

    @classmethod
    def of(cls, reading: Reading) -> Self:
        """The state after one run."""
        return cls(runs=1, lows=_by_exponent(reading.low), highs=_by_exponent(reading.high))

    @property
    def mean_low(self) -> Array:
        """Mean over runs of the lowest value, f32."""
        return _mean(self.lows, self.runs)

    @property
    def mean_high(self) -> Array:
        """Mean over runs of the highest value, f32."""
        return _mean(self.highs, self.runs)

    @property
    def extent(self) -> tuple[int, ...]:
        """Shape of the scale."""
        return self.lows.shape[:-1]

    def merged(self, other: Self) -> Self:
        """The state of both sets of runs."""
        return type(self)(runs=self.runs + other.runs, lows=self.lows + other.lows, highs=self.highs + other.highs)

    def joined(self, other: Self) -> Self:
        """The wider mean of each bound: a mean over both tensors would cut the wider one off."""
        runs = math.lcm(self.runs, other.runs)
        mine, theirs = runs // self.runs, runs // other.runs
        lower = (self.mean_low <= other.mean_low)[..., None]
        higher = (self.mean_high >= other.mean_high)[..., None]
        return type(self)(
            runs=runs,
            lows=np.where(lower, self.lows * mine, other.lows * theirs),
            highs=np.where(higher, self.highs * mine, other.highs * theirs),
        )

    def to_arrays(self) -> dict[str, Array]:
        """The state as arrays by name."""
        return {"runs": np.array(self.runs), "lows": self.lows, "highs": self.highs}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """The inverse of `to_arrays`."""
        return cls(runs=int(arrays["runs"]), lows=arrays["lows"], highs=arrays["highs"])


_LOWEST_EXPONENT = -148  # np.frexp of the smallest f32, 2^-149
_EXPONENTS = 128 - _LOWEST_EXPONENT + 1
_MANTISSA_BITS = 24


def _by_exponent(x: Array) -> Array:
    """Each f32 as its integer mantissa, at the place of its exponent: i64[..., 277]."""
    fraction, exponent = np.frexp(np.asarray(x, dtype=np.float64))
    mantissa = np.ldexp(fraction, _MANTISSA_BITS).astype(np.int64)
    place = np.where(mantissa == 0, 0, exponent - _LOWEST_EXPONENT)
    return np.asarray(mantissa[..., None] * (np.arange(_EXPONENTS) == place[..., None]))


def _mean(sums: Array, runs: int) -> Array:
    """The correctly rounded quotient of an exact sum: Python's integers do not overflow."""
    shift = -_LOWEST_EXPONENT + _MANTISSA_BITS
    totals = (sum(int(row[k]) << int(k) for k in np.flatnonzero(row)) for row in sums.reshape(-1, _EXPONENTS))
    means = [total / (runs << shift) for total in totals]
    return np.array(means, dtype=np.float32).reshape(sums.shape[:-1])
