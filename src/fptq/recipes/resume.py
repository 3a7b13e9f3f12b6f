"""Going on with a folder of scans: which label maps are finished, and where one that is not is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fptq import __version__
from fptq.cache import cache_key
from fptq.config import Recipe
from fptq.errors import OutputError
from fptq.feeds.items import FileItems, IterableItems
from fptq.feeds.optional import optional
from fptq.feeds.scans import NIFTI, suffix
from fptq.tasks import FolderStore
from fptq.types import Progress

_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What label maps come from.

    Attributes:
        network: A fingerprint of the network, its engine and every option that changes a label.
    """

    network: str

    @classmethod
    def of(cls, model: Path, recipe: Recipe) -> Origin:
        """The origin of what a file computes with the options of a recipe."""
        with model.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        given = recipe.model_dump(mode="json", include={"task", "preprocess", "patch", "overlap"})
        return cls(network=cache_key(__version__, digest, given))

    def mark(self, scan: Path) -> str:
        """What the header of a scan's label map says made it: fptq, and the network and the scan as a hash."""
        files = sorted(scan.iterdir()) if scan.is_dir() else [scan]
        seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return f"fptq {__version__} {cache_key(self.network, seen)[:_DIGITS]}"

    def made(self, target: Path, scan: Path) -> bool:
        """Whether a file is the label map of a scan as this network and these options make it."""
        if suffix(target) not in NIFTI:
            return False
        nibabel = optional("nibabel", extra="medical", purpose="reading NIfTI files")
        try:
            described = bytes(nibabel.load(target).header["descrip"].item())
        except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError):
            return False
        return described == self.mark(scan).encode()


@dataclass(frozen=True, kw_only=True)
class Todo:
    """What is left of the samples of a call.

    Attributes:
        items: The samples.
        targets: Their results, where samples have names.
        finished: How many results are there already.
    """

    items: FileItems | IterableItems
    targets: Sequence[Path]
    finished: int = 0

    @classmethod
    def of(cls, items: FileItems | IterableItems, targets: Sequence[Path], origin: Origin | None) -> Todo:
        """What is left where an earlier call made some label maps of this origin; all without one."""
        if origin is None or not isinstance(items, FileItems):
            return cls(items=items, targets=targets)
        pairs = zip(items.paths, targets, strict=True)
        left = [(path, target) for path, target in pairs if not (target.exists() and origin.made(target, path))]
        return cls(
            items=FileItems(tuple(path for path, _ in left)),
            targets=[target for _, target in left],
            finished=len(targets) - len(left),
        )


def inside(progress: Progress, first: int, samples: int) -> Progress:
    """Progress of one sample as progress of all: in windows, as many for each as it has."""

    def told(done: int, total: int, what: str) -> None:
        if samples:
            progress(first * total + done, samples * total, f"prediction: {what}")

    return told


def _part(target: Path) -> Path:
    """The folder with the state of a label map that is not finished."""
    return target.with_name(f".{target.name}.part")


def forget(target: Path) -> None:
    """Delete the state of a label map that is not finished.

    Raises:
        OutputError: Another process works on it.
    """
    if (folder := _part(target)).exists():
        FolderStore(folder, "").discard()


@contextmanager
def kept(target: Path, mark: str) -> Iterator[FolderStore]:
    """The state of a label map in a hidden folder beside it, deleted when the block ends well.

    After an error or a kill it stays once a window is done: the same call goes on from there.

    Raises:
        OutputError: The folder has no room for it.
    """
    folder = _part(target)
    store: FolderStore | None = None
    try:
        store = FolderStore(folder, mark)
        yield store
        store.discard()
    except OSError as error:
        raise OutputError(
            f"the work on {target} could not be kept: {error.strerror or error}",
            rule="sums of large volumes lie beside the result until it is whole",
            remedy="Free some space and run the same command again: it goes on from what is there",
        ) from error
    finally:
        if store is not None:
            store.close() if store.done else store.discard()
