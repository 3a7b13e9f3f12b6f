"""The piecewise-linear quantizer in torch: equal in every element, and gradients for learning."""

from __future__ import annotations

import torch

from fptq.numerics.piecewise import PiecewiseParams, PiecewiseSpec, branches
from fptq.numerics.torch_uniform import expanded, fake_quantize_tensor


def fake_quantize_piecewise_tensor(x: torch.Tensor, spec: PiecewiseSpec, params: PiecewiseParams) -> torch.Tensor:
    """What an integer engine sees of `x`, equal to `fake_quantize_piecewise` in every element.

    Args:
        x: f32 of any shape, on any device. Gradients pass straight through, to one branch each, and stop outside.
        spec: The quantizer.
        params: Its numbers.
    """
    total, rest = torch.zeros_like(x), x
    terms = branches(spec, params)
    for term in terms:
        low, high = (
            expanded(torch.tensor(end, dtype=x.dtype, device=x.device), spec.region.granularity, x.shape)
            for end in (term.low, term.high)
        )
        part = rest if term is terms[-1] else torch.clamp(rest, low, high)
        total = total + fake_quantize_tensor(part, term.spec, term.params)
        rest = rest - part
    return total
