"""Files of samples: which there are, and what is in them."""

from __future__ import annotations

import glob
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fptq.errors import DataError
from fptq.feeds.optional import optional
from fptq.types import Array

NIFTI = (".nii", ".nii.gz")
ARRAYS = (".npz", ".npy", *NIFTI)
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SUFFIXES = (*ARRAYS, *IMAGES)
FASTA = (".fasta", ".fa", ".faa", ".fasta.gz", ".fa.gz", ".faa.gz")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """An image volume in the orientation nearest to RAS+.

    Attributes:
        volume: `f32[X, Y, Z]`, or `f32[C, X, Y, Z]` for a file with several volumes.
        affine: Voxel index to millimetres, `f64[4, 4]`.
        name: The file's name.
    """

    volume: Array
    affine: Array
    name: str


def suffix(path: Path) -> str:
    """The known suffix of a file's name, or an empty text.

    >>> suffix(Path("a.b.nii.gz"))
    '.nii.gz'
    """
    return next((s for s in (*SUFFIXES, *FASTA) if path.name.lower().endswith(s)), "")


def stem(path: Path) -> str:
    """A file's name without its known suffix: what volumes and labels share."""
    return path.name[: len(path.name) - len(suffix(path))]


def find_files(source: str | Path, *, among: tuple[str, ...] = ARRAYS) -> tuple[Path, ...]:
    """The sample files of a folder, a glob pattern or one file, in natural order (2 before 10).

    Args:
        source: The folder, pattern or file.
        among: The suffixes that count.

    Raises:
        DataError: There are none.
    """
    path = Path(source)
    if path.is_dir():
        found = list(path.iterdir())
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(str(source), recursive=True)]  # noqa: PTH207 (absolute patterns too)
    files = [file for file in found if suffix(file) in among and not file.name.startswith(".") and file.is_file()]
    if not files:
        what = "does not exist" if not found and not path.is_dir() else f"holds none ({len(found)} other entries)"
        raise DataError(
            f"no samples: {source} {what}",
            rule=f"samples are {', '.join(among)} files",
            remedy="Give a folder, a glob pattern or package.module:function",
        )
    return tuple(sorted(files, key=natural))


def read_arrays(path: Path) -> Array | tuple[Array, ...] | Mapping[str, Array]:
    """What a `.npy` or `.npz` file holds: an array, arrays by name, or a tuple when they were saved without names.

    Raises:
        DataError: The file cannot be read or holds Python objects.
    """
    try:
        # Pickled objects can execute code: never loaded from data files.
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise unreadable(path, error) from error
    if arrays and list(arrays) == [f"arr_{i}" for i in range(len(arrays))]:
        return tuple(arrays.values())
    return arrays


def read_scan(path: Path) -> Scan:
    """A NIfTI volume, axes flipped and permuted to the nearest RAS+ orientation.

    Raises:
        DataError: The file cannot be read, or has NaN or Inf values.
        MissingExtra: nibabel is not installed.
    """
    nibabel = optional("nibabel", extra="medical", purpose="reading NIfTI files")
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        volume = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
        affine = np.asarray(image.affine, np.float64)
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        raise unreadable(path, error) from error
    if not np.isfinite(volume).all():
        raise DataError(f"{path} has NaN or Inf values", rule="volumes are finite", remedy="Mend or drop this file")
    if volume.ndim > 3:
        volume = np.moveaxis(volume.reshape(*volume.shape[:3], -1), -1, 0)
        volume = volume[0] if volume.shape[0] == 1 else volume
    return Scan(volume=np.ascontiguousarray(volume), affine=affine, name=path.name)


def read_labels(path: Path) -> tuple[Array, Array | None]:
    """A label volume `int[X, Y, Z]` and its affine (None for `.npy` and `.npz`).

    Raises:
        DataError: It cannot be read, or its values are not whole numbers.
    """
    affine: Array | None = None
    if suffix(path) in NIFTI:
        scan = read_scan(path)
        values, affine = scan.volume, scan.affine
    else:
        values = single_array(path)
    labels = np.rint(values).astype(np.int32)
    if not np.array_equal(labels, values):
        raise DataError(f"{path} is no label volume", rule="labels are whole numbers, one per class")
    return labels, affine


def label_image(labels: Array, *, scan: Path) -> Any:
    """A nibabel image of a label map on the grid of a NIfTI file: its affine, its order and direction of axes.

    Args:
        labels: `u8[X, Y, Z]` in the orientation nearest to RAS+, as `read_scan` gives the volume.
        scan: The file that they belong to.

    Raises:
        MissingExtra: nibabel is not installed.
    """
    nibabel = optional("nibabel", extra="medical", purpose="writing NIfTI files")
    image = nibabel.load(scan)
    own, canonical = nibabel.io_orientation(image.affine), nibabel.io_orientation(np.eye(4))
    back = nibabel.orientations.ornt_transform(canonical, own)
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_intent("none")
    # Display limits of the scan's intensities would hide the labels.
    header["cal_min"] = header["cal_max"] = 0
    return type(image)(nibabel.apply_orientation(np.asarray(labels, np.uint8), back), image.affine, header)


def single_array(path: Path) -> Array:
    """The one array of a `.npy` or `.npz` file.

    Raises:
        DataError: There are none or several.
    """
    loaded = read_arrays(path)
    named = {"": loaded} if isinstance(loaded, np.ndarray) else loaded
    arrays = list(named.values() if isinstance(named, Mapping) else named)
    if len(arrays) != 1:
        raise DataError(f"{path} holds {len(arrays)} arrays", rule="one volume per file is expected here")
    return arrays[0]


def natural(path: Path) -> list[tuple[int, str]]:
    """The key that sorts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path)) if part]


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that its reader refuses."""
    return DataError(f"{path} cannot be read: {type(error).__name__}: {error}", remedy="Mend or drop this file")
