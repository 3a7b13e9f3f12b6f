"""Weights that make up for quantized inputs: ridge regression towards the float layer's output.

Minimising `|W x - V x_q|^2 + lambda |V - W|^2` gives
`V = W (X X_q^T + lambda I) (X_q X_q^T + lambda I)^-1 = W + W C (H + lambda I)^-1`.
Source: Zhong et al., ERQ, ICML 2024 (arXiv 2407.06794), equation of the activation error reduction.
"""

from __future__ import annotations

import math

import torch

from fptq.reconstruct.covariance import Covariance


def ridge(weight: torch.Tensor, samples: Covariance, strength: float) -> torch.Tensor:
    """The corrected weights, `[G, R, K]`.

    Args:
        weight: `W`, `[G, R, K]`.
        samples: Covariances of the layer's inputs.
        strength: `lambda`, relative to the mean of the diagonal of `H`; infinite: nothing changes.
    """
    if samples.cross is None or math.isinf(strength):
        return weight
    lower = damped(samples.hessian, strength)
    pulled = (weight @ samples.cross).to(lower.dtype)
    return weight + torch.cholesky_solve(pulled.mT.contiguous(), lower).mT.to(weight.dtype)


def damped(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The lower Cholesky factor of `H + lambda I`, in f64 where f32 does not reach.

    Args:
        hessian: `H`, `[G, K, K]`, symmetric and not negative.
        damping: `lambda`, relative to the mean of the diagonal of each group; grows tenfold until a factor exists.
    """
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    while True:
        for dtype in dict.fromkeys((hessian.dtype, torch.float64)):
            shifted = hessian.to(dtype, copy=True)
            shifted.diagonal(dim1=-2, dim2=-1).add_((damping * mean)[:, None])
            lower, failed = torch.linalg.cholesky_ex(shifted)
            if not failed.any():
                factor: torch.Tensor = lower
                return factor
        damping = max(10 * damping, 1e-6)
