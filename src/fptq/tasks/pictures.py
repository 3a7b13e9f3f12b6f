"""Slices of a volume and its masks, as plain arrays for a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fptq.types import Array

_PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One slice: rows run downwards, columns to the right (head up, the patient's left on the left).

    Attributes:
        plane: "axial", "coronal", "sagittal", or "image" for 2-D data.
        index: Which slice, as an index into the volume.
        image: `f32[H, W]`, scaled to 0..1 by its 1st and 99th percentiles.
        masks: Class of each pixel `u8[H, W]`, by network name, and "label" where there is one.
        aspect: Height of a pixel over its width.
    """

    plane: str
    index: int
    image: Array
    masks: Mapping[str, Array]
    aspect: float


def take_pictures(volume: Array, masks: Mapping[str, Array], *, spacing: tuple[float, ...] | None) -> list[Picture]:
    """The axial, coronal and sagittal slices through the middle of the first mask (of the volume if it is empty).

    Args:
        volume: `f32[*S]` of rank 2 or 3; 3-D in RAS+ orientation.
        masks: Classes `int[*S]` by name.
        spacing: Voxel size [mm]; None: cubes.
    """
    low, high = np.percentile(volume, (1, 99))
    scaled = np.clip((volume - low) / max(float(high - low), 1e-12), 0, 1).astype(np.float32)
    sizes = spacing or (1.0,) * volume.ndim
    if volume.ndim == 2:
        return [
            Picture(plane="image", index=0, image=scaled, masks={k: _bytes(m) for k, m in masks.items()}, aspect=1.0)
        ]
    middle = _middle(next(iter(masks.values()), None), volume.shape)
    pictures = []
    for axis in (2, 1, 0):
        across, up = (a for a in range(3) if a != axis)
        pictures.append(
            Picture(
                plane=_PLANES[axis],
                index=middle[axis],
                image=np.rot90(scaled.take(middle[axis], axis)),
                masks={k: np.rot90(_bytes(m.take(middle[axis], axis))) for k, m in masks.items()},
                aspect=sizes[up] / sizes[across],
            )
        )
    return pictures


def _middle(mask: Array | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    if mask is None or not mask.any():
        return tuple(n // 2 for n in shape)
    used = (np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis))) for axis in range(3))
    return tuple(int(u[0] + u[-1]) // 2 for u in used)


def _bytes(mask: Array) -> Array:
    return mask.astype(np.uint8)
