"""The same quantizer in torch: equal codes, and gradients for learning.

Rounding passes gradients straight through (Bengio et al. 2013, arXiv 1308.3432); clipping stops them, so that the
gradient with respect to the scale is that of LSQ (Esser et al. 2020, arXiv 1902.08153, equation 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from fptq.numerics.params import UniformParams
from fptq.numerics.spec import Granularity, PerBlock, PerChannel, PerTensor, QuantizerSpec
from fptq.types import Array

_PART = 1 << 16
"""Elements: with as many of the result 512 KB, half of a common second-level cache."""


def fake_quantize_tensor(x: torch.Tensor, spec: QuantizerSpec, params: UniformParams) -> torch.Tensor:
    """What an integer engine sees of `x`, equal to `fake_quantize` in every element.

    Args:
        x: f32 of any shape, on any device.
        spec: The quantizer.
        params: Its numbers.
    """
    return quantized_by(x, Numbers.of(x, spec, params))


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A quantizer's numbers for tensors of one shape, dtype and device.

    Attributes:
        scale: Broadcasts against them.
        low: The lowest code minus the zero point: a number, or a tensor that broadcasts.
        high: The highest.
    """

    scale: torch.Tensor
    low: Any
    high: Any

    @classmethod
    def of(cls, x: torch.Tensor, spec: QuantizerSpec, params: UniformParams) -> Self:
        """The numbers for tensors like `x`; with one scale for all, those of any shape."""
        if isinstance(spec.granularity, PerTensor):
            zero_point = int(params.zero_point)
            scale = torch.tensor(params.scale, dtype=x.dtype, device=x.device)
            return cls(scale=scale, low=spec.qmin - zero_point, high=spec.qmax - zero_point)
        scales, zero_points = params.expanded(spec, tuple(x.shape))
        scale = torch.tensor(scales, dtype=x.dtype, device=x.device)
        return cls(scale=scale, low=_bound(spec.qmin - zero_points, x), high=_bound(spec.qmax - zero_points, x))


def quantized_by(x: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """`fake_quantize_tensor` with numbers that are used again."""
    scale, low, high = numbers.scale, numbers.low, numbers.high
    if x.requires_grad and torch.is_grad_enabled():
        steps = torch.clamp(round_through(x / scale), low, high)
        return steps * scale + 0.0  # adding 0 turns -0.0 into 0.0
    result = torch.empty_like(x)
    for part, out in _parts(x, result) if scale.ndim == 0 else [(x, result)]:
        _to_steps(part, out, numbers).mul_(scale).add_(0.0)
    return result


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A quantized tensor as integers: a quarter, or half, of its floats' memory.

    Attributes:
        steps: Codes minus zero points, in the narrowest integer type that holds them.
        scale: Broadcasts against them.
    """

    steps: torch.Tensor
    scale: torch.Tensor

    def unpacked(self) -> torch.Tensor:
        """What `fake_quantize_tensor` returns."""
        return self.steps.to(self.scale.dtype).mul_(self.scale)


def pack(x: torch.Tensor, spec: QuantizerSpec, params: UniformParams) -> Packed:
    """Quantize a tensor that is looked at many times, such as a weight.

    Args:
        x: f32 of any shape, on any device; no gradient passes.
        spec: The quantizer.
        params: Its numbers.
    """
    x = x.detach()
    numbers = Numbers.of(x, spec, params)
    steps = _to_steps(x, torch.empty_like(x), numbers)
    return Packed(steps=steps.to(_fitting(spec, params)), scale=numbers.scale)


def packed_codes(codes: Array, spec: QuantizerSpec, params: UniformParams, *, like: torch.Tensor) -> Packed:
    """A tensor whose codes are known.

    Args:
        codes: Integers of the tensor's shape, in the range of `spec`.
        spec: The quantizer.
        params: Its numbers.
        like: A tensor of the dtype and device that the result has.
    """
    scales, zero_points = params.expanded(spec, codes.shape)
    steps = torch.tensor(codes.astype(np.int32) - zero_points.astype(np.int32), device=like.device)
    return Packed(
        steps=steps.to(_fitting(spec, params)), scale=torch.tensor(scales, dtype=like.dtype, device=like.device)
    )


def _fitting(spec: QuantizerSpec, params: UniformParams) -> torch.dtype:
    """The narrowest integer type that holds all codes minus their zero points."""
    lowest, highest = int((spec.qmin - params.zero_point).min()), int((spec.qmax - params.zero_point).max())
    kinds = (torch.int8, torch.int16)
    return next((t for t in kinds if torch.iinfo(t).min <= lowest and highest <= torch.iinfo(t).max), torch.int32)


def _to_steps(x: torch.Tensor, out: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    torch.div(x, numbers.scale, out=out)
    return out.round_().clamp_(numbers.low, numbers.high)


def _bound(steps: Array, like: torch.Tensor) -> Any:
    """The last step on one side: one number where all scales share it, which is clamped to faster than a tensor."""
    first = int(steps.flat[0])
    return first if (steps == first).all() else torch.tensor(steps, dtype=like.dtype, device=like.device)


def _parts(x: torch.Tensor, result: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """A tensor and its result in parts that stay in the cache from the first operation to the last."""
    if x.device.type != "cpu" or x.numel() <= _PART or not (x.is_contiguous() and result.is_contiguous()):
        return [(x, result)]
    return zip(torch.split(x.view(-1), _PART), torch.split(result.view(-1), _PART), strict=True)


def clipped_steps(ratio: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Codes counted from the zero point, of `x / scale`.

    Args:
        ratio: Any shape.
        low: Lowest step; broadcasts against `ratio`.
        high: Highest step.
    """
    return torch.clamp(round_through(ratio), low, high)


def expanded(values: torch.Tensor, granularity: Granularity, shape: Sequence[int]) -> torch.Tensor:
    """Numbers of a quantizer, such as its scales, that broadcast against a tensor; gradients pass.

    Args:
        values: Of `scale_shape(granularity, shape)`.
        granularity: What shares a number.
        shape: The tensor's.
    """
    match granularity:
        case PerTensor():
            return values
        case PerChannel(axis=axis):
            view = [1] * len(shape)
            view[axis] = shape[axis]
            return values.reshape(view)
        case PerBlock(axis=axis, size=size):
            return values.repeat_interleave(size, axis).narrow(axis, 0, shape[axis])


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Round half to even; the gradient passes unchanged."""
    if x.requires_grad:
        rounded: torch.Tensor = _RoundThrough.apply(x)  # type: ignore[no-untyped-call]
        return rounded
    return torch.round(x)


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]
