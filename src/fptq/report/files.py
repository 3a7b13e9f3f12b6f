"""Files that are either the old one or the new one, whole."""

from __future__ import annotations

import os
from pathlib import Path

from fptq.errors import OutputError


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text under a temporary name beside `path`, then rename it.

    Raises:
        OutputError: The text cannot be written; what was at `path` is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
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
    return path


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder itself may be gone or read-only: nothing of ours is in it then
        return
