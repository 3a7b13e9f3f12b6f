"""What an ONNX file says about itself, found without reading its graph."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

PACKED = "fptq.packed"
"""Metadata of a file whose weights of at most 4 bits share bytes; says how to expand them."""

_METADATA_PROPS = 14
_KEY = b"\x0a"
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}


def has_property(path: Path, name: str) -> bool:
    """Whether the metadata of a file hold a name; False for what is no ONNX file.

    Skips over the graph: weights of gigabytes cost nothing.
    Source: Protocol Buffers encoding; `ModelProto.metadata_props` of onnx.proto.
    """
    if not path.is_file():
        return False
    wanted = _KEY + bytes([len(name)]) + name.encode()
    end = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < end:
            tag = _varint(file)
            kind = tag & 7
            if kind == _BYTES:
                length = _varint(file)
                start = file.tell()
                if tag >> 3 == _METADATA_PROPS and file.read(len(wanted)) == wanted:
                    return True
                file.seek(min(start + length, end))
            elif kind == _VARINT:
                _varint(file)
            elif kind in _FIXED:
                file.seek(_FIXED[kind], os.SEEK_CUR)
            else:  # no ONNX file
                return False
    return False


def _varint(file: BinaryIO) -> int:
    """A number in groups of 7 bits, the lowest first."""
    number = shift = 0
    while byte := file.read(1):
        number |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80 or shift > 63:
            break
    return number
