"""Arrays too large for the memory of a laptop: beyond a size they live in a temporary file that is mapped."""

from __future__ import annotations

import os
import tempfile
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from fptq.errors import OutputError
from fptq.types import Array

LARGE = 2**28
"""Bytes from which an array goes into a file: pages of a file can leave memory, an allocation cannot."""


def scratch(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
    """An array of zeros, in memory or, where it is large, in a file without a name that vanishes with it.

    Args:
        shape: Its shape.
        dtype: Its dtype.

    Raises:
        OutputError: The folder for temporary files has no room for it.
    """
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if nbytes <= LARGE:
        return np.zeros(shape, dtype)
    try:
        with tempfile.TemporaryFile(prefix="fptq-") as file:
            reserve(file, nbytes)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise OutputError(
            f"{nbytes / 1e9:.1f} GB for a large volume do not fit into {tempfile.gettempdir()}: {error.strerror}",
            rule="large volumes are worked on in temporary files",
            remedy="Free some space or set TMPDIR to a folder on a disk that has it",
        ) from error


def reserve(file: IO[bytes], nbytes: int) -> None:
    """Give a file its size with every block of it, so that a full disk is an error now and no crash later.

    Raises:
        OSError: There is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, nbytes)
    else:
        file.truncate(nbytes)
