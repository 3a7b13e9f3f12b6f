"""The same quantizer in torch: equal codes, and gradients for learning.

Rounding passes gradients straight through (Bengio et al. 2013, arXiv 1308.3432); clipping stops them, so that the
gradient with respect to the scale is that of LSQ (Esser et al. 2020, arXiv 1902.08153, equation 3).
"""

from __future__ import annotations

from typing import Any

import torch

from fptq.numerics.params import UniformParams
from fptq.numerics.spec import QuantizerSpec


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
    steps = torch.clamp(round_through(x / scale), low, high)
    return steps * scale + 0.0  # adding 0 turns -0.0 into 0.0


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
