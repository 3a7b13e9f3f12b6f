"""GPTQ and its asymmetric form: round one input column after another, and let the columns to come make up for it.

With `H = X_q X_q^T + lambda I`, `C = (X - X_q) X_q^T`, `U` the upper factor of `H^-1 = U^T U` and
`P = (C U^T, strictly upper part) U`, column `j` is rounded from `w_j` to `v_j`, and the columns behind it change by
`-(w_j - v_j) / U_jj * U[j] + w_j * P[j]`. Columns are taken in the order of falling `H_jj`.

Sources: Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323); Li et al., GPTAQ, ICML 2025 (arXiv 2504.02692).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from fptq.numerics import QuantizerSpec, UniformParams
from fptq.reconstruct.covariance import Covariance
from fptq.reconstruct.products import Product
from fptq.reconstruct.ridge import damped, ridge

Asymmetry: TypeAlias = Literal["none", "gptaq", "ridge"]
"""How the difference between float and quantized inputs is made up for: not at all (GPTQ); column by column, as GPTAQ
does; or by the least-squares weights for the quantized inputs, which are then rounded as GPTQ rounds (the minimum of
the same error without GPTAQ's restriction to columns that come later)."""


@dataclass(frozen=True, kw_only=True)
class MatrixGrid:
    """What each weight of a matrix may become: `scale * step`, `low <= step <= high`.

    Attributes:
        scale: Of every weight, `[G, R, K]`.
        low: Lowest step, counted from the zero point.
        high: Highest step.
    """

    scale: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, product: Product, spec: QuantizerSpec, params: UniformParams) -> MatrixGrid:
        """The grid of a layer's weight, whatever shares a scale."""
        numbers = (torch.as_tensor(part).expand(product.shape) for part in params.expanded(spec, product.shape))
        scale, zero_point = (product.matrix(part.contiguous()) for part in numbers)
        return cls(scale=scale, low=(spec.qmin - zero_point).to(scale), high=(spec.qmax - zero_point).to(scale))

    def to(self, like: torch.Tensor) -> MatrixGrid:
        """The same grid in the dtype and on the device of a tensor."""
        return MatrixGrid(scale=self.scale.to(like), low=self.low.to(like), high=self.high.to(like))

    def nearest(self, weight: torch.Tensor) -> torch.Tensor:
        """Steps of the nearest points, ties to even."""
        return (weight / self.scale).round().clamp(self.low, self.high)

    def arranged(self, order: torch.Tensor) -> MatrixGrid:
        """The grid with columns in an order, as `[G, K, R]`."""
        scale, low, high = (_columns(part, order) for part in (self.scale, self.low, self.high))
        return MatrixGrid(scale=scale, low=low, high=high)


def steps(
    weight: torch.Tensor,
    grid: MatrixGrid,
    samples: Covariance,
    *,
    damping: float,
    asymmetry: Asymmetry,
    block: int = 32,
) -> torch.Tensor:
    """The steps that a matrix of weights is rounded to.

    Each output channel takes what the samples prefer of this and of the nearest steps: clipping, and columns that are
    all but free, can make the sequence worse than rounding to nearest.

    Args:
        weight: `[G, R, K]`.
        grid: What each weight may become.
        samples: Covariances of the layer's inputs.
        damping: `lambda`, relative to the mean of the diagonal of `X_q X_q^T`.
        asymmetry: How different inputs are made up for.
        block: Columns between two updates of all columns behind; changes time, not results. A small one keeps the
            many short steps inside it on one thread.
    """
    nearest = grid.nearest(weight)
    start = ridge(weight, samples, damping) if asymmetry == "ridge" else weight
    found = _sequence(start, grid, _System.of(samples, damping, asymmetry), block)
    better = samples.excess(weight, found * grid.scale) < samples.excess(weight, nearest * grid.scale)
    return torch.where(better[..., None], found, nearest)


@dataclass(frozen=True, kw_only=True)
class _System:
    """`U` and `P` with columns in the order in which they are rounded.

    Attributes:
        order: i64[G, K].
        upper: `U`, `[G, K, K]`.
        asymmetric: `P`; None for GPTQ.
    """

    order: torch.Tensor
    upper: torch.Tensor
    asymmetric: torch.Tensor | None

    @classmethod
    def of(cls, samples: Covariance, damping: float, asymmetry: Asymmetry) -> _System:
        hessian = samples.hessian
        order = hessian.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
        upper = _inverse_factor(_both(hessian, order), damping)
        if samples.cross is None or asymmetry != "gptaq":
            return cls(order=order, upper=upper, asymmetric=None)
        cross = _both(samples.cross, order)
        return cls(order=order, upper=upper, asymmetric=(cross @ upper.mT).triu_(1) @ upper)


def _sequence(weight: torch.Tensor, grid: MatrixGrid, system: _System, block: int) -> torch.Tensor:
    """Round columns in order. Inside, columns come first: each is then one piece of memory."""
    ordered = grid.arranged(system.order)
    left = _columns(weight, system.order).clone()
    rounded = torch.empty_like(left)
    for start in range(0, left.shape[1], block):
        here, behind = slice(start, start + block), slice(start + block, None)
        seen, errors = _round_block(left, rounded, ordered, system, here)
        left[:, behind] -= system.upper[:, here, behind].mT @ errors
        if system.asymmetric is not None:
            left[:, behind] += system.asymmetric[:, here, behind].mT @ seen
    back = system.order.argsort(dim=-1)
    return rounded.gather(1, back[..., None].expand_as(rounded)).mT.contiguous()


def _round_block(
    left: torch.Tensor, rounded: torch.Tensor, grid: MatrixGrid, system: _System, here: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a block of columns in place; returns what they were when they were rounded, and `(w - v) / U_jj`."""
    columns, scale, low, high = (part[:, here] for part in (left, grid.scale, grid.low, grid.high))
    upper = system.upper[:, here, here]
    asymmetric = None if system.asymmetric is None else system.asymmetric[:, here, here]
    errors = torch.empty_like(columns)
    for j in range(columns.shape[1]):
        now = columns[:, j]
        step = (now / scale[:, j]).round_().clamp_(low[:, j], high[:, j])
        rounded[:, here][:, j] = step
        errors[:, j] = (now - step * scale[:, j]) / upper[:, j, j, None]
        columns[:, j + 1 :] -= upper[:, j, j + 1 :, None] * errors[:, None, j]
        if asymmetric is not None:
            columns[:, j + 1 :] += asymmetric[:, j, j + 1 :, None] * now[:, None]
    return columns, errors  # a column is not touched any more once it is rounded


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper `U` with `(H + lambda I)^-1 = U^T U`.

    The Cholesky factor of `H` read backwards gives `H = R R^T` with an upper `R`, and `U = R^-1`: no inverse is made.
    """
    lower = damped(hessian.flip(-2, -1), damping)
    reversed_upper = lower.flip(-2, -1)
    identity = torch.eye(hessian.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    upper: torch.Tensor = torch.linalg.solve_triangular(reversed_upper, identity, upper=True)
    return upper.to(hessian.dtype)


def _columns(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """`[G, R, K]` as `[G, K, R]` with columns in an order of each group's own."""
    turned = matrix.mT
    return turned.gather(1, order[..., None].expand_as(turned))


def _both(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Rows and columns of `[G, K, K]` in an order of each group's own."""
    rows = matrix.gather(1, order[..., None].expand_as(matrix))
    return rows.gather(2, order[:, None].expand_as(rows))
