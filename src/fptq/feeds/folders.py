"""Folders of images, and folders of class folders: `train/n01440764/x.JPEG`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from fptq.errors import DataError
from fptq.feeds.dicom import find_series
from fptq.feeds.scans import ARRAYS, IMAGES, SUFFIXES, find_files, natural, suffix


def find_samples(source: str | Path) -> tuple[Path, ...]:
    """The sample files of a source: arrays and scans, or images, those of class folders one level below too.

    In natural order, class by class. A DICOM series is the folder that its slices lie in.

    Raises:
        DataError: There are none, or images and arrays together.
    """
    if series := find_series(source):
        return series
    folders = class_folders(source)
    if folders:
        return tuple(path for folder in folders for path in images_in(folder))
    files = find_files(source, among=SUFFIXES)
    pictures = [path for path in files if suffix(path) in IMAGES]
    arrays = [path for path in files if suffix(path) in ARRAYS]
    if pictures and arrays:
        raise DataError(
            f"{source} holds both images ({pictures[0].name}) and arrays ({arrays[0].name})",
            rule="the samples of a source are of one kind",
            remedy=f"Name one kind with a pattern, such as '*{suffix(pictures[0])}'",
        )
    return files


def spread_samples(source: str | Path, *, seed: int, limit: int | None = None) -> tuple[Path, ...]:
    """The same files in an order whose beginning sees many classes.

    Folders take turns, in an order drawn by the seed; so do the images inside each. Without class folders the order is
    that of `find_samples`.

    Args:
        source: A folder, glob pattern or file.
        seed: Of the order.
        limit: How many are wanted; more need not be looked for. A training set has a million files.

    Raises:
        DataError: As for `find_samples`.
    """
    folders = class_folders(source)
    files = () if folders else find_samples(source)
    groups = _by_folder(files)
    if not folders and (len(groups) < 2 or suffix(files[0]) not in IMAGES):
        return files
    order = np.random.default_rng(seed).permutation(len(folders or groups))
    taken = (images_in(folders[i]) if folders else groups[i] for i in order)
    return _taking_turns(taken, seed=seed, limit=limit)


def class_folders(source: str | Path) -> tuple[Path, ...]:
    """The folders with images directly below a folder, sorted by name as text; none where it holds samples itself.

    Raises:
        DataError: There are images beside these folders.
    """
    path = Path(source)
    if not path.is_dir():
        return ()
    with os.scandir(path) as found:  # it knows what is a folder without a look at each of 50,000 files
        entries = [entry for entry in found if not entry.name.startswith(".")]
    direct = [entry.name for entry in entries if suffix(Path(entry.name))]
    if any(suffix(Path(name)) in ARRAYS for name in direct):
        return ()
    folders = sorted((Path(entry) for entry in entries if entry.is_dir() and _holds_image(entry)), key=lambda f: f.name)
    if direct and folders:
        raise DataError(
            f"{path} holds images ({min(direct)}) beside folders of images ({folders[0].name})",
            rule="a folder holds images, or one folder for each class",
            remedy=f"Move one of them, or give a pattern such as {path / '*' / '*'}{suffix(Path(min(direct)))}",
        )
    return tuple(folders)


def images_in(folder: Path) -> tuple[Path, ...]:
    """The images of a folder, in natural order."""
    return tuple(sorted((file for file in folder.iterdir() if _is_image(file.name)), key=natural))


def _holds_image(folder: os.DirEntry[str]) -> bool:
    with os.scandir(folder) as entries:  # ends at the first one
        return any(_is_image(entry.name) for entry in entries)


def _is_image(name: str) -> bool:
    return suffix(Path(name)) in IMAGES and not name.startswith(".")


def _by_folder(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    groups: dict[Path, list[Path]] = {}
    for file in files:
        groups.setdefault(file.parent, []).append(file)
    return [tuple(group) for group in groups.values()]


def _taking_turns(groups: Iterable[tuple[Path, ...]], *, seed: int, limit: int | None) -> tuple[Path, ...]:
    """One file of each group, then a second one of each, and so on."""
    generator = np.random.default_rng([seed, 1])
    # Each group gives its first file before any gives its second: no more than `limit` groups need a look.
    drawn = [[group[i] for i in generator.permutation(len(group))] for group in islice(groups, limit)]
    turns = zip_longest(*drawn)
    return tuple(islice((file for turn in turns for file in turn if file is not None), limit))
