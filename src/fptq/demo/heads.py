"""From a head MRI to the brain network's input and back, and heads to calibrate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fptq.feeds import Scan, optional
from fptq.types import Array, Feeds

SIDE = 128
"""Voxels along each axis of the small network's input."""


def normalized(cube: Array) -> Array:
    """Intensities as deepbet was trained on: 0.5th to 99.5th percentile clipped, then mean 0.449 and deviation 0.226.

    Args:
        cube: `f32[X, Y, Z]`, any intensities.
    """
    return _scored(cube, *_bounds(cube))


def resampled(volume: Array, shape: tuple[int, ...]) -> Array:
    """Nearest neighbour with voxel centres aligned: index floor((i + 0.5) * n / m) along each of the last axes."""
    lead = volume.ndim - len(shape)
    for axis, (have, want) in enumerate(zip(volume.shape[lead:], shape, strict=True)):
        volume = volume.take((2 * np.arange(want) + 1) * have // (2 * want), axis=lead + axis)
    return volume


@dataclass(frozen=True, kw_only=True)
class WholeHead:
    """A `Preprocess`: the whole field of view as a cube, whatever its proportions.

    Attributes:
        side: Voxels along each axis of the cube.
    """

    side: int = SIDE

    def __call__(self, volume: Array, affine: Array) -> Array:
        """The network's input `f32[1, side, side, side]`; the voxel size plays no part."""
        return normalized(resampled(volume, (self.side,) * 3))[None]

    def invert(self, outputs: Array, volume: Array, affine: Array) -> Array:
        """The outputs `f32[K, side, side, side]` on the volume's grid."""
        return resampled(outputs, volume.shape)


whole_head = WholeHead()
"""The demo's preprocess by name, for the recipe in its folder: `fptq predict` applies it to other heads."""


@dataclass(frozen=True, kw_only=True)
class HeadCrop:
    """A `Preprocess`: the box around the brain as a cube, where a coarse mask says the brain is.

    Attributes:
        coarse: Mask `bool[128, 128, 128]` of the whole field of view, from the small network.
        side: Voxels along each axis of the cube.
        margin: Added on each side of the box, as a share of its size.
    """

    coarse: Array
    side: int = 256
    margin: float = 0.1

    def __call__(self, volume: Array, affine: Array) -> Array:
        """The network's input `f32[1, side, side, side]`, scaled by the intensities of the whole field of view."""
        bounds = _bounds(resampled(volume, self.coarse.shape))
        return _scored(resampled(volume[self.box(volume.shape)], (self.side,) * 3), *bounds)[None]

    def invert(self, outputs: Array, volume: Array, affine: Array) -> Array:
        """The outputs `f32[2, side, side, side]` on the volume's grid; background outside the box."""
        box = self.box(volume.shape)
        full = np.empty((len(outputs), *volume.shape), np.float32)
        full[0], full[1:] = outputs.max(), outputs.min()
        full[(slice(None), *box)] = resampled(outputs, tuple(s.stop - s.start for s in box))
        return full

    def box(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The box in a volume of this shape: the slices that are brain by more than 2 %, and the margin."""
        slices = []
        for axis, size in enumerate(shape):
            share = self.coarse.mean(tuple(a for a in range(3) if a != axis))
            used = np.flatnonzero(share > 0.02)
            low, high = (used[0], used[-1] + 1) if used.size else (0, len(share))
            scale = size / len(share)
            centre, width = round(scale * (low + high) / 2), round((1 + 2 * self.margin) * scale * (high - low))
            slices.append(slice(max(0, int(centre - width / 2)), min(size, int(centre + width / 2))))
        return tuple(slices)


def tidy(mask: Array) -> Array:
    """The largest connected component of a mask `u8[X, Y, Z]`, its holes filled."""
    ndimage = optional("scipy.ndimage", extra="medical", purpose="cleaning brain masks")
    labels, count = ndimage.label(mask)
    if count:
        mask = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return np.asarray(ndimage.binary_fill_holes(mask), np.uint8)


@dataclass(frozen=True, kw_only=True)
class AugmentedHeads:
    """Calibration samples: one head moved, with noise and a bias field; the first is the head as it is.

    Each sample depends on the seed and its number alone, so every walk gives the same.

    Attributes:
        scan: The head.
        count: Number of samples.
        seed: Of the random draws.
        side: Voxels along each axis.
        name: Of the network's input.
        angle: Largest rotation about each axis [degree].
        shift: Largest translation along each axis, as a share of the field of view.
        noise: Largest standard deviation of the noise, as a share of the 99.5th percentile.
        bias: Largest amplitude of the logarithm of the bias field.
        scaled: From intensities to what the network was trained on.
    """

    scan: Scan
    count: int = 16
    seed: int = 0
    side: int = SIDE
    name: str = "image"
    angle: float = 15.0
    shift: float = 0.05
    noise: float = 0.04
    bias: float = 0.3
    scaled: Callable[[Array], Array] = normalized

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Feeds]:
        return (self.sample(index) for index in range(self.count))

    def sample(self, index: int) -> Feeds:
        """Sample number `index`: `f32[1, 1, side, side, side]` by input name."""
        generator = np.random.default_rng((self.seed, index))
        if index == 0:
            cube = resampled(self.scan.volume, (self.side,) * 3)
        else:
            cube = self._moved(generator) * self._bias_field(generator)
            # The magnitude of complex Gaussian noise (Gudbjartsson and Patz 1995), as in MRI.
            sigma = generator.uniform(0, self.noise) * np.percentile(cube, 99.5)
            real, imaginary = generator.normal(0, sigma, size=(2, *cube.shape)).astype(np.float32)
            cube = np.hypot(cube + real, imaginary)
        return {self.name: self.scaled(cube.astype(np.float32))[None, None]}

    def _moved(self, generator: np.random.Generator) -> Array:
        """The head after a rigid motion, on the cube that spans the field of view."""
        ndimage = optional("scipy.ndimage", extra="medical", purpose="moving heads")
        shape = np.array(self.scan.volume.shape)
        spacing = np.linalg.norm(self.scan.affine[:3, :3], axis=0)
        # Rotate in millimetres: the cube stretches the axes by different factors.
        to_mm = np.diag(shape / self.side * spacing)
        angles = np.radians(generator.uniform(-self.angle, self.angle, size=3))
        matrix = np.diag(1 / spacing) @ _rotation(angles) @ to_mm
        centre = (shape - 1) / 2 + generator.uniform(-self.shift, self.shift, size=3) * shape
        offset = centre - matrix @ np.full(3, (self.side - 1) / 2)
        cube = (self.side,) * 3
        return np.asarray(ndimage.affine_transform(self.scan.volume, matrix, offset, output_shape=cube, order=1))

    def _bias_field(self, generator: np.random.Generator) -> Array:
        """A smooth field around 1: the exponential of a random polynomial of second order."""
        x = np.linspace(-1, 1, self.side, dtype=np.float32)
        axes = np.meshgrid(x, x, x, indexing="ij", sparse=True)
        linear, square = generator.uniform(-1, 1, size=(2, 3))
        field = sum(a * v + b * v * v for a, b, v in zip(linear, square, axes, strict=True))
        scale = generator.uniform(0, self.bias) / max(float(np.abs(field).max()), 1e-6)
        return np.exp(np.asarray(scale * field, np.float32))


def _bounds(cube: Array) -> tuple[float, float]:
    flat = cube.ravel()
    low, high = (max(int(share * flat.size) - 1, 0) for share in (0.005, 0.995))
    ordered = np.partition(flat, (low, high))
    return float(ordered[low]), float(ordered[high])


def _scored(cube: Array, low: float, high: float) -> Array:
    clipped = np.clip((cube.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    deviation = float(clipped.std(ddof=1, dtype=np.float64)) or 1.0
    return np.asarray(0.226 * (clipped - clipped.mean(dtype=np.float64)) / deviation + 0.449, np.float32)


def _rotation(angles: Array) -> Array:
    (a, b, c), (sin_a, sin_b, sin_c) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -sin_a], [0, sin_a, a]])
    about_y = np.array([[b, 0, sin_b], [0, 1, 0], [-sin_b, 0, b]])
    about_z = np.array([[c, -sin_c, 0], [sin_c, c, 0], [0, 0, 1]])
    return np.asarray(about_x @ about_y @ about_z)
