"""Where the state of a sliding window lives: in memory, or in files from which a killed run goes on."""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import DTypeLike

from fptq.errors import OutputError
from fptq.feeds.scratch import reserve, scratch
from fptq.types import Array


class Store(Protocol):
    """Arrays by name, and how far the work on them has come.

    Attributes:
        staged: Windows whose sums have been computed.
        done: Windows that have been added; at most one fewer than `staged`.
        rows: Rows of windows whose planes have been handed on.
    """

    staged: int
    done: int
    rows: int

    @property
    def lasting(self) -> bool:
        """Whether it outlives the process."""

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array, zeros where it is new."""

    def found(self, name: str) -> Array | None:
        """An array that is there already."""

    def mark(self) -> None:
        """Keep the three numbers."""


@dataclass
class MemoryStore:
    """A store that ends with the process."""

    staged: int = 0
    done: int = 0
    rows: int = 0
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def lasting(self) -> bool:
        """No: nothing has to be staged."""
        return False

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array, zeros where it is new; a large one in a temporary file."""
        if name not in self.arrays:
            self.arrays[name] = scratch(shape, dtype)
        return self.arrays[name]

    def found(self, name: str) -> Array | None:
        """An array that is there already."""
        return self.arrays.get(name)

    def mark(self) -> None:
        """Nothing to keep."""


class FolderStore:
    """A store in a folder of mapped files, which a process that dies leaves complete.

    What a process wrote into a mapped file or handed to the system outlives it, in the order in which it was written;
    a machine that stops may lose some of it, so what another boot left is not used.

    Args:
        folder: Made where it is missing.
        key: What the work depends on; the state of another key is discarded.

    Raises:
        OSError: The folder cannot be written.
        OutputError: Another process works in it.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._arrays = folder, dict[str, Array]()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / _LOCK)
        identity, found = f"{key} {_boot()}", self._counters()
        if _read(folder / "key") != identity or found is None:
            for file in folder.iterdir():
                if file.name != _LOCK:
                    file.unlink()
            self.staged = self.done = self.rows = 0
            self._file = (folder / "counters").open("wb", buffering=0)
            self.mark()
            (folder / "key").write_text(identity, encoding="utf-8")
        else:
            self.staged, self.done, self.rows = found
            self._file = (folder / "counters").open("r+b", buffering=0)

    @property
    def lasting(self) -> bool:
        """Yes: a window is staged before it is added, so that no window counts twice."""
        return True

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array in a file of its name, zeros where it is new.

        Raises:
            OSError: There is no room for it.
        """
        if (found := self.found(name)) is not None:
            return found
        path, part = self._path(name), self._path(name).with_suffix(".new")
        self._arrays[name] = np.lib.format.open_memmap(part, "w+", np.dtype(dtype), shape)
        with part.open("r+b") as file:
            reserve(file, part.stat().st_size)
        part.rename(path)
        return self._arrays[name]

    def found(self, name: str) -> Array | None:
        """An array that this run or an earlier one made."""
        if name not in self._arrays and self._path(name).exists():
            self._arrays[name] = np.lib.format.open_memmap(self._path(name), "r+")
        return self._arrays.get(name)

    def mark(self) -> None:
        """Keep the three numbers: one write of a few bytes, which happens whole or not at all."""
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        self._file.write(_COUNTERS.pack(self.staged, self.done, self.rows))

    def close(self) -> None:
        """Let go of the files; another store can go on from them."""
        self._arrays.clear()
        self._file.close()
        self._lock.close()

    def discard(self) -> None:
        """Delete the folder and everything in it."""
        self._arrays.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self.close()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _counters(self) -> tuple[int, int, int] | None:
        try:
            staged, done, rows = _COUNTERS.unpack((self._folder / "counters").read_bytes())
        except (OSError, struct.error):
            return None
        return staged, done, rows


_COUNTERS = struct.Struct("<3q")
_LOCK = "lock"


def _locked(path: Path) -> IO[bytes]:
    """A file that one process holds at a time: the system lets go of it when that process ends, however it ends."""
    file = path.open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:  # not on Windows
        return file
    except BlockingIOError as error:
        file.close()
        raise OutputError(
            f"another process works in {path.parent}",
            rule="a scan is segmented by one process at a time",
            remedy="Wait for it, or give the two different scans",
        ) from error
    return file


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _boot() -> str:
    """What distinguishes this start of the machine from any other; empty where the system does not say."""
    return _read(Path("/proc/sys/kernel/random/boot_id")).strip()
