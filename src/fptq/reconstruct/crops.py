"""Random sub-volumes in the place of whole ones, where the network takes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fptq.cache import cache_key
from fptq.errors import FptqError
from fptq.execute import Executor
from fptq.types import Array, Feeds, FeedSource

CROP, STEP = 64, 16
"""Voxels along each axis of a crop, and what that is a multiple of: most networks halve a volume up to four times."""

_LEAST = 64  # crops in all, where there are fewer samples
_SPATIAL = slice(2, None)


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A few sub-volumes of every sample, the same in every walk: a `FeedSource`.

    All inputs of a sample are cut alike. Every other crop lies around a voxel where something is: one that is further
    from the median, which is the background's value where most is background, than the voxels are on average. The
    others lie anywhere.

    Attributes:
        source: Whole samples; all their arrays are volumes `[N, C, D, H, W]` of the same spatial size.
        side: Voxels along each spatial axis, or all where there are fewer.
        count: Crops of each sample.
        seed: Of the places.
    """

    source: FeedSource
    side: int
    count: int
    seed: int

    def __iter__(self) -> Iterator[Feeds]:
        for index, sample in enumerate(self.source):
            for place in self._places(sample, index):
                window = (slice(None), slice(None), *place)
                yield {name: np.ascontiguousarray(array[window]) for name, array in sample.items()}

    def __len__(self) -> int:
        return len(self.source) * self.count

    def _places(self, sample: Feeds, index: int) -> Iterator[tuple[slice, ...]]:
        generator = np.random.default_rng(int(cache_key(self.seed, "crops", index)[:12], 16))
        volume = next(iter(sample.values()))
        shape, occupied = np.array(volume.shape[_SPATIAL]), _occupied(volume)
        size = np.minimum(shape, self.side)
        for number in range(self.count):
            start = generator.integers(0, shape - size, endpoint=True)
            if number % 2 == 0 and len(occupied):
                centre = np.array(np.unravel_index(generator.choice(occupied), tuple(shape)))
                start = np.clip(centre - size // 2, 0, shape - size)
            yield tuple(slice(int(low), int(low + extent)) for low, extent in zip(start, size, strict=True))


@dataclass(frozen=True, kw_only=True)
class Views:
    """What is learned from.

    Attributes:
        source: Whole samples, or crops of them.
        large: Whether the samples are volumes larger than a crop.
        note: Why they stay whole although they are; None: they do not, or are not large.
    """

    source: FeedSource
    large: bool = False
    note: str | None = None


def views_of(executor: Executor, feeds: FeedSource, *, crop: int | None, seed: int) -> Views:
    """Crops of volumes where the network takes them, else the samples as they are.

    Whether it does is tried on the first sample: one crop and the whole are run in float.

    Args:
        executor: The whole float network.
        feeds: Samples.
        crop: Voxels along each spatial axis, rounded down to a multiple of `STEP`; None: nothing is cut.
        seed: Of the places.
    """
    sample = next(iter(feeds), None)
    if crop is None or sample is None:
        return Views(source=feeds)
    side = crop // STEP * STEP
    if not large([sample], side):
        return Views(source=feeds)
    runs = len(feeds) * next(len(array) for array in sample.values() if _is_volume(array))  # batches come apart
    crops = Crops(source=feeds, side=side, count=math.ceil(_LEAST / runs), seed=seed)
    reason = _refusal(executor, sample, crops)
    if reason is None:
        return Views(source=crops, large=True)
    note = f"learned from whole volumes, not from crops of {side} voxels along each axis: {reason}"
    return Views(source=feeds, large=True, note=note)


def large(feeds: FeedSource, side: int = CROP) -> bool:
    """Whether samples are volumes of more than so many voxels along an axis."""
    sample = next(iter(feeds), {})
    return any(_is_volume(array) and max(array.shape[_SPATIAL]) > side for array in sample.values())


def _refusal(executor: Executor, sample: Feeds, crops: Crops) -> str | None:
    """Why a network cannot learn from crops; None: it can."""
    if not all(map(_is_volume, sample.values())) or len({array.shape[_SPATIAL] for array in sample.values()}) > 1:
        return "its inputs are not all volumes of one size"
    cut = next(iter(crops))
    with torch.no_grad():
        try:
            found = executor.run(cut)
        except (FptqError, RuntimeError):
            return "the network takes one size only"
        whole = executor.run(sample)
    before, after = (next(iter(feeds.values())).shape[_SPATIAL] for feeds in (sample, cut))
    if not all(_shrinks(whole[name].shape, found[name].shape, (before, after)) for name in found):
        return "an output does not become smaller with the crop"
    return None


def _shrinks(whole: tuple[int, ...], found: tuple[int, ...], inputs: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    """Whether an output `[N, C, *S]`, or labels `[N, *S]`, has become smaller where its input has, and only there."""
    ahead = len(whole) - len(inputs[0])
    if ahead < 1 or len(found) != len(whole) or found[:ahead] != whole[:ahead]:
        return False
    pairs = zip(zip(*inputs, strict=True), zip(whole[ahead:], found[ahead:], strict=True), strict=True)
    return all((b > a) == (w > f) and w >= f for (b, a), (w, f) in pairs)


def _is_volume(array: Array) -> bool:
    return array.ndim == 5 and array.dtype.kind == "f"


def _occupied(volume: Array) -> Array:
    """i64[K]: flat spatial places of the voxels of `[N, C, *S]` where something is."""
    away = np.abs(volume - np.median(volume, axis=(2, 3, 4), keepdims=True)).sum((0, 1))
    return np.flatnonzero(away > away.mean())
