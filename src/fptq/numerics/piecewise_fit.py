"""From ranges, a density or values to the numbers of a piecewise-linear quantizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fptq.numerics.blocks import grouped, ranges, scale_shape
from fptq.numerics.breakpoints import Density, Solve, bisected
from fptq.numerics.descent import RATIO, alternating, descend, paired, shared
from fptq.numerics.fit import params_from_range
from fptq.numerics.params import UniformParams
from fptq.numerics.piecewise import PiecewiseParams, PiecewiseSpec, fake_quantize_piecewise
from fptq.numerics.spec import PerChannel, QuantizerSpec
from fptq.types import Array

Bounds = tuple[Array, Array]
"""The lowest and highest values of a range: numbers, or one for each channel, token or block."""

# Powers of RATIO: 0.75^24 is 1/1000 of the range, which an outlier can stretch.
_LEVELS = np.arange(25.0)
_SHARED = shared(_LEVELS, np.linspace(-0.8, 0.8, 9), np.linspace(-0.16, 0.16, 9), np.linspace(-0.03, 0.03, 7))
# Skewed values may fill one side and leave the other to the tail: sides are also tried apart.
_APART = np.concatenate([*shared(_LEVELS), *paired(np.arange(0.0, 25, 4))])
_FREE = (
    _APART,
    *alternating(np.arange(-4.0, 5)),
    *paired(np.linspace(-1, 1, 5), np.linspace(-0.3, 0.3, 5), np.linspace(-0.08, 0.08, 5)),
)
_SWEEPS = 4
"""Rounds over the ends of more than two regions."""
_TINY = np.finfo(np.float64).tiny
_MIDDLE = math.log(0.5) / math.log(RATIO)


def params_from_breakpoints(
    spec: PiecewiseSpec, low: Array | float, high: Array | float, inner: Sequence[tuple[Array | float, Array | float]]
) -> PiecewiseParams:
    """The quantizer that covers `[low, high]`, its steps changing at the ends of `inner` or within half a step.

    Args:
        spec: The quantizer.
        low: Lowest value to represent: one number, or one for each channel, token or block.
        high: Highest value, of the same shape.
        inner: Lowest and highest value of each region but the last, from the centre outwards; all contain 0. An
            end that is that of the range leaves its side without a tail.

    Raises:
        ValueError: A bound is NaN or infinite, a region ends before it starts, or there are too few or too many.
    """
    if len(inner) != spec.regions - 1:
        raise ValueError(f"{spec.regions} regions have {spec.regions - 1} breakpoints a side, not {len(inner)}")
    found: list[UniformParams] = []
    reached: Bounds = (np.zeros(np.shape(low), np.float32), np.zeros(np.shape(low), np.float32))
    for first, last in (*inner, (low, high)):
        ends = np.asarray(first, np.float32), np.asarray(last, np.float32)
        if (ends[0] > ends[1]).any():
            raise ValueError("a range must not end before it starts")
        found.append(params_from_range(spec.region, *_beyond(ends, reached)))
        covered = _covered(spec.region, found[-1])
        reached = reached[0] + covered[0], reached[1] + covered[1]
    return PiecewiseParams(regions=tuple(found))


def params_from_density(
    spec: PiecewiseSpec, bounds: Bounds, sigma: Array | float, *, density: Density, solve: Solve = bisected
) -> PiecewiseParams:
    """The quantizer with the breakpoints of a density; outer parts are split again for more than two regions.

    The breakpoint is solved for the longer side and ends both. That is the best for symmetric and one-sided ranges;
    a short side next to a long one (GELU) lies in the first region whole. Skewed values want `searched_params`.

    Args:
        spec: The quantizer.
        bounds: Lowest and highest values to represent.
        sigma: Standard deviations around 0 (the root mean square), of the shape of the bounds, >= 0.
        density: What the values follow.
        solve: `bisected`, or `closed_form`.

    Raises:
        ValueError: A bound is NaN or infinite, or `closed_form` is asked for what it has no form for.
    """
    low, high = (np.asarray(bound, np.float64) for bound in bounds)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("a range must be finite")
    sigma64 = np.where(np.asarray(sigma) > 0, sigma, 1.0)  # a tensor of zeros has its breakpoint at 0
    longest = np.maximum(np.maximum(-low, high), 0) / sigma64
    inner, start = [], np.zeros_like(longest)
    for _ in range(spec.regions - 1):
        start = solve(density, longest, start)
        inner.append(
            (np.maximum(-start * sigma64, np.minimum(low, 0)), np.minimum(start * sigma64, np.maximum(high, 0)))
        )
    return params_from_breakpoints(spec, low, high, inner)


def params_from_tensor(x: Array, spec: PiecewiseSpec, *, density: Density, solve: Solve = bisected) -> PiecewiseParams:
    """The quantizer of a tensor that is here now: a weight, or activations with numbers for each token.

    Args:
        x: f32 of any shape, not empty.
        spec: The quantizer.
        density: What its values follow.
        solve: `bisected`, or `closed_form`.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    granularity = spec.region.granularity
    squares = grouped(np.square(x, dtype=np.float64), granularity).sum(axis=1)
    counts = grouped(np.broadcast_to(np.float64(1), x.shape), granularity).sum(axis=1)  # a last block may be short
    sigma = np.sqrt(squares / counts).reshape(scale_shape(granularity, x.shape))
    return params_from_density(spec, ranges(x, granularity), sigma, density=density, solve=solve)


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """What a quantizer is to represent, each row with its own numbers.

    Attributes:
        rows: f32[G, n], finite.
        counts: How often each value occurs, [n] or [G, n]; 1: once.
        resolution: f32[G, 1] or a number: how finely values are known, such as the width of a histogram's bins.
    """

    rows: Array
    counts: Array | float = 1.0
    resolution: Array | float = 0.0

    @property
    def range(self) -> Bounds:
        """f32[G] each, 0 included."""
        return np.minimum(self.rows.min(axis=1), 0), np.maximum(self.rows.max(axis=1), 0)


