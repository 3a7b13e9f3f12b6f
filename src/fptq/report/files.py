"""Files that are either the old one or the new one, whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fptq.errors import OutputError


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text under a temporary name beside `path`, then rename it.

    Raises:
        OutputError: The text cannot be written; what was at `path` is left as it was.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix; what the block writes there becomes `path` when it is whole.

    Raises:
        OutputError: It cannot be written; what was at `path` is left as it was.
    """
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {error.strerror or error}",
            rule="what was there before is unchanged",
            remedy="Free some space or choose another folder",
        ) from error
    finally:
        _discard(temporary)


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder itself may be gone or read-only: nothing of ours is in it then
        return
