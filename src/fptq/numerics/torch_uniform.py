"""The same quantizer in torch: equal codes, and gradients for learning.

Rounding passes gradients straight through (Bengio et al. 2013, arXiv 1308.3432); clipping stops them, so that the
gradient with respect to the scale is that of LSQ (Esser et al. 2020, arXiv 1902.08153, equation 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fptq.numerics.params import UniformParams
from fptq.numerics.spec import Granularity, PerBlock, PerChannel, PerTensor, QuantizerSpec


def fake_quantize_tensor(x: torch.Tensor, spec: QuantizerSpec, params: UniformParams) -> torch.Tensor:
    """What an integer engine sees of `x`, equal to `fake_quantize` in every element.

    Args:
        x: f32 of any shape, on any device.
        spec: The quantizer.
        params: Its numbers.
    """
    scale, zero_point = (torch.tensor(part, device=x.device) for part in params.expanded(spec, tuple(x.shape)))
    low, high = (spec.qmin - zero_point).to(x.dtype), (spec.qmax - zero_point).to(x.dtype)
    return clipped_steps(x / scale.to(x.dtype), low, high) * scale.to(x.dtype) + 0.0  # adding 0 turns -0.0 into 0.0


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
