"""Slices of volumes as PNG: the image with each mask drawn over it, and where two masks differ."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fptq.report.decisions import Panel, Picture
from fptq.types import Array

# Okabe and Ito's palette, distinguishable with every form of colour blindness; classes beyond repeat it.
_CLASSES = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178))
_ONLY_QUANTIZED, _ONLY_FLOAT, _OTHER_CLASS = (213, 94, 0), (0, 158, 115), (240, 228, 66)
_FILL, _EDGE = 70, 255
_PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """How a volume is cut.

    Attributes:
        case: Name of the case, for the title.
        spacing: Size of a voxel along each axis [mm]; slices are drawn with square pixels.
        window: Image values shown as black and white; None: the 1st and 99.5th percentile.
        why: Why this case is shown.
    """

    case: str
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    window: tuple[float, float] | None = None
    why: str = ""


def slices(image: Array, masks: Mapping[str, Array], how: Slicing) -> tuple[Picture, ...]:
    """One picture a plane, cut where the first two masks differ most (where they are largest, if nowhere).

    Args:
        image: The scan, `[X, Y, Z]` with axes that point right, anterior and superior, or `[X, Y]`.
        masks: Classes by title, of the image's shape, 0 is background. The first is the float network's, the second
            the quantized one's; a label may follow.
        how: Case, spacing and window.

    Raises:
        ValueError: There are fewer than two masks, or one is not of the image's shape.
    """
    _check(image, masks)
    first, second = (np.asarray(mask) for mask in list(masks.values())[:2])
    differs = first != second
    axes = range(image.ndim) if image.ndim == 3 else [None]
    note = "where the two masks differ most" if differs.any() else "the two masks are identical everywhere"
    note = f"{how.why}; {note}" if how.why else note
    low, high = how.window or np.nanpercentile(image, (1, 99.5))
    shade = np.clip((np.nan_to_num(image, nan=low) - low) / max(high - low, 1e-12), 0, 1)
    grey = (shade * 255).round().astype(np.uint8)
    pictures = []
    for axis in axes:
        where = _busiest(differs if differs.any() else first != 0, axis)
        cut = {title: _cut(np.asarray(mask), axis, where, how) for title, mask in masks.items()}
        title = how.case if axis is None else f"{how.case}, {_PLANES[axis]} slice {where}"
        pictures.append(Picture(title=title, note=note, panels=_panels(_cut(grey, axis, where, how), cut)))
    return tuple(pictures)


def png(pixels: Array) -> str:
    """An image as PNG in base64.

    Args:
        pixels: u8`[H, W]` grey, or u8`[H, W, 4]` red, green, blue, opacity.
    """
    height, width = pixels.shape[:2]
    colour = 0 if pixels.ndim == 2 else 6
    rows = np.ascontiguousarray(pixels, dtype=np.uint8).reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = (
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(raw, 9)),
        _chunk(b"IEND", b""),
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode("ascii")


def _check(image: Array, masks: Mapping[str, Array]) -> None:
    if len(masks) < 2 or image.ndim not in (2, 3):
        raise ValueError(f"{len(masks)} masks on an image of {image.ndim} axes: give two masks or more, 2 or 3 axes")
    wrong = {title: np.shape(mask) for title, mask in masks.items() if np.shape(mask) != image.shape}
    if wrong:
        raise ValueError(f"masks {wrong} are not of the image's shape {image.shape}")


def _panels(grey: Array, masks: Mapping[str, Array]) -> tuple[Panel, ...]:
    base = png(grey)
    (_, first), (_, second), *_ = masks.items()
    drawn = [Panel(title=title, image=base, overlay=png(_outlined(mask))) for title, mask in masks.items()]
    differing = int((first != second).sum())
    note = "identical in this slice" if not differing else f"{differing} of {first.size} pixels differ"
    overlay = png(_difference(first, second))
    return (
        Panel(title="image", image=base),
        *drawn,
        Panel(title="difference", image=png(grey // 2), overlay=overlay, note=note),
    )


def _busiest(where: Array, axis: int | None) -> int:
    if axis is None:
        return 0
    others = tuple(a for a in range(where.ndim) if a != axis)
    return int(where.sum(axis=others).argmax())


def _cut(volume: Array, axis: int | None, index: int, how: Slicing) -> Array:
    plane = volume if axis is None else np.take(volume, index, axis)
    spacing = [s for a, s in enumerate(how.spacing[: volume.ndim]) if a != axis]
    for direction, size in enumerate(spacing):
        drawn = max(1, round(plane.shape[direction] * size / min(spacing)))
        # nearest neighbour: a mask must keep its classes
        nearest = ((np.arange(drawn) + 0.5) * plane.shape[direction] / drawn).astype(int)
        plane = np.take(plane, nearest, direction)
    return np.rot90(plane)


def _outlined(mask: Array) -> Array:
    classes = np.round(mask).astype(int)
    padded = np.pad(classes, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = np.any([n != classes for n in neighbours], axis=0)
    colours = np.array(_CLASSES, dtype=np.uint8)[(classes - 1) % len(_CLASSES)]
    opacity = np.where(classes == 0, 0, np.where(edge, _EDGE, _FILL)).astype(np.uint8)
    return np.dstack([colours, opacity])


def _difference(first: Array, second: Array) -> Array:
    pixels = np.zeros((*first.shape, 4), dtype=np.uint8)
    pixels[(first != second)] = (*_OTHER_CLASS, _EDGE)
    pixels[(first == 0) & (second != 0)] = (*_ONLY_QUANTIZED, _EDGE)
    pixels[(first != 0) & (second == 0)] = (*_ONLY_FLOAT, _EDGE)
    return pixels


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
