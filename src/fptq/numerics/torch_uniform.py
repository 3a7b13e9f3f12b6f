"""The same quantizer in torch: equal codes, and gradients for learning.

Rounding passes gradients straight through (Bengio et al. 2013, arXiv 1308.3432); clipping stops them, so that the
gradient with respect to the scale is that of LSQ (Esser et al. 2020, arXiv 1902.08153, equation 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fptq.numerics.params import UniformParams
from fptq.numerics.spec import QuantizerSpec

_PART = 1 << 16
"""Elements: with as many of the result 512 KB, half of a common second-level cache."""


def fake_quantize_tensor(x: torch.Tensor, spec: QuantizerSpec, params: UniformParams) -> torch.Tensor:
    """What an integer engine sees of `x`, equal to `fake_quantize` in every element.

    Args:
        x: f32 of any shape, on any device.
        spec: The quantizer.
        params: Its numbers.
    """
    scale, zero_point = (torch.tensor(part, device=x.device) for part in params.expanded(spec, tuple(x.shape)))
    low, high = (spec.qmin - zero_point).to(x.dtype), (spec.qmax - zero_point).to(x.dtype)
    scale = scale.to(x.dtype)
    if x.requires_grad and torch.is_grad_enabled():
        steps = torch.clamp(round_through(x / scale), low, high)
        return steps * scale + 0.0  # adding 0 turns -0.0 into 0.0
    result = torch.empty_like(x)
    for part, out in _parts(x, result) if scale.ndim == 0 else [(x, result)]:
        torch.div(part, scale, out=out)
        out.round_().clamp_(low, high).mul_(scale).add_(0.0)
    return result


def _parts(x: torch.Tensor, result: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """A tensor and its result in parts that stay in the cache from the first operation to the last."""
    if x.device.type != "cpu" or x.numel() <= _PART or not (x.is_contiguous() and result.is_contiguous()):
        return [(x, result)]
    return zip(torch.split(x.view(-1), _PART), torch.split(result.view(-1), _PART), strict=True)


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
