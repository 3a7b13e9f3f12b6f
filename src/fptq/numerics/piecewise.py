"""Piecewise-linear quantization as a sum of uniform quantizers: fine steps near 0, coarse steps in the tails.

The first region covers `[-p1, p2]`, where most values are; what a value exceeds it by goes to the next region, and so
on: `x ~ q1(clip(x)) + q2(x - clip(x))`. Inside the breakpoints the second term is exactly 0, outside them the first is
exactly the breakpoint. With symmetric narrow regions this is the two-region quantizer of Fang et al., "Post-training
piecewise linear quantization for deep neural networks" (ECCV 2020), in its non-overlapping variant, and every term is
an ordinary uniform quantizer that an integer engine runs.

Both sides share the steps of a region. Their breakpoints differ where a region has a zero point: one-sided and
asymmetric tensors use all codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from fptq.numerics.params import UniformParams
from fptq.numerics.spec import Granularity, QuantizerSpec
from fptq.numerics.uniform import dequantize, fake_quantize, quantize
from fptq.types import Array


@dataclass(frozen=True, kw_only=True)
class PiecewiseSpec:
    """A piecewise-linear quantizer, without its numbers.

    The paper counts as "b bits" what one region has (b - 1 of magnitude and the sign, steps of `p / (2^(b-1) - 1)`):
    that is `region.bits`, and the region's number is stored besides.

    Attributes:
        region: The uniform quantizer of every region; `narrow` is the paper's. Its granularity is that of the
            breakpoints too. Per token of `f32[..., tokens, features]` is `PerBlock(axis=-1, size=features)`.
        regions: How many, 2 to 16.
    """

    region: QuantizerSpec = field(default_factory=lambda: QuantizerSpec(narrow=True))
    regions: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.regions <= 16:
            raise ValueError(f"regions = {self.regions}: a piecewise quantizer has 2 to 16")

    @property
    def bits(self) -> int:
        """Stored bits of a value: its code and the number of its region.

        >>> PiecewiseSpec(region=QuantizerSpec(bits=4)).bits
        5
        """
        return self.region.bits + (self.regions - 1).bit_length()

    def with_granularity(self, granularity: Granularity) -> Self:
        """The same quantizer with another granularity."""
        return replace(self, region=self.region.with_granularity(granularity))

    def __str__(self) -> str:
        return f"{self.region} x {self.regions} regions"


@dataclass(frozen=True, kw_only=True, eq=False)
class PiecewiseParams:
    """The numbers of a piecewise-linear quantizer.

    Attributes:
        regions: From the centre outwards, all of one shape. A region quantizes what the ones before it leave; its
            lowest and highest code are its breakpoints, so that no value lies between two regions.
    """

    regions: tuple[UniformParams, ...]

    def __post_init__(self) -> None:
        if len({region.scale.shape for region in self.regions}) != 1:
            raise ValueError(f"regions differ in shape: {[region.scale.shape for region in self.regions]}")

    def reshaped(self, shape: tuple[int, ...]) -> Self:
        """The same numbers in another shape."""
        return type(self)(
            regions=tuple(
                UniformParams(scale=r.scale.reshape(shape), zero_point=r.zero_point.reshape(shape))
                for r in self.regions
            )
        )

    def range(self, spec: PiecewiseSpec) -> tuple[Array, Array]:
        """The lowest and highest real value that codes stand for, f32 of the shape of the scales."""
        terms = branches(spec, self)
        low, high = (np.asarray(sum(ends)) for ends in ([t.low for t in terms], [t.high for t in terms]))
        return low, high


@dataclass(frozen=True, kw_only=True, eq=False)
class PiecewiseCodes:
    """A quantized tensor.

    Values on a breakpoint belong to the region within it, so every value has one pair of numbers.

    Attributes:
        region: u8, counted from the centre.
        code: i32 of the same shape, in the range of the region's quantizer.
    """

    region: Array
    code: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """One term of the sum, as an engine runs it: clip, quantize, multiply by the weight; the rest goes on.

    Attributes:
        spec: The uniform quantizer.
        params: Its numbers.
        low: What the branch clips to, f32 of the shape of its scale: the value of its lowest code, <= 0. A quantizer
            that is not narrow saturates there by itself.
        high: The value of its highest code, >= 0.
    """

    spec: QuantizerSpec
    params: UniformParams
    low: Array
    high: Array


def branches(spec: PiecewiseSpec, params: PiecewiseParams) -> tuple[Branch, ...]:
    """The uniform quantizers whose sum the piecewise-linear one is, from the centre outwards.

    Each takes what the clips of the ones before it leave: `r1 = x`, `r2 = r1 - clip(r1, low1, high1)`, and so on.

    Raises:
        ValueError: The numbers are those of another number of regions.
    """
    _check(spec, params)
    found = []
    for region in params.regions:
        low, high = (end.astype(np.float32) for end in region.range(spec.region))
        found.append(Branch(spec=spec.region, params=region, low=low, high=high))
    return tuple(found)


def branch_inputs(x: Array, spec: PiecewiseSpec, params: PiecewiseParams) -> tuple[Array, ...]:
    """What each branch quantizes, f32 of the shape of `x`: clipped parts, and last what exceeds them all.

    >>> from fptq.numerics import params_from_range
    >>> spec = PiecewiseSpec(region=QuantizerSpec(bits=2, narrow=True))
    >>> params = PiecewiseParams(regions=tuple(params_from_range(spec.region, -end, end) for end in (1, 4)))
    >>> [part.tolist() for part in branch_inputs(np.float32([0.5, -3, 2]), spec, params)]
    [[0.5, -1.0, 1.0], [0.0, -2.0, 1.0]]

    Args:
        x: f32 of any shape.
        spec: The quantizer.
        params: Its numbers.

    Raises:
        ValueError: The numbers are those of another number of regions.
    """
    _check(spec, params)
    return tuple(_parts(x, spec, params))


def branch_codes(x: Array, spec: PiecewiseSpec, params: PiecewiseParams) -> tuple[Array, ...]:
    """The integers that enter each branch's product, i32 of the shape of `x`; arguments as in `branch_inputs`."""
    parts = branch_inputs(x, spec, params)
    return tuple(quantize(part, spec.region, region) for part, region in zip(parts, params.regions, strict=True))


