"""Labelled volumes to evaluate on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from fptq.errors import DataError
from fptq.feeds.dicom import find_series
from fptq.feeds.scans import find_files, is_scan, read_labels, read_scan, single_array, stem
from fptq.types import Array


@dataclass(frozen=True, kw_only=True)
class Case:
    """One volume and what is known about it.

    Attributes:
        name: What it is called in scores and errors.
        volume: `f32[*S]` or `f32[C, *S]`, as read.
        affine: Voxel index to millimetres, `f64[4, 4]`; None where unknown.
        label: Class of each voxel, `int[*S]`; None where unlabelled.
    """

    name: str
    volume: Array
    affine: Array | None = None
    label: Array | None = None

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Voxel size [mm], or None where unknown."""
        if self.affine is None:
            return None
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))


@dataclass(frozen=True)
class FileCases(Sequence[Case]):
    """Cases read from files when they are asked for."""

    volumes: tuple[Path, ...]
    labels: tuple[Path | None, ...]

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> FileCases: ...
    def __getitem__(self, index: int | slice) -> Case | FileCases:
        if isinstance(index, slice):
            return FileCases(self.volumes[index], self.labels[index])
        return _read_case(self.volumes[index], self.labels[index])

    def __len__(self) -> int:
        return len(self.volumes)


def open_cases(volumes: str | Path, labels: str | Path | None = None) -> FileCases:
    """Volumes with their labels, matched by file name without suffix.

    Args:
        volumes: Folder, glob pattern or file of `.nii`, `.nii.gz`, `.npy` or `.npz` (one array each), or of
            folders with a DICOM series each.
        labels: The same for the label volumes; None: unlabelled.

    Raises:
        DataError: There are no volumes, or a volume has no label file.
    """
    paths = find_series(volumes) or find_files(volumes)
    if labels is None:
        return FileCases(paths, (None,) * len(paths))
    found = {stem(path): path for path in find_files(labels)}
    missing = [path.name for path in paths if stem(path) not in found]
    if missing:
        free = [path.name for name, path in found.items() if name not in {stem(volume) for volume in paths}]
        close = difflib.get_close_matches(missing[0], free, n=1, cutoff=0.3)
        raise DataError(
            f"no label for {missing[0]}" + (f" and {len(missing) - 1} other volumes" if missing[1:] else ""),
            rule="a label file has the name of its volume",
            remedy=f"The nearest unused name in {labels} is {close[0]}" if close else f"Put it into {labels}",
        )
    return FileCases(paths, tuple(found[stem(path)] for path in paths))


def _read_case(path: Path, label_path: Path | None) -> Case:
    affine: Array | None = None
    if is_scan(path):
        scan = read_scan(path)
        volume, affine = scan.volume, scan.affine
    else:
        volume = np.asarray(single_array(path), np.float32)
        if not np.isfinite(volume).all():
            raise DataError(f"{path} has NaN or Inf values", rule="volumes are finite")
    if label_path is None:
        return Case(name=stem(path), volume=volume, affine=affine)
    label, label_affine = read_labels(label_path)
    shapes = (volume.shape, volume.shape[1:])
    if label.shape not in shapes:
        raise DataError(
            f"label {label_path} has shape {list(label.shape)}, its volume {list(volume.shape)}",
            rule="a label lies on the grid of its volume",
            remedy="Resample it (nearest neighbour) to the volume's grid",
        )
    # Half a tenth of a millimetre: tools round affines when they write them.
    if affine is not None and label_affine is not None and not np.allclose(affine, label_affine, atol=0.05):
        raise DataError(
            f"label {label_path} has another affine than its volume",
            rule="a label lies on the grid of its volume",
            remedy="Resample it (nearest neighbour) to the volume's grid",
        )
    return Case(name=stem(path), volume=volume, affine=affine, label=label)
