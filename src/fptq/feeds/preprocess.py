"""What a raw scan becomes before the network, and the way back: stated once, used everywhere.

Calibration, evaluation, benchmarks and prediction apply the same `Preprocess`. A user's own is any
`package.module:function` with the signature `function(volume, affine) -> array`; where network space is not the
scan's own grid it also needs an attribute `invert(outputs, volume, affine) -> outputs on the scan's grid`, so that
masks can be compared with labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from fptq.errors import ConfigError, DataError, FptqError
from fptq.feeds.conform import as_array
from fptq.feeds.optional import optional
from fptq.feeds.scratch import scratch
from fptq.types import Array

Shape3 = tuple[int, int, int]
_AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
_SLAB = 2**23
"""Voxels that are normalised at once."""


@runtime_checkable
class Preprocess(Protocol):
    """From a scan to one network input."""

    def __call__(self, volume: Array, affine: Array) -> Array:
        """The network's input without (or with) its batch axis.

        Args:
            volume: `f32[X, Y, Z]` or `f32[C, X, Y, Z]`, in the orientation nearest to RAS+. Arrays that do not come
                from NIfTI files are passed as they are.
            affine: Voxel index to millimetres, `f64[4, 4]`; the identity where the file has none.
        """


@runtime_checkable
class InvertiblePreprocess(Preprocess, Protocol):
    """A preprocess that can bring the network's outputs back to the scan's own grid."""

    def invert(self, outputs: Array, volume: Array, affine: Array) -> Array:
        """The network's outputs `f32[C, *S]` on the grid of the volume they came from, `f32[C, X, Y, Z]`."""


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """A preprocess made of settings: the `[preprocess]` table of a recipe.

    Intensities first (`window` or `percentiles`, then `zscore`), geometry second (`orientation`, `spacing`, `size`,
    `multiple_of`), in one linear interpolation.

    Attributes:
        orientation: Axis codes of the network's grid, such as "RAS" or "LPS".
        spacing: Voxel size of the network's grid [mm]; None keeps the scan's.
        window: Raw intensities mapped to 0 and 1; values outside are clipped.
        percentiles: The same, with the intensities given as percentiles of the volume (0 to 100).
        zscore: Zero mean and unit standard deviation over the "volume" or its "nonzero" voxels.
        size: Crop or pad around the centre to exactly this many voxels.
        multiple_of: Pad each axis up to a multiple of this, where `size` is not given.
        pad_value: What padding is filled with, after normalisation.
    """

    orientation: str = "RAS"
    spacing: tuple[float, float, float] | None = None
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    zscore: Literal["none", "volume", "nonzero"] = "none"
    size: Shape3 | None = None
    multiple_of: int = 1
    pad_value: float = 0.0

    def __post_init__(self) -> None:
        if sorted(_AXES.get(letter, (-1, 0))[0] for letter in self.orientation) != [0, 1, 2]:
            raise ConfigError(f"orientation {self.orientation!r}", rule="three letters, one each of R/L, A/P and S/I")
        if self.window is not None and self.percentiles is not None:
            raise ConfigError("window and percentiles are both given", rule="one says which intensities become 0 and 1")
        for name, bounds in (("window", self.window), ("percentiles", self.percentiles)):
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ConfigError(f"{name} {bounds}", rule="the lower bound comes first")
        if self.percentiles is not None and not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ConfigError(f"percentiles {self.percentiles}", rule="percentiles lie between 0 and 100")
        if self.zscore not in ("none", "volume", "nonzero"):
            raise ConfigError(f"zscore {self.zscore!r}", rule="it is none, volume or nonzero")
        if min(self.spacing or (1,)) <= 0 or min(self.size or (1,)) < 1 or self.multiple_of < 1:
            raise ConfigError("spacing, size or multiple_of is not positive", rule="they are counts and lengths")

    def __call__(self, volume: Array, affine: Array) -> Array:
        """The network's input `f32[C, *S]` of a scan.

        Raises:
            DataError: The volume has not three axes (four with channels).
        """
        channels = _channels_first(volume)
        matrix, shape = self._grid(channels.shape[1:], affine)
        prepared = scratch((len(channels), *shape))
        for channel, out in zip(channels, prepared, strict=True):
            if _is_identity(matrix, channel.shape, shape):
                self._normalize(channel, out)
            else:
                normalized = scratch(channel.shape)
                self._normalize(channel, normalized)
                out[:] = _resampled(normalized, matrix, shape, self.pad_value)
        return prepared

    def invert(self, outputs: Array, volume: Array, affine: Array) -> Array:
        """The network's outputs `f32[C, *S]` on the scan's own grid; what was cropped away is background."""
        return np.stack(list(self.inverted(outputs, volume, affine)))

    def inverted(self, outputs: Array, volume: Array, affine: Array) -> Iterator[Array]:
        """The channels of `invert`, one after the other: all of a large scan's may not fit into memory."""
        target = _channels_first(volume).shape[1:]
        matrix, _ = self._grid(target, affine)
        back = np.linalg.inv(matrix)
        # Class 0 wins outside; a single channel stays at or below both sigmoid(0) = 0.5 and probability 0.
        low = min(float(outputs.min()), 0.0)
        fills = [low] if len(outputs) == 1 else [float(outputs.max()), *[low] * (len(outputs) - 1)]
        return (_resampled(c, back, target, fill) for c, fill in zip(outputs, fills, strict=True))

    def keeps_voxels(self, volume: Array, affine: Array) -> bool:
        """Whether each voxel of the network's grid is one of the scan's, so that labels come back as outputs do."""
        matrix, _ = self._grid(_channels_first(volume).shape[1:], affine)
        return np.array_equal(matrix, np.rint(matrix))

    def _normalize(self, channel: Array, out: Array) -> None:
        """Write a channel's normalised intensities, a few planes at a time: its temporaries would be as large as it."""
        slabs = _slabs(channel.shape)
        low, width = self._bounds(channel)
        for slab in slabs:
            out[slab] = channel[slab] if width is None else np.clip((channel[slab] - low) / width, 0.0, 1.0)
        if self.zscore == "none":
            return
        nonzero = self.zscore == "nonzero"
        mean, deviation = _moments(out, slabs, nonzero=nonzero and any((out[slab] != 0).any() for slab in slabs))
        for slab in slabs:
            scored = (out[slab] - mean) / deviation
            out[slab] = np.where(out[slab] != 0, scored, 0.0) if nonzero else scored

    def _bounds(self, channel: Array) -> tuple[float, float | None]:
        """The intensity that becomes 0 and the distance to that which becomes 1; None: intensities stay."""
        bounds = self.window
        if self.percentiles is not None:
            low, high = np.percentile(channel, self.percentiles)
            bounds = (float(low), float(high))
        if bounds is None:
            return 0.0, None
        return bounds[0], bounds[1] - bounds[0] if bounds[1] > bounds[0] else 1.0

    def _grid(self, shape: tuple[int, ...], affine: Array) -> tuple[Array, tuple[int, ...]]:
        """Network voxel index to scan voxel index, `f64[4, 4]`, and the network grid's shape."""
        axes = [_AXES[letter][0] for letter in self.orientation]
        signs = np.array([_AXES[letter][1] for letter in self.orientation])
        sizes = np.array([shape[a] for a in axes])
        old = np.linalg.norm(affine[:3, :3], axis=0)[axes]
        ratio = np.ones(3) if self.spacing is None else np.asarray(self.spacing) / old
        resized = np.maximum(np.rint(sizes / ratio).astype(int), 1)
        final = np.asarray(self.size) if self.size else -(-resized // self.multiple_of) * self.multiple_of
        # Centres of the fields of view coincide; the crop or pad offset stays whole, so no voxel is blurred by it.
        start = (resized - final) // 2
        offset = (sizes - 1) / 2 - ratio * (resized - 1) / 2 + ratio * start
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for i, axis in enumerate(axes):
            matrix[axis, i] = signs[i] * ratio[i]
            matrix[axis, 3] = offset[i] if signs[i] > 0 else sizes[i] - 1 - offset[i]
        return matrix, tuple(int(n) for n in final)


def preprocessed(volume: Array, affine: Array, *, preprocess: Preprocess | None, name: str) -> Array:
    """A volume after the user's preprocess; unchanged without one.

    Raises:
        DataError: The preprocess raised, or returned no array.
    """
    if preprocess is None:
        return volume
    try:
        array = as_array(preprocess(volume, affine))
    except FptqError:
        raise
    except Exception as error:
        raise DataError(f"{name}: the preprocess raised {type(error).__name__}: {error}") from error
    if array is None:
        raise DataError(f"{name}: the preprocess returned no array", rule="it is function(volume, affine) -> array")
    return array


def _channels_first(volume: Array) -> Array:
    if volume.ndim not in (3, 4):
        raise DataError(
            f"a volume of shape {list(volume.shape)}",
            rule="the [preprocess] table is for volumes [X, Y, Z] or [C, X, Y, Z]",
            remedy="Use --preprocess package.module:function for other data",
        )
    return volume if volume.ndim == 4 else volume[None]


def _slabs(shape: tuple[int, ...]) -> list[slice]:
    step = max(1, _SLAB // max(1, int(np.prod(shape[1:]))))
    return [slice(first, first + step) for first in range(0, shape[0], step)]


def _moments(values: Array, slabs: Sequence[slice], *, nonzero: bool) -> tuple[float, float]:
    """Mean and standard deviation (1 where it is 0) of all values, or of those that are not 0."""

    def kept(slab: slice) -> Array:
        return values[slab][values[slab] != 0] if nonzero else values[slab]

    count = sum(kept(slab).size for slab in slabs)
    mean = sum(float(kept(slab).sum(dtype=np.float64)) for slab in slabs) / count
    variance = sum(float(np.square(kept(slab) - np.float64(mean)).sum()) for slab in slabs) / count
    return mean, math.sqrt(variance) or 1.0


def _is_identity(matrix: Array, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return np.array_equal(matrix, np.eye(4)) and old == new


def _resampled(channel: Array, matrix: Array, shape: tuple[int, ...], fill: float) -> Array:
    channel = np.asarray(channel, np.float32)
    if _is_identity(matrix, channel.shape, shape):
        return channel
    ndimage = optional("scipy.ndimage", extra="medical", purpose="resampling volumes")
    whole = np.array_equal(matrix, np.rint(matrix))
    out = ndimage.affine_transform(
        channel, matrix, output_shape=shape, order=0 if whole else 1, mode="constant", cval=fill
    )
    return np.asarray(out, np.float32)