def fake_quantize_piecewise(x: Array, spec: PiecewiseSpec, params: PiecewiseParams) -> Array:
    """What an integer engine sees of `x`, f32; arguments as in `branch_inputs`."""
    total = np.zeros_like(x, dtype=np.float32)
    for part, region in zip(branch_inputs(x, spec, params), params.regions, strict=True):
        total += fake_quantize(part, spec.region, region)
    return total


def quantize_piecewise(x: Array, spec: PiecewiseSpec, params: PiecewiseParams) -> PiecewiseCodes:
    """Region and code of each value; arguments as in `branch_inputs`.

    Raises:
        ValueError: A value is NaN, or the numbers are those of another number of regions.
    """
    if np.isnan(x).any():
        raise ValueError("NaN has no code")
    codes = branch_codes(x, spec, params)
    region, code = np.zeros(x.shape, dtype=np.uint8), codes[0]
    total = dequantize(code, spec.region, params.regions[0])
    for number, (outer, numbers) in enumerate(zip(codes[1:], params.regions[1:], strict=True), start=1):
        farther = total + dequantize(outer, spec.region, numbers)
        beyond = farther != total  # a region so narrow that its steps vanish in f32 holds no value
        region, code, total = np.where(beyond, np.uint8(number), region), np.where(beyond, outer, code), farther
    return PiecewiseCodes(region=region, code=code)


def dequantize_piecewise(codes: PiecewiseCodes, spec: PiecewiseSpec, params: PiecewiseParams) -> Array:
    """The real values of codes, f32: exactly what `fake_quantize_piecewise` makes of the values they came from."""
    _check(spec, params)
    total = np.zeros(codes.code.shape, dtype=np.float32)
    zero_points = [region.expanded(spec.region, codes.code.shape)[1] for region in params.regions]
    own = np.choose(codes.region, np.broadcast_arrays(*zero_points, codes.code)[:-1])
    # Only values beyond an inner region have a code further out, and its sign tells beyond which end.
    end = np.where(codes.code > own, spec.region.qmax, spec.region.qmin)
    for number, (region, zero_point) in enumerate(zip(params.regions, zero_points, strict=True)):
        inner = np.where(codes.region > number, end, zero_point)
        total += dequantize(np.where(codes.region == number, codes.code, inner), spec.region, region)
    return total


def _parts(x: Array, spec: PiecewiseSpec, params: PiecewiseParams) -> Iterator[Array]:
    rest = np.asarray(x, dtype=np.float32)
    for region in params.regions[:-1]:
        scale, zero_point = region.expanded(spec.region, x.shape)
        low, high = (np.float32(end - zero_point) * scale for end in (spec.region.qmin, spec.region.qmax))
        part = np.clip(rest, low, high)
        yield part
        rest = rest - part
    yield rest


def _check(spec: PiecewiseSpec, params: PiecewiseParams) -> None:
    if len(params.regions) != spec.regions:
        raise ValueError(f"numbers of {len(params.regions)} regions do not fit a quantizer of {spec.regions}")
