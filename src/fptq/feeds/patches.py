"""Calibration patches of images that are prepared: the same number of each, half of them on foreground."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fptq.errors import DataError
from fptq.types import Array

PATCHES = 32
"""Patches in all, where nobody says how many."""
_DRAWN = 256
"""Voxels that are drawn to find one of the brighter half."""

Case = TypeVar("Case")


def spread_patches(
    cases: Sequence[Case], prepare: Callable[[Case], Array], cutter: Cutter, *, count: int | None = None
) -> Iterator[Array]:
    """Patches `f32[1, C, *S]`: as many of each case, every other one on foreground; one image in memory.

    Args:
        cases: Where to cut; of more cases than patches, some spread over all.
        prepare: From a case to the image `f32[C, *S]` that the network's windows are cut from.
        cutter: How patches are cut.
        count: How many patches; None: 32.
    """
    total = count or PATCHES
    chosen = [cases[int(i)] for i in np.linspace(0, len(cases) - 1, min(len(cases), total)).astype(int)]
    for case, places in zip(chosen, np.array_split(np.arange(total), len(chosen)), strict=True):
        image = prepare(case)
        for place in places:
            yield (cutter.anywhere(image) if place % 2 else cutter.on_foreground(image))[None]


@dataclass(frozen=True, kw_only=True)
class Cutter:
    """Cuts patches out of an image `f32[C, *S]`, which may have one axis more than the patch: slices of a 2-D network.

    Calibration images have no labels, so the float network says where foreground is: it looks at a patch among the
    brighter half of the voxels, and the patch moves to a voxel of one of the classes that it sees there, each class as
    likely. Where it sees none, the patch stays.

    Attributes:
        size: Of a patch.
        segment: The float network's labels `[*S]` of a patch `[C, *S]`.
        generator: Draws the places.
    """

    size: tuple[int, ...]
    segment: Callable[[Array], Array]
    generator: np.random.Generator

    def anywhere(self, image: Array) -> Array:
        """A patch around any voxel."""
        return self._cut(image, self.generator.integers(0, image.shape[1:]))[0]

    def on_foreground(self, image: Array) -> Array:
        """A patch around a voxel that the float network calls foreground."""
        patch, start = self._cut(image, self._bright(image))
        labels = self.segment(patch)
        seen = np.unique(labels[labels > 0])
        if not seen.size:
            return patch
        voxels = np.argwhere(labels == self.generator.choice(seen))
        centre = np.array(start)
        centre[-len(self.size) :] += voxels[self.generator.integers(len(voxels))]
        return self._cut(image, centre)[0]

    def _bright(self, image: Array) -> Array:
        """A voxel that is as bright as the median of some."""
        drawn = self.generator.integers(0, image.shape[1:], (_DRAWN, image.ndim - 1))
        values = image[(slice(None), *drawn.T)].sum(0)
        bright: Array = drawn[np.flatnonzero(values >= np.median(values))[0]]
        return bright

    def _cut(self, image: Array, centre: Array) -> tuple[Array, tuple[int, ...]]:
        """The patch around a voxel, inside the image, and its first voxel."""
        sizes = (1,) * (image.ndim - 1 - len(self.size)) + self.size
        room = np.array(image.shape[1:]) - sizes
        start = np.clip(centre - np.array(sizes) // 2, 0, room)
        part = image[(slice(None), *(slice(a, a + size) for a, size in zip(start, sizes, strict=True)))]
        return np.ascontiguousarray(part.reshape(len(image), *self.size)), tuple(start.tolist())


def check_finite(image: Array, name: str) -> None:
    """Refuse NaN and infinite voxels: normalization spreads them over the whole image.

    Raises:
        DataError: There are some.
    """
    count = int(image.size - np.isfinite(image).sum())
    if count:
        raise DataError(
            f"case {name} has {count} NaN or infinite voxels",
            rule="images are finite; normalization spreads one such voxel over the whole image",
            remedy="Mend the file, for example set them to the background's value, or drop it",
        )