def searched_params(
    spec: PiecewiseSpec, values: Values, *, clips: Sequence[Bounds] = (), p: float = 2.0
) -> PiecewiseParams:
    """The breakpoints with the least sum of `|x - fake_quantize(x)|^p`, by ever finer grids.

    Both sides have their own breakpoint where the region has a zero point. The middle of each candidate range is
    always tried: there the codes contain those of the uniform quantizer of that range (with a zero point on both
    sides, up to its rounding). So where the range that is best for uniform quantization is among `clips`, the result
    is not worse than uniform quantization at its best. More than two regions are found one by one, from the centre
    outwards, and then each again between its neighbours.

    Args:
        spec: The quantizer; its granularity is what made the rows.
        values: What to represent.
        clips: Candidate ranges besides the full one, f32[G] each.
        p: Exponent, >= 1. 2 is the squared error of the paper.

    Returns:
        Numbers of shape [G].

    Raises:
        ValueError: A value is NaN or infinite.
    """
    if not np.isfinite(values.rows).all():
        raise ValueError("values must be finite")
    rows = spec.with_granularity(PerChannel(axis=0))
    ends = _one_by_one(rows, values, [values.range, *clips], p)
    for _ in range(_SWEEPS if spec.regions > 2 else 0):
        for number in range(spec.regions - 1):
            ends[number] = _between(rows, values, ends, number, p=p)
    return params_from_breakpoints(rows, *ends[-1], ends[:-1])


def _one_by_one(spec: PiecewiseSpec, values: Values, candidates: Sequence[Bounds], p: float) -> list[Bounds]:
    """The ends of each region: of the first as if there were one more, then of those of what exceeds it."""
    two = replace(spec, regions=2)
    results = [_Search(spec=two, values=values, outer=outer, p=p).best() for outer in candidates]
    best = np.argmin([error for _, error in results], axis=0)
    outer = _chosen(best, candidates)
    inner = _chosen(best, [ends for ends, _ in results])
    if spec.regions == 2:
        return [inner, outer]
    reached = _covered(spec.region, params_from_range(spec.region, *inner))
    rest = replace(values, rows=_exceeding(values.rows, reached))
    farther = _one_by_one(replace(spec, regions=spec.regions - 1), rest, [_beyond(outer, reached)], p)
    return [inner, *((low + reached[0], high + reached[1]) for low, high in farther[:-1]), outer]


