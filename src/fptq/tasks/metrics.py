"""Overlap, surface distances and volumes of masks, of any spatial rank.

What is undefined is NaN: overlap of two empty masks, plain or of surfaces, and HD95 where either is empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fptq.feeds.optional import optional
from fptq.types import Array

Spacing = tuple[float, ...]


def dice(first: Array, second: Array) -> float:
    """Dice overlap 2|A n B| / (|A| + |B|) of two masks `bool[*S]`, in [0, 1]; NaN when both are empty."""
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2 * int(np.count_nonzero(first & second)) / total if total else math.nan


def volume_difference(first: Array, second: Array, spacing: Spacing | None = None) -> float:
    """How far the volumes of two masks `bool[*S]` are apart, `abs(V_A - V_B)`; defined for empty ones too.

    Args:
        first: A mask.
        second: Another.
        spacing: Voxel size along each axis [mm]; None: unknown.

    Returns:
        Millilitres, or voxels where the spacing is unknown.
    """
    voxels = abs(int(np.count_nonzero(first)) - int(np.count_nonzero(second)))
    return float(voxels) if spacing is None else voxels * math.prod(spacing) / 1000


@dataclass(frozen=True, kw_only=True)
class SurfaceDistances:
    """Distances from each surface voxel of one mask to the surface of the other, in the unit of the spacing.

    A surface voxel is one that an erosion by the face-neighbourhood removes. An empty mask has none, and is infinitely
    far from the other.

    Attributes:
        forward: From the first mask to the second, `f64[n]`.
        backward: From the second mask to the first, `f64[m]`.
    """

    forward: Array
    backward: Array

    @classmethod
    def between(cls, first: Array, second: Array, spacing: Spacing | None = None) -> SurfaceDistances:
        """The distances of two masks `bool[*S]`.

        Args:
            first: A mask.
            second: Another on the same grid.
            spacing: Voxel size along each axis [mm]; None: distances in voxels.

        Raises:
            MissingExtra: scipy is not installed.
        """
        if not first.any() and not second.any():
            return cls(forward=np.empty(0), backward=np.empty(0))
        ndimage = optional("scipy.ndimage", extra="medical", purpose="surface distances")
        box = _bounding_box(first | second)
        # The volume's border cuts a mask, it does not hide its surface: pad with background.
        here, there = (mask & ~ndimage.binary_erosion(mask) for mask in (np.pad(m[box], 1) for m in (first, second)))

        def distances(surface: Array, other: Array) -> Array:
            if not other.any():
                return np.full(np.count_nonzero(surface), np.inf)
            far: Array = ndimage.distance_transform_edt(~other, sampling=spacing or (1.0,) * other.ndim)
            return far[surface]

        return cls(forward=distances(here, there), backward=distances(there, here))

    @property
    def hd95(self) -> float:
        """95th percentile Hausdorff distance: the larger directed one (as in MONAI); NaN where a mask is empty."""
        if not self.forward.size or not self.backward.size:
            return math.nan
        return max(float(np.percentile(distances, 95)) for distances in (self.forward, self.backward))

    def surface_dice(self, tolerance: float) -> float:
        """Normalised surface Dice: the share of both surfaces within a tolerance of the other, in [0, 1].

        Counted in surface voxels, as MONAI does without subvoxels (Nikolov et al., 2018, weigh them by their area).

        Args:
            tolerance: In the unit of the spacing.

        Returns:
            0 where one mask is empty, NaN where both are.
        """
        total = self.forward.size + self.backward.size
        near = sum(int(np.count_nonzero(distances <= tolerance)) for distances in (self.forward, self.backward))
        return near / total if total else math.nan


def _bounding_box(mask: Array) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)
