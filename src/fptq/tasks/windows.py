"""Where the windows of a volume lie, and how much each counts at every voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fptq.types import Array

Region = tuple[slice, ...]


@dataclass(frozen=True, kw_only=True)
class WindowGrid:
    """Overlapping windows over a volume, in rows along its first axis.

    Windows lie on a regular grid and their weights are a product over the axes, so the sum of all weights at a voxel
    is one too: windows are weighted with shares that sum to one, and no volume of counts is kept.

    Attributes:
        shape: Voxels of the volume along each axis; where it is smaller than a window it is padded.
        size: Voxels of a window.
        overlap: Share of a window that the next one covers again at least, in [0, 1).
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    overlap: float

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Padding in front of the volume along each axis."""
        return tuple(max(w - n, 0) // 2 for n, w in zip(self.shape, self.size, strict=True))

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """The volume's shape with its padding."""
        return tuple(max(n, w) for n, w in zip(self.shape, self.size, strict=True))

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Where windows begin along each axis of the padded volume: evenly spread, as in nnU-Net (Isensee, 2021)."""
        return tuple(_starts(n, w, self.overlap) for n, w in zip(self.padded, self.size, strict=True))

    @property
    def rows(self) -> int:
        """Number of rows: windows of one row begin at one place along the first axis."""
        return len(self.starts[0])

    @property
    def per_row(self) -> int:
        """Windows of a row."""
        return math.prod(len(starts) for starts in self.starts[1:])

    def __len__(self) -> int:
        return self.rows * self.per_row

    @property
    def cover(self) -> int:
        """Most windows that one voxel lies in."""
        return math.prod(int(_counted(n, w, s).max()) for n, w, s in self._axes)

    def start(self, index: int) -> tuple[int, ...]:
        """Where a window begins in the padded volume."""
        places = np.unravel_index(index, tuple(len(starts) for starts in self.starts))
        return tuple(starts[place] for starts, place in zip(self.starts, places, strict=True))

    def shares(self, index: int) -> Array:
        """What a window counts at each of its voxels, `f32[*size]`; over all windows of a voxel the sum is 1."""
        shares = np.ones((), np.float64)
        for axis, (start, size) in enumerate(zip(self.start(index), self.size, strict=True)):
            share = gaussian(size) / self._sums[axis][start : start + size]
            shares = shares[..., None] * share
        return shares.astype(np.float32)

    def cut(self, image: Array, index: int) -> Array:
        """A window of an image `[C, *S]`, with zeros where it reaches beyond."""
        inside, pads = [], [(0, 0)]
        for start, size, before, n in zip(self.start(index), self.size, self.before, self.shape, strict=True):
            first, last = start - before, start - before + size
            inside.append(slice(max(first, 0), min(last, n)))
            pads.append((max(-first, 0), max(last - n, 0)))
        return np.pad(image[(slice(None), *inside)], pads)

    def finished(self, row: int) -> tuple[int, int]:
        """The planes of the padded volume that are complete when a row is: no later window reaches them."""
        starts = (*self.starts[0], self.padded[0])
        return starts[row], starts[row + 1]

    def entered(self, row: int) -> tuple[int, int]:
        """The planes that a row is the first to reach."""
        starts, size = self.starts[0], self.size[0]
        return (starts[row - 1] + size if row else 0), starts[row] + size

    @property
    def _axes(self) -> Sequence[tuple[int, int, tuple[int, ...]]]:
        return list(zip(self.padded, self.size, self.starts, strict=True))

    @cached_property
    def _sums(self) -> tuple[Array, ...]:
        """Along each axis the weights of all windows, summed."""
        return tuple(_counted(n, w, s, gaussian(w)) for n, w, s in self._axes)


def gaussian(size: int) -> Array:
    """The weights of a window along an axis, `f64[size]`: a Gaussian of an eighth of its size (nnU-Net, MONAI)."""
    distance = np.arange(size) - (size - 1) / 2
    weights: Array = np.exp(-0.5 * np.square(distance / (0.125 * size)))
    return weights


def _starts(length: int, size: int, overlap: float) -> tuple[int, ...]:
    free = length - size
    steps = math.ceil(free / max(size * (1 - overlap), 1))
    return tuple(int(np.rint(free * step / steps)) for step in range(steps + 1)) if steps else (0,)


def _counted(length: int, size: int, starts: tuple[int, ...], weights: Array | float = 1.0) -> Array:
    total = np.zeros(length)
    for start in starts:
        total[start : start + size] += weights
    return total