def _between(spec: PiecewiseSpec, values: Values, ends: Sequence[Bounds], number: int, *, p: float) -> Bounds:
    """The ends of a region that are best between those of its neighbours, or its own where they are as good."""
    reached: Bounds = (np.zeros_like(ends[0][0]), np.zeros_like(ends[0][1]))
    for inner in ends[:number]:
        covered = _covered(spec.region, params_from_range(spec.region, *_beyond(inner, reached)))
        reached = reached[0] + covered[0], reached[1] + covered[1]
    outer = _beyond(ends[number + 1], reached)
    rows = np.clip(_exceeding(values.rows, reached), outer[0][:, None], outer[1][:, None])
    search = _Search(spec=replace(spec, regions=2), values=replace(values, rows=rows), outer=outer, p=p)
    found, error = search.best()
    better = error < search.error(_beyond(ends[number], reached))
    low, high = (
        np.where(better, new + start, old) for new, start, old in zip(found, reached, ends[number], strict=True)
    )
    return low, high


@dataclass(frozen=True, kw_only=True, eq=False)
class _Search:
    """The search for two regions that cover one range, all rows at a time.

    Attributes:
        spec: Per channel of axis 0.
        values: What is to be represented.
        outer: The range, f32[G] each.
        p: The exponent.
    """

    spec: PiecewiseSpec
    values: Values
    outer: Bounds
    p: float

    def best(self) -> tuple[Bounds, Array]:
        """The ends of the first region of each row with the least error, and the error, f64[G]."""
        # A level ends both sides; where it is beyond a side, that side has no tail.
        with np.errstate(divide="ignore"):  # a side of length 0 is an infinite power
            floor = np.log(self._sides / np.maximum(self._sides.max(axis=0), _TINY)) / math.log(RATIO)
        low, high = self.outer
        alike = self.spec.region.symmetric or not ((low < 0) & (high > 0)).any()
        powers, least = descend(self._error, _SHARED if alike else _FREE, floor)
        middle = floor + _MIDDLE
        error = self._error(middle)
        return self._inner(np.where(error < least, middle, powers)), np.minimum(error, least)

    @property
    def _sides(self) -> Array:
        """Lengths of the range below and above 0, f64[2, G]."""
        low, high = self.outer
        return np.maximum(np.stack([-low, high]).astype(np.float64), 0)

    def _inner(self, powers: Array) -> Bounds:
        reach = np.minimum(self._sides.max(axis=0) * RATIO**powers, self._sides).astype(np.float32)
        return -reach[0], reach[1]

    def _error(self, powers: Array) -> Array:
        return self.error(self._inner(powers))

    def error(self, inner: Bounds) -> Array:
        """The error of each row with these ends of the first region, f64[G]."""
        rows, params = self.values.rows, params_from_breakpoints(self.spec, *self.outer, [inner])
        difference = np.abs(rows - fake_quantize_piecewise(rows, self.spec, params))
        fine, coarse = (region.scale[:, None] for region in params.regions)
        low, high = (end[:, None] for end in _covered(self.spec.region, params.regions[0]))
        step = np.where((rows < low) | (rows > high), coarse, fine)
        # Rounding to a step finer than the values are known costs what it does on average, not what it does here.
        unknown = (step < self.values.resolution) & (difference <= step)
        average = (self.p + 1) ** (-1 / self.p) / 2
        difference = np.where(unknown, step * np.float32(average), difference)
        # Relative to all values: powers of tiny or huge numbers would leave f32.
        full = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny)
        error = (difference / full[:, None]) ** np.float32(self.p) * self.values.counts
        return np.asarray(error.sum(axis=1, dtype=np.float64))


def _chosen(best: Array, candidates: Sequence[Bounds]) -> Bounds:
    """Each row's bounds from the candidate of that number."""
    low, high = (np.stack(sides)[best, np.arange(best.size)] for sides in zip(*candidates, strict=True))
    return low, high


def _exceeding(rows: Array, ends: Bounds) -> Array:
    """What each value exceeds the ends of its row by."""
    return np.asarray(rows - np.clip(rows, ends[0][:, None], ends[1][:, None]))


def _beyond(bounds: Bounds, ends: Bounds) -> Bounds:
    """What is left of a range outside of what is covered."""
    return np.minimum(bounds[0] - ends[0], 0), np.maximum(bounds[1] - ends[1], 0)


def _covered(spec: QuantizerSpec, params: UniformParams) -> Bounds:
    """The values of the lowest and highest code, f32."""
    low, high = params.range(spec)
    return low.astype(np.float32), high.astype(np.float32)
