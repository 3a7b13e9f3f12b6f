"""Squares of sums within tiles of the output: what acts together may cancel, what is far apart may not.

Products of a gradient and an error are summed within a tile before they are squared; see `fptq.analyze.sensitivity`.
"""

from __future__ import annotations

import math

import torch

TILES = 4
"""Tiles per axis, where the output has axes too: larger tiles cancel more, smaller ones are less noisy."""

_PART = 1 << 16
"""Elements that are multiplied and summed at once: they stay in the cache."""


def weighted_square(
    gradient: torch.Tensor, changed: torch.Tensor, exact: torch.Tensor, *, channels: int = 1, tiles: int = TILES
) -> float:
    """`tiled_square(gradient * (changed - exact))` without the products in memory.

    Args:
        gradient: f32[N, ...].
        changed: The same shape.
        exact: The same shape.
        channels: As in `tiled_square`.
        tiles: As in `tiled_square`.
    """
    others = [axis for axis in range(1, gradient.ndim) if axis != channels % gradient.ndim]
    if not others or gradient.numel() <= 4 * _PART:
        return tiled_square((changed - exact).mul_(gradient), channels=channels, tiles=tiles)
    along, size = others[0], gradient.shape[others[0]]
    rows = math.ceil(size / tiles)
    step, total = max(1, _PART * size // max(gradient.numel(), 1)), 0.0
    for start in range(0, size, rows):
        sums = torch.zeros((), device=gradient.device)
        for at in range(start, min(start + rows, size), step):
            part = (slice(None),) * along + (slice(at, min(at + step, start + rows)),)
            sums = sums + (changed[part] - exact[part]).mul_(gradient[part]).sum((channels, along))
        total += float(_by_tile(sums, tiles).double().square().sum())
    return total


def tiled_square(products: torch.Tensor, *, channels: int = 1, tiles: int = TILES) -> float:
    """Sum over tiles of the squared sum of the products within a tile.

    Tiles divide every axis but those of samples and channels into `tiles` parts; samples are apart.

    Args:
        products: f32[N, ...].
        channels: The axis whose elements are summed over in every tile.
        tiles: Parts of an axis; 1 sums over all of it.
    """
    if products.ndim < 2:
        return float(products.double().square().sum())
    if tiles == 1:
        return float(products.flatten(1).sum(1).double().square().sum())
    return float(_by_tile(products.sum(channels), tiles).double().square().sum())


def _by_tile(sums: torch.Tensor, tiles: int) -> torch.Tensor:
    """The sums of every tile: `f32[N, *S]` to `f32[N, tiles, ...]`."""
    if tiles == 1:
        return sums.flatten(1).sum(1) if sums.ndim > 1 else sums
    for axis in range(1, sums.ndim):
        size = math.ceil(sums.shape[axis] / tiles)
        sums = torch.stack([part.sum(axis) for part in torch.split(sums, size, axis)], axis)
    return sums
