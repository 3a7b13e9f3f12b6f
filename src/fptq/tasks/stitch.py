"""A network in overlapping windows over a volume of any size, in memory that does not grow with its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fptq.errors import ModelError
from fptq.feeds import scratch
from fptq.tasks.store import Store
from fptq.tasks.windows import Region, WindowGrid
from fptq.types import Array

_HALF = float(np.finfo(np.float16).max)
_CHUNK = 2**25
"""Values of completed planes that are handed on at once."""


@dataclass(frozen=True, kw_only=True)
class Stitcher:
    """Runs windows row by row and hands each plane on as soon as no later window reaches it.

    What is kept is one ring of planes as deep as a window, `[K, size[0], *S[1:]]`: in float32, or in float16 where
    that would be large (`fptq.feeds.scratch.LARGE`). Shares sum to one, so sums stay within the range of the outputs,
    and in float16 each addition rounds once: with `n` windows on a voxel and outputs of at most `M` the error is at
    most `n 2^-11 M`. Values beyond 65504 become 65504.

    Attributes:
        predict: From windows `f32[N, C, *size]` to outputs `f32[N, K, *size]`.
        grid: The windows.
        batch: Windows of one call.
        told: Called with the number of windows that are done.
    """

    predict: Callable[[Array], Array]
    grid: WindowGrid
    batch: int = 1
    told: Callable[[int], None] = lambda done: None

    def run(self, image: Array, store: Store, finish: Callable[[int, Array], None]) -> int:
        """Cover an image `[C, *S]`; goes on where the store has come to.

        Args:
            image: The image.
            store: Where sums are kept.
            finish: Told the first plane and the outputs `f32[K, n, *S[1:]]` of `n` completed ones, in order; those of
                a row may come a second time after an interruption.

        Returns:
            The number of output channels.

        Raises:
            ModelError: The outputs do not lie on the grid of their windows.
        """
        self._settle(store)
        for row in range(store.rows, self.grid.rows):
            end = (row + 1) * self.grid.per_row
            while store.done < end:
                self._advance(image, store, range(store.done, min(store.done + self.batch, end)))
            sums = store.found("sums")
            assert sums is not None
            for first, planes in self._completed(sums, row):
                finish(first, planes)
            store.rows += 1
            store.mark()
        sums = store.found("sums")
        assert sums is not None
        return len(sums)

    def _settle(self, store: Store) -> None:
        """Add the window that was staged when the run before this one ended."""
        sums, staged = store.found("sums"), store.found("staged")
        if store.staged > store.done and sums is not None and staged is not None:
            self._replace(sums, store.done, staged)
            store.done = store.staged
            store.mark()

    def _advance(self, image: Array, store: Store, indices: range) -> None:
        outputs = self.predict(np.stack([self.grid.cut(image, index) for index in indices]))
        if outputs.shape[2:] != self.grid.size:
            raise ModelError(
                f"outputs of shape {list(outputs.shape)} for windows of {list(self.grid.size)}",
                rule="a segmentation network returns [N, K, *S] on the grid of its input",
            )
        sums = self._sums(store, outputs.shape[1])
        for index, output in zip(indices, outputs, strict=True):
            row, place = divmod(index, self.grid.per_row)
            if place == 0:
                self._clear(sums, row)
            self._add(sums, index, output, store)
            self.told(store.done)

    def _sums(self, store: Store, channels: int) -> Array:
        shape = (channels, self.grid.size[0], *self.grid.padded[1:])
        if (sums := store.found("sums")) is None:
            sums = store.array("sums", shape, accumulator(shape))
        if sums.shape != shape:
            raise ModelError(f"{channels} output channels, {len(sums)} before", rule="all windows have the same")
        return sums

    def _clear(self, sums: Array, row: int) -> None:
        first, last = self.grid.entered(row)
        for _, planes in _rings(first, last, self.grid.size[0]):
            sums[:, planes] = 0

    def _add(self, sums: Array, index: int, output: Array, store: Store) -> None:
        new = output * self.grid.shares(index)
        for window, ring in self._places(index):
            new[window] += sums[ring]
        if sums.dtype == np.float16:
            np.clip(new, -_HALF, _HALF, out=new)
        if store.lasting:
            staged = store.array("staged", new.shape, sums.dtype)
            staged[:] = new
            new = staged
            store.staged = index + 1
            store.mark()
        self._replace(sums, index, new)
        store.staged = store.done = index + 1
        store.mark()

    def _replace(self, sums: Array, index: int, new: Array) -> None:
        for window, ring in self._places(index):
            sums[ring] = new[window]

    def _places(self, index: int) -> Iterator[tuple[Region, Region]]:
        """Regions of a window with those of the ring that they belong to: one, or two where the ring begins anew."""
        start, size = self.grid.start(index), self.grid.size
        rest = tuple(slice(s, s + n) for s, n in zip(start[1:], size[1:], strict=True))
        for first, planes in _rings(start[0], start[0] + size[0], size[0]):
            depth = planes.stop - planes.start
            yield (slice(None), slice(first, first + depth)), (slice(None), planes, *rest)

    def _completed(self, sums: Array, row: int) -> Iterator[tuple[int, Array]]:
        """The completed planes of a row without their padding, a few at a time."""
        before, shape = self.grid.before, self.grid.shape
        inside = tuple(slice(b, b + n) for b, n in zip(before[1:], shape[1:], strict=True))
        first, last = self.grid.finished(row)
        first, last = max(first, before[0]), min(last, before[0] + shape[0])
        step = max(1, _CHUNK // (len(sums) * int(np.prod(shape[1:]))))
        for at in range(first, last, step):
            for offset, planes in _rings(at, min(at + step, last), self.grid.size[0]):
                yield at + offset - before[0], sums[(slice(None), planes, *inside)].astype(np.float32)


def accumulator(shape: tuple[int, ...]) -> type[np.floating]:
    """The dtype that outputs are summed and kept in: float32, or float16 where that would be large."""
    return np.float32 if 4 * int(np.prod(shape, dtype=np.int64)) <= scratch.LARGE else np.float16


def _rings(first: int, last: int, depth: int) -> Iterator[tuple[int, slice]]:
    """Planes of a volume as planes of a ring, with the offset of each part from the first plane."""
    offset = 0
    while first < last:
        place = first % depth
        count = min(last - first, depth - place)
        yield offset, slice(place, place + count)
        first, offset = first + count, offset + count
