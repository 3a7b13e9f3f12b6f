"""Covariances of a layer's inputs, added up row by row: all that the closed forms need to know of the samples.

With rows `x` of the float network and `x_q` of the quantized one, `H = sum x_q x_q^T` and
`C = sum (x - x_q) x_q^T`. The squared error of the layer with weights `V` in place of `W` is then, with `D = V - W`,
`tr(D H D^T) - 2 tr(D (W C)^T) + floor`, where `floor = sum |W (x - x_q)|^2` is there whatever the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from fptq.errors import DataError
from fptq.reconstruct.products import Product

CHUNK = 1 << 23
"""Elements of the rows that are gathered at a time: 32 MB in f32."""

Inputs = tuple[torch.Tensor, torch.Tensor]
"""A layer's input in the float network, and in the quantized one."""


@dataclass(frozen=True, kw_only=True)
class Covariance:
    """What the samples say about a layer.

    Attributes:
        hessian: `H`, `[G, K, K]`.
        cross: `C`, of the same shape; None where both networks feed the layer alike.
        energy: Sum of the squared float outputs, biases left out.
        floor: Sum of squared output errors that are there with unrounded weights.
        rows: How many output positions were added up.
        mean: Mean row of the float network, `[G, K]`.
        mean_q: Mean row of the quantized one.
    """

    hessian: torch.Tensor
    cross: torch.Tensor | None
    energy: float
    floor: float
    rows: int
    mean: torch.Tensor
    mean_q: torch.Tensor

    def centred(self, weight: torch.Tensor) -> Covariance:
        """The same around the means: what is left to weights where a bias sets the mean of each output channel.

        Args:
            weight: `W`, `[G, R, K]`.
        """
        gap = self.mean - self.mean_q
        cross = None if self.cross is None else self.cross - self.rows * gap[..., None] * self.mean_q[:, None]
        shift = self.rows * float((weight @ gap[..., None]).square().sum())
        return replace(
            self,
            hessian=self.hessian - self.rows * self.mean_q[..., None] * self.mean_q[:, None],
            cross=cross,
            floor=max(self.floor - shift, 0.0),
        )

    def offset(self, weight: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        """What a bias must add so that each output channel keeps its mean, `[G, R]`."""
        return (weight @ self.mean[..., None] - changed @ self.mean_q[..., None])[..., 0]

    def excess(self, weight: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        """Squared error of each output channel beyond its share of the floor; below 0 where the change makes up for it.

        Args:
            weight: `W`, `[G, R, K]`.
            changed: `V`, of the same shape.

        Returns:
            `[G, R]`.
        """
        difference = changed - weight
        error = ((difference @ self.hessian) * difference).sum(-1)
        if self.cross is None:
            return error
        return error - 2 * ((weight @ self.cross) * difference).sum(-1)

    def error(self, weight: torch.Tensor, changed: torch.Tensor) -> float:
        """Squared error of the layer's output relative to the squared output; 0 where there is no output."""
        total = float(self.excess(weight, changed).double().sum()) + self.floor
        return max(total, 0.0) / self.energy if self.energy > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which output positions are looked at.

    Attributes:
        rows: At most so many of each sample, drawn without repetition.
        seed: Of the generator.
        chunk: Elements of rows in memory at a time.
    """

    rows: int
    seed: int = 0
    chunk: int = CHUNK

    def chosen(self, count: int, sample: int) -> torch.Tensor:
        """Numbers of positions out of `count`, i64[n], in ascending order."""
        if count <= self.rows:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + sample)
        return torch.randperm(count, generator=generator)[: self.rows].sort().values


def covariance(product: Product, weight: torch.Tensor, inputs: Iterable[Inputs], draw: Draw) -> Covariance:
    """Add up the covariances of a layer's inputs.

    Args:
        product: The layer.
        weight: Its float weights, `[G, R, K]`.
        inputs: Its inputs, one pair for each sample; walked once.
        draw: Which positions are looked at.

    Raises:
        DataError: An input is not finite, or too large for its squares.
    """
    group, _, columns = weight.shape
    hessian = weight.new_zeros(group, columns, columns)
    cross, differs = torch.zeros_like(hessian), False
    sums = torch.zeros(2, group, columns, dtype=torch.float64, device=weight.device)
    energy, floor, rows = 0.0, 0.0, 0
    for x, x_q in _rows(product, inputs, draw):
        hessian.baddbmm_(x_q.mT, x_q)
        energy += float((x @ weight.mT).square().sum())
        rows += x.shape[1]
        sums += torch.stack((x, x_q)).sum(2)
        difference = x - x_q
        if difference.any():
            differs = True
            cross.baddbmm_(difference.mT, x_q)
            floor += float((difference @ weight.mT).square().sum())
    if not (hessian.isfinite().all() and math.isfinite(energy + floor)):
        raise DataError(f"the input {product.source.value!r} of {product.name!r} is not finite for these samples")
    mean, mean_q = (sums / max(rows, 1)).to(weight)
    return Covariance(
        hessian=hessian,
        cross=cross if differs else None,
        energy=energy,
        floor=floor,
        rows=rows,
        mean=mean,
        mean_q=mean_q,
    )


def _rows(product: Product, inputs: Iterable[Inputs], draw: Draw) -> Iterator[Inputs]:
    """Rows of both networks at the same positions, `[G, n, K]` each: samples cut and joined to pieces of one size.

    Pieces that are too thin would read and write all of `H` for a few rows.
    """
    waiting: list[Inputs] = []
    room = 0
    for sample, pair in enumerate(inputs):
        both = tuple(product.windows(x) for x in pair)
        chosen = draw.chosen(product.positions(both[0]), sample).to(both[0].device)
        size = max(draw.chunk // int(torch.Size(both[0].shape[-product.row_axes :]).numel()), 1)
        while len(chosen):
            room = room or size
            part, chosen = chosen[:room], chosen[room:]
            waiting.append((product.rows(both[0], part), product.rows(both[1], part)))
            room -= len(part)
            if not room:
                yield _joined(waiting)
                waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Inputs]) -> Inputs:
    exact, quantized = zip(*parts, strict=True)
    return torch.cat(exact, dim=1), torch.cat(quantized, dim=1)
