"""Which elements of a tensor share one scale."""

from __future__ import annotations

import numpy as np

from fptq.numerics.spec import Granularity, PerBlock, PerChannel, PerTensor
from fptq.types import Array


def scale_shape(granularity: Granularity, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of a tensor of `shape`.

    >>> scale_shape(PerBlock(axis=1, size=4), (3, 10))
    (3, 3)
    """
    match granularity:
        case PerTensor():
            return ()
        case PerChannel(axis=axis):
            return (shape[axis],)
        case PerBlock(axis=axis, size=size):
            blocked = list(shape)
            blocked[axis] = -(-shape[axis] // size)
            return tuple(blocked)


def grouped(x: Array, granularity: Granularity) -> Array:
    """The tensor as rows of elements that share one scale.

    Args:
        x: Any dtype and shape.
        granularity: What shares a scale. A last block shorter than its size is filled with 0, which every
            quantizer represents without error.

    Returns:
        `[G, n]` of the dtype of `x`, where `G` is the product of `scale_shape`, in its order.
    """
    match granularity:
        case PerTensor():
            return x.reshape(1, -1)
        case PerChannel(axis=axis):
            return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        case PerBlock(axis=axis, size=size):
            axis %= x.ndim
            padding = [(0, 0)] * x.ndim
            padding[axis] = (0, -x.shape[axis] % size)
            padded = np.pad(x, padding)
            split = padded.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
            return np.moveaxis(split, axis + 1, -1).reshape(-1, size)


def ranges(x: Array, granularity: Granularity) -> tuple[Array, Array]:
    """Lowest and highest value of each group that shares one scale.

    Args:
        x: f32, not empty, any shape.
        granularity: What shares a scale.

    Returns:
        `low` and `high`, both of `scale_shape(granularity, x.shape)`.
    """
    rows, shape = grouped(x, granularity), scale_shape(granularity, x.shape)
    return rows.min(axis=1).reshape(shape), rows.max(axis=1).reshape(shape)
