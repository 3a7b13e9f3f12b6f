"""DICOM series: a folder of slices as one volume in millimetres."""

from __future__ import annotations

import locale
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fptq.errors import DataError
from fptq.feeds.optional import optional
from fptq.types import Array

_SUFFIXES = (".dcm", ".dicom", ".ima")
_POSITION = "0020|0032"  # ImagePositionPatient
_TOLERANCE = 0.02
"""Share of the slice distance that a slice may lie off: scanners round positions."""


def find_series(source: str | Path) -> tuple[Path, ...]:
    """The folders of DICOM files that a folder is, or has directly below it, sorted by name as text."""
    path = Path(source)
    if not path.is_dir():
        return ()
    if _holds_dicom(path):
        return (path,)
    return tuple(sorted(folder for folder in path.iterdir() if folder.is_dir() and _holds_dicom(folder)))


def read_series(folder: Path) -> Any:
    """A nibabel image of the one series in a folder, rescaled to its unit (Hounsfield for CT), on its own grid.

    Raises:
        DataError: There are several series, slices are missing or not parallel, or the files cannot be read.
        MissingExtra: SimpleITK or nibabel is not installed.
    """
    sitk = optional("SimpleITK", extra="dicom", purpose="reading DICOM series")
    nibabel = optional("nibabel", extra="dicom", purpose="reading DICOM series")
    try:
        with _locale_kept():
            image = _read(sitk, folder)
    except RuntimeError as error:  # SimpleITK's only error: the last line says what, the others where in its source
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{folder} cannot be read as DICOM: {reason}", remedy="Mend or drop this series") from error
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() != 3:
        raise DataError(f"{folder} is no volume of one value a voxel", rule="a series is a stack of grey slices")
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (3, 3))
    affine[:3, :3], affine[:3, 3] = direction * image.GetSpacing(), image.GetOrigin()
    # DICOM's axes lead to the left and the back, NIfTI's to the right and the front.
    affine[:2] *= -1
    return nibabel.Nifti1Image(_stored(sitk.GetArrayFromImage(image).T), affine)


@contextmanager
def _locale_kept() -> Iterator[None]:
    """ITK's DICOM reader leaves the process in the locale "C" (SimpleITK 2.5.7): other files are read as ASCII then."""
    kept = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, kept)


def _read(sitk: Any, folder: Path) -> Any:
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise DataError(
            f"{folder} holds {len(series)} DICOM series",
            rule="a folder holds one series",
            remedy="Move each into a folder of its own" if series else "Mend or drop it",
        )
    names = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    if len(names) == 1:
        return sitk.ReadImage(names[0])
    _check_even(sitk, folder, names)
    reader.SetFileNames(names)
    return reader.Execute()


def _check_even(sitk: Any, folder: Path, names: tuple[str, ...]) -> None:
    """Raise where slices are not at one distance: the volume would be put together as if they were."""
    positions = np.array([_position(sitk, name) for name in names])
    steps = np.diff(positions, axis=0)
    step = np.median(steps, axis=0)
    off = np.linalg.norm(steps - step, axis=1) / max(float(np.linalg.norm(step)), 1e-9)
    if (off > _TOLERANCE).any():
        worst = int(off.argmax())
        raise DataError(
            f"{folder}: the slices {Path(names[worst]).name} and {Path(names[worst + 1]).name} are "
            f"{np.linalg.norm(steps[worst]):.2f} mm apart, the others {np.linalg.norm(step):.2f} mm",
            rule="the slices of a series are at one distance",
            remedy="Add the missing slices, or resample the series to a NIfTI file",
        )


def _position(sitk: Any, name: str) -> list[float]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    return [float(value) for value in reader.GetMetaData(_POSITION).split("\\")]


def _stored(array: Array) -> Array:
    """In a dtype that NIfTI has."""
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _holds_dicom(folder: Path) -> bool:
    return any(_is_dicom(file) for file in folder.iterdir() if not file.name.startswith("."))


def _is_dicom(file: Path) -> bool:
    if file.suffix.lower() in _SUFFIXES:
        return True
    # Scanners export slices as IM000001 or by their UID: the preamble tells.
    if not file.is_file() or (file.suffix and not file.suffix[1:].isdigit()):
        return False
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"
