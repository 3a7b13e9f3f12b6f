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
from fptq.feeds.dicom import read_series
from fptq.feeds.optional import optional
from fptq.feeds.scratch import scratch
from fptq.types import Array

NIFTI = (".nii", ".nii.gz")
ARRAYS = (".npz", ".npy", *NIFTI)
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SUFFIXES = (*ARRAYS, *IMAGES)
_PART = 2**23
"""Voxels that are read at once."""
FASTA = (".fasta", ".fa", ".faa", ".fasta.gz", ".fa.gz", ".faa.gz")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """An image volume in the orientation nearest to RAS+, from a NIfTI file or a DICOM series.

    Attributes:
        volume: `f32[X, Y, Z]`, or `f32[C, X, Y, Z]` for a file with several volumes.
        affine: Voxel index to millimetres, `f64[4, 4]`.
        name: The name of the file or folder.
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


def is_scan(path: Path) -> bool:
    """Whether a sample is a volume in space: a NIfTI file, or the folder of a DICOM series."""
    return suffix(path) in NIFTI or path.is_dir()


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
    """The volume of a NIfTI file or of a folder with a DICOM series, in the orientation nearest to RAS+.

    A large one lies in a temporary file that is mapped, and is read into it a few planes at a time.

    Raises:
        DataError: The scan cannot be read, or has NaN or Inf values.
        MissingExtra: nibabel, or SimpleITK for DICOM, is not installed.
    """
    nibabel = _nibabel()
    try:
        # A compressed file that were opened anew for each part would be expanded from its beginning each time.
        image = read_series(path) if path.is_dir() else nibabel.load(path, keep_file_open=True)
        volume = _in_ras(image)
        affine = image.affine @ nibabel.orientations.inv_ornt_aff(_orientation(image), image.shape)
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.orientations.OrientationError,
        nibabel.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        raise unreadable(path, error) from error
    if volume is None:
        raise DataError(f"{path} has NaN or Inf values", rule="volumes are finite", remedy="Mend or drop this file")
    return Scan(volume=volume, affine=np.asarray(affine, np.float64), name=path.name)


def _in_ras(image: Any) -> Array | None:
    """The volume of a nibabel image as `Scan` has it; None where a value is not finite."""
    if len(image.shape) < 3:
        raise ValueError(f"it has {len(image.shape)} axes, a volume has three")
    own = _orientation(image)
    order = np.argsort(own[:, 0])
    spatial, others = image.shape[:3], image.shape[3:]
    volume = scratch((int(np.prod(others)), *(spatial[axis] for axis in order)))
    step = max(1, _PART // max(1, spatial[0] * spatial[1]))
    for channel, index in zip(volume, np.ndindex(*others), strict=True):
        target = _turned(channel, own)
        for first in range(0, spatial[2], step):
            part = np.asarray(image.dataobj[(slice(None), slice(None), slice(first, first + step), *index)])
            with np.errstate(over="ignore"):
                target[:, :, first : first + step] = part
            if not np.isfinite(target[:, :, first : first + step]).all():
                return None
    return volume[0] if len(volume) == 1 else volume


def _orientation(image: Any) -> Array:
    """Where each axis of a nibabel image leads in RAS+, and in which direction."""
    found: Array = _nibabel().io_orientation(image.affine)
    return found


def _turned(volume: Array, own: Array) -> Array:
    """A view of a volume in RAS+ with the axes of another orientation."""
    nibabel = _nibabel()
    canonical = nibabel.io_orientation(np.eye(4))
    view: Array = nibabel.apply_orientation(volume, nibabel.orientations.ornt_transform(canonical, own))
    return view


def _nibabel() -> Any:
    return optional("nibabel", extra="medical", purpose="reading and writing NIfTI files")


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


def label_image(labels: Array, *, scan: Path, made_by: str = "") -> Any:
    """A nibabel image of a label map on the grid of a scan: its affine, its order and direction of axes, its header.

    Args:
        labels: `u8[X, Y, Z]` in the orientation nearest to RAS+, as `read_scan` gives the volume.
        scan: The NIfTI file, or the folder of a DICOM series, that they belong to.
        made_by: The header's description, at most 79 characters.

    Raises:
        MissingExtra: nibabel is not installed.
    """
    image = read_series(scan) if scan.is_dir() else _nibabel().load(scan)
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_intent("none")
    # Display limits of the scan's intensities would hide the labels.
    header["cal_min"] = header["cal_max"] = 0
    if made_by:
        header["descrip"] = made_by.encode()
    return type(image)(_turned(np.asarray(labels, np.uint8), _orientation(image)), image.affine, header)


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
