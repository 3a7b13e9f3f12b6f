"""Overlap and surface distance of masks, of any spatial rank."""

from __future__ import annotations

import math

import numpy as np

from fptq.feeds.optional import optional
from fptq.types import Array

Spacing = tuple[float, ...]


def dice(first: Array, second: Array) -> float:
    """Dice overlap 2|A n B| / (|A| + |B|) of two masks `bool[*S]`, in [0, 1]; NaN when both are empty."""
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2 * int(np.count_nonzero(first & second)) / total if total else math.nan


def hd95(first: Array, second: Array, spacing: Spacing | None = None) -> float:
    """95th percentile Hausdorff distance of two masks `bool[*S]`.

    The larger of the two directed distances, each the 95th percentile over one mask's surface voxels of the
    distance to the other mask's surface (as in MONAI). A surface voxel is one that an erosion by the
    face-neighbourhood removes.

    Args:
        first: A mask.
        second: Another on the same grid.
        spacing: Voxel size along each axis [mm]; None: distances in voxels.

    Returns:
        The distance in the unit of the spacing; NaN when a mask is empty.

    Raises:
        MissingExtra: scipy is not installed.
    """
    if not first.any() or not second.any():
        return math.nan
    box = _bounding_box(first | second)
    ndimage = optional("scipy.ndimage", extra="medical", purpose="HD95")
    # The volume's border cuts a mask, it does not hide its surface: pad with background.
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (np.pad(m[box], 1) for m in (first, second))]
    sampling = spacing or (1.0,) * first.ndim
    directed = []
    for here, there in (surfaces, surfaces[::-1]):
        distance = ndimage.distance_transform_edt(~there, sampling=sampling)
        directed.append(float(np.percentile(distance[here], 95)))
    return max(directed)


def _bounding_box(mask: Array) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)
