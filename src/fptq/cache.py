"""One content-addressed store for everything that is expensive to compute twice.

An entry is a set of arrays and a little JSON, found by the hash of what it was computed from. Losing the store
costs time and nothing else: an unreadable entry is recomputed, a full disk is a warning.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fptq.types import Array

logger = logging.getLogger(__name__)

_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.npz")
_META = "meta.json"
_ARRAYS = "arrays/"


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/fptq`, else `~/.cache/fptq`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fptq"


def cache_key(*parts: object) -> str:
    """The SHA-256, in hexadecimal, of values: the same for equal values in any process.

    Args:
        parts: Numbers, strings, bytes, arrays, dataclasses, and tuples, lists, sets and mappings of them. Give
            everything that the result depends on, versions of fptq and of the engine included.

    Raises:
        TypeError: A part is of a type that has no canonical form.

    >>> cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """What was stored under a key.

    Attributes:
        arrays: Arrays by name.
        meta: Plain JSON data.
    """

    arrays: Mapping[str, Array]
    meta: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CacheUsage:
    """What the entries of one kind take.

    Attributes:
        kind: The name given to `put`.
        entries: How many there are.
        size_bytes: What they take on disk.
    """

    kind: str
    entries: int
    size_bytes: int


@dataclass(frozen=True)
class Cache:
    """Entries in a folder, one file each: `<folder>/<kind>/<key>.npz`."""

    folder: Path = field(default_factory=default_folder)

    def get(self, kind: str, key: str) -> CacheEntry | None:
        """The entry, or None where there is none that can be read.

        Args:
            kind: What sort of result: "statistics", "sensitivity", ...
            key: A `cache_key`.
        """
        path = self._path(kind, key)
        try:
            return _read(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("ignored the unreadable cache entry %s: %s", path, error)
            return None

    def put(self, kind: str, key: str, entry: CacheEntry) -> None:
        """Store an entry, replacing what was there; an entry is whole or absent, never half written."""
        path = self._path(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, entry)
        except OSError as error:
            logger.warning("could not keep %s in the cache: %s", path, error)

    def discard(self, kind: str, key: str) -> None:
        """Remove an entry if it is there."""
        self._path(kind, key).unlink(missing_ok=True)

    def usage(self) -> tuple[CacheUsage, ...]:
        """What the store takes, by kind."""
        sizes: dict[str, list[int]] = {}
        for path in self._entries():
            sizes.setdefault(path.parent.name, []).append(path.stat().st_size)
        return tuple(CacheUsage(kind=k, entries=len(s), size_bytes=sum(s)) for k, s in sorted(sizes.items()))

    def clear(self) -> int:
        """Remove every entry, and nothing else that may lie in the folder; returns how many there were."""
        paths = list(self._entries())
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def _entries(self) -> Iterator[Path]:
        return (path for path in self.folder.glob("*/*.npz") if _ENTRY_NAME.fullmatch(path.name))

    def _path(self, kind: str, key: str) -> Path:
        name = f"{key}.npz"
        if not _ENTRY_NAME.fullmatch(name):
            raise ValueError(f"{key!r} is not a cache key")
        return self.folder / kind / name


def _read(path: Path) -> CacheEntry:
    with zipfile.ZipFile(path) as archive:  # every member carries a checksum, verified as it is read
        arrays = {
            name.removeprefix(_ARRAYS): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
            for name in archive.namelist()
            if name.startswith(_ARRAYS)
        }
        meta = json.loads(archive.read(_META))
    return CacheEntry(arrays=MappingProxyType(arrays), meta=MappingProxyType(meta))


def _write(path: Path, entry: CacheEntry) -> None:
    """Write under a temporary name beside `path`, then rename."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr(_META, json.dumps(dict(entry.meta)))
            for array_name, array in entry.arrays.items():
                with archive.open(_ARRAYS + array_name, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _canonical(part: object) -> str:
    """One text for equal values, whose type and nesting can be read back from it."""
    match part:
        case None | bool() | int() | float() | str() | bytes():
            return f"{type(part).__name__}:{part!r}"
        case np.ndarray():
            digest = hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()
            return f"array:{part.dtype.str}{part.shape}{digest}"
        case tuple() | list():
            return f"[{','.join(map(_canonical, part))}]"
        case set() | frozenset():
            return f"set{{{','.join(sorted(map(_canonical, part)))}}}"
        case Mapping():
            return f"map{{{','.join(sorted(f'{_canonical(k)}={_canonical(v)}' for k, v in part.items()))}}}"
        case _ if is_dataclass(part) and not isinstance(part, type):
            values = (f"{f.name}={_canonical(getattr(part, f.name))}" for f in fields(part))
            return f"{type(part).__name__}({','.join(values)})"
    raise TypeError(f"{type(part).__name__} cannot be part of a cache key")
