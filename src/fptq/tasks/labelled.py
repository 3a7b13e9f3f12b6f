"""Images whose class is the name of their folder."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fptq.errors import DataError
from fptq.feeds.folders import class_folders, find_samples, images_in
from fptq.feeds.scans import IMAGES, suffix

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Image files with their classes.

    Attributes:
        paths: The files.
        labels: For each the index of its class in the network's output.
        note: Where the indices come from, for the report.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.paths:
            raise DataError("there is no image to classify", rule="evaluation needs at least one")
        if len(self.paths) != len(self.labels) or min(self.labels) < 0:
            raise DataError(
                f"{len(self.paths)} images and {len(self.labels)} labels",
                rule="each image has one label, counted from 0",
            )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """Each file with its folder."""
        return tuple(f"{path.parent.name}/{path.name}" for path in self.paths)


def open_labelled(images: str | Path, classes: str | Path | None = None, *, count: int | None = None) -> LabelledImages:
    """The images of class folders with their classes.

    A folder's class is its place among the sorted names (as text: 10 before 2, as in torchvision); where all names
    are whole numbers, the number; with `classes`, the place of its name there.

    Args:
        images: A folder of class folders, or a glob of images in them.
        classes: Names of the network's classes in the order of its outputs: a text file of one folder name a line
            (or a WordNet id, whatever follows it); JSON, as a list, as names by index (of Keras) or as indices by name
            (`class_to_idx` of torchvision); or a folder of class folders, such as the training set.
        count: How many classes the network has; None: not known.

    Raises:
        DataError: There are no class folders, one is empty, or they do not name the network's classes.
    """
    groups = _groups(images)
    if classes is not None:
        indices, note = _named(groups, Path(classes), count), f"Classes: the order of the names in {classes}."
    elif all(name.isascii() and name.isdigit() for name in groups):
        indices, note = _numbered(groups, images, count), "Classes: the folders are numbered by class, from 0."
    else:
        indices, note = _sorted(groups, images, count), "Classes: the sorted names of the folders."
    pairs = [(path, indices[name]) for name, paths in groups.items() for path in paths]
    return LabelledImages(paths=tuple(p for p, _ in pairs), labels=tuple(i for _, i in pairs), note=note)


def _groups(images: str | Path) -> dict[str, tuple[Path, ...]]:
    """The images of each class folder, by its name, sorted as text."""
    folder = Path(images)
    if folder.is_dir():
        folders = class_folders(folder)
        if not folders:
            raise DataError(
                f"{folder} has no class folders",
                rule="the images of each class lie in a folder of their own: class/image.jpg",
                remedy="Sort the images into folders, or give --metric package.module:function",
            )
        beside = (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith("."))
        empty = [entry.name for entry in beside if entry not in folders]
        if empty:
            raise DataError(
                f"{folder / empty[0]} holds no image",
                rule=f"each class folder holds {', '.join(IMAGES)} files",
                remedy="Put images into it; or remove it, and name all classes with --labels",
            )
        return {entry.name: images_in(entry) for entry in folders}
    found: dict[str, list[Path]] = {}
    for path in find_samples(images):
        if suffix(path) not in IMAGES:
            raise DataError(f"{path} is no image", rule="a classification is scored on image files in class folders")
        found.setdefault(path.parent.name, []).append(path)
    return {name: tuple(found[name]) for name in sorted(found)}


def _sorted(groups: Iterable[str], images: str | Path, count: int | None) -> dict[str, int]:
    names = list(groups)
    if count is not None and len(names) != count:
        raise DataError(
            f"{images} has {len(names)} class folders, and the network {count} classes",
            rule="without class names a folder's class is its place among all sorted names",
            remedy="Give --labels a file of all class names in the order of the outputs, or the training folder; "
            "or name the folders by class index",
        )
    return {name: index for index, name in enumerate(names)}


def _numbered(groups: Iterable[str], images: str | Path, count: int | None) -> dict[str, int]:
    indices = {name: int(name) for name in groups}
    twice = len(set(indices.values())) < len(indices)
    if twice or (count is not None and max(indices.values()) >= count):
        largest = max(indices, key=lambda name: indices[name])
        raise DataError(
            f"{images} has two folders of one number" if twice else f"{Path(images) / largest}: the class is {largest}",
            rule=f"numbers of folders are class indices, 0 to {count - 1}" if count else "a class has one folder",
            remedy="Give --labels a file of the folder names in the order of the outputs",
        )
    return indices


def _named(groups: Iterable[str], classes: Path, count: int | None) -> dict[str, int]:
    places = _places(classes)
    size = 1 + max(index for found in places.values() for index in found)
    if count is not None and size != count:
        raise DataError(
            f"{classes} names {size} classes, and the network has {count}",
            rule="the names are those of all outputs, in their order",
            remedy="Add a line for a background class" if size == count - 1 else "Complete the file",
        )
    for name in groups:
        found = places.get(name, set())
        if len(found) != 1:
            close = difflib.get_close_matches(name, list(places), n=1)
            wrong = "is not named" if not found else f"stands for classes {', '.join(map(str, sorted(found)))}"
            nearest = f"The nearest one is {close[0]!r}" if close and not found else ""
            raise DataError(
                f"the folder {name!r} {wrong} in {classes}",
                rule="each class folder has the name of one class",
                remedy=nearest or f"It has names such as {next(iter(places))!r}; rename the folder or add its name",
            )
    return {name: next(iter(places[name])) for name in groups}


def _places(classes: Path) -> dict[str, set[int]]:
    """The indices of each name; a class may have several names, and a name (crane, maillot) several classes."""
    if classes.is_dir():
        entries: Iterable[tuple[int, object]] = enumerate(folder.name for folder in class_folders(classes))
    else:
        entries = _entries(classes)
    places: dict[str, set[int]] = {}
    for index, names in entries:
        for name in names if isinstance(names, list) else [names]:
            places.setdefault(str(name), set()).add(index)
    if not places or min(min(found) for found in places.values()) < 0:
        raise DataError(f"{classes} names no classes", rule="class names are lines of a text file, or JSON")
    return places


def _entries(classes: Path) -> Iterable[tuple[int, object]]:
    try:
        text = classes.read_text(encoding="utf-8-sig")
        if classes.suffix.lower() == ".json":
            return _from_json(json.loads(text))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{classes} cannot be read: {error}",
            rule="class names are lines of a text file, or JSON: a list, names by index or indices by name",
        ) from error
    lines = [line.strip() for line in text.strip().splitlines()]
    words = [re.split(r"[\s,:]", line, maxsplit=1)[0] for line in lines]
    return enumerate([word if _WNID.fullmatch(word) else line for word, line in zip(words, lines, strict=True)])


def _from_json(document: object) -> list[tuple[int, object]]:
    """Classes with their names.

    Raises:
        ValueError: It has another form.
    """
    match document:
        case list():
            return list(enumerate(document))
        case Mapping() if all(isinstance(value, int) for value in document.values()):
            return [(int(index), name) for name, index in document.items()]
        case Mapping():
            return [(int(index), names) for index, names in document.items()]
    raise ValueError(f"a JSON {type(document).__name__}")
