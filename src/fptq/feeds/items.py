"""Raw samples by name, before anything is made of them: what a folder, a pattern, a function or an iterable holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fptq.errors import DataError
from fptq.feeds.callables import load_callable, names_callable
from fptq.feeds.folders import find_samples, spread_samples
from fptq.feeds.images import read_image
from fptq.feeds.scans import IMAGES, is_scan, read_arrays, read_scan, suffix


class Items(Protocol):
    """Named raw samples that can be walked more than once."""

    def __iter__(self) -> Iterator[tuple[str, object]]: ...

    def __len__(self) -> int: ...


def open_items(source: object, *, spread: int | None = None, limit: int | None = None) -> FileItems | IterableItems:
    """The samples of a source as they are, by name.

    Args:
        source: As for `fptq.feeds.open_feeds`; an iterator is not written anywhere, so it can be walked only once.
        spread: Likewise.
        limit: How many are wanted of a spread; otherwise all are there.

    Raises:
        DataError: There are none.
        ConfigError: `package.module:function` does not exist.
    """
    if isinstance(source, str) and names_callable(source) and not Path(source).exists():
        source = load_callable(source)()
    if isinstance(source, str | Path):
        return FileItems(find_samples(source) if spread is None else spread_samples(source, seed=spread, limit=limit))
    return IterableItems(_walkable(source))


@dataclass(frozen=True)
class FileItems:
    """The samples of files."""

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[tuple[str, object]]:
        for path in self.paths:
            yield str(path), _read(path)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class IterableItems:
    """The samples of a Python iterable."""

    iterable: Iterable[object]

    def __iter__(self) -> Iterator[tuple[str, object]]:
        return ((f"sample {i}", sample) for i, sample in enumerate(self.iterable))

    def __len__(self) -> int:
        return len(self.iterable)  # type: ignore[arg-type]


def _read(path: Path) -> object:
    if suffix(path) in IMAGES:
        return read_image(path)
    return read_scan(path) if is_scan(path) else read_arrays(path)


def _walkable(source: Any) -> Iterable[object]:
    """The source as an iterable.

    Raises:
        DataError: It is not one.
    """
    if isinstance(source, Mapping):
        raise DataError(
            f"a mapping with keys {', '.join(map(repr, source))}",
            rule="data are an iterable of samples",
            remedy="For one sample, give [sample]",
        )
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not hasattr(source, "__iter__"):
        return _Indexed(source)
    try:
        iter(source)
    except TypeError as error:
        raise DataError(
            f"data of type {type(source).__name__}",
            rule="data are a folder, a pattern, package.module:function or an iterable of samples",
        ) from error
    return source  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Indexed:
    """A map-style dataset: it may not raise IndexError, so Python's own iteration would not end."""

    dataset: Any

    def __iter__(self) -> Iterator[object]:
        return (self.dataset[i] for i in range(len(self)))

    def __len__(self) -> int:
        return len(self.dataset)
