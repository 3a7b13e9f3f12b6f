"""Where every number of a moved tensor comes from, as few numbers as say it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from fptq.types import Array


def row_length(sources: Array) -> int:
    """The length of the longest rows that move as a whole: runs of neighbours that start at a multiple of it.

    >>> row_length(np.array([4, 5, 6, 7, 0, 1, 2, 3]))
    4

    Args:
        sources: i64[M], the flat index that each number comes from.
    """
    starts = np.flatnonzero(np.diff(sources, prepend=sources[0] - 2) != 1)
    return math.gcd(len(sources), *starts.tolist(), *sources[starts].tolist())


def as_sum(index: Array) -> tuple[Array, ...]:
    """Parts of an index, each along some of its axes, that add up to it when they are broadcast.

    >>> [part.tolist() for part in as_sum(np.array([[0, 1], [4, 5]]))]
    [[[0], [4]], [[0, 1]]]

    Args:
        index: i64[*grid]. Axes that decide together, such as window and place in a window that wraps around, stay
            together.
    """
    axes = [axis for axis in range(index.ndim) if index.shape[axis] > 1]
    groups = [frozenset({axis}) for axis in axes]
    for pair in itertools.combinations(axes, 2):
        if _together(index, pair):
            touching = [group for group in groups if group & set(pair)]
            groups = [group for group in groups if group not in touching] + [frozenset().union(*touching)]
    if len(groups) < 2:
        return (index,)
    first = index.flat[0]
    parts = [_along(index, group) - (first if at else 0) for at, group in enumerate(groups)]
    return tuple(parts) if np.array_equal(sum(parts), index) else (index,)


def grid_of(shape: Sequence[int], row: int) -> tuple[int, ...] | None:
    """A shape whose numbers are rows, from one whose last axes make up the rows; None where rows cross an axis.

    >>> grid_of((24, 24, 384), 48)
    (24, 24, 8)
    """
    grid, rest = list(shape), row
    while rest > 1 and grid:
        size = grid.pop()
        if size % rest == 0:
            grid.append(size // rest)
            return tuple(grid)
        if rest % size:
            return None
        rest //= size
    return tuple(grid) if rest == 1 else None


def _together(index: Array, pair: tuple[int, int]) -> bool:
    """Whether two axes decide together: what one adds depends on where the other stands."""
    plane = _along(index, frozenset(pair))
    first, second = (_along(plane, frozenset({axis})) for axis in pair)
    return not np.array_equal(plane, first + second - index.flat[0])


def _along(index: Array, axes: frozenset[int]) -> Array:
    """The index along some axes, at the start of all others."""
    return index[tuple(slice(None) if axis in axes else slice(1) for axis in range(index.ndim))]
