"""Codes of 4 and 2 bits in bytes as ONNX stores them: the first code in the lowest bits.

Source: ONNX IR specification, "Packed integers" (INT4, UINT4, INT2, UINT2).
"""

from __future__ import annotations

import math

import numpy as np

from fptq.types import Array

WIDTHS = (2, 4)
"""Bits of a code that shares its byte."""


def pack(codes: Array, *, bits: int, signed: bool) -> Array:
    """Codes in row-major order, two or four to a byte, the last byte filled with 0.

    >>> pack(np.array([1, -2, 7]), bits=4, signed=True).tolist()
    [225, 7]

    Args:
        codes: Integers of any dtype and shape.
        bits: Width of a code, 2 or 4.
        signed: Whether codes are two's complements.

    Returns:
        `u8[ceil(n * bits / 8)]` for `n` codes.

    Raises:
        ValueError: A code does not fit its width.
    """
    each = _each(bits)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        raise ValueError(f"codes reach from {codes.min()} to {codes.max()}: {bits} bits hold {low} to {high}")
    flat = (codes.reshape(-1) & ((1 << bits) - 1)).astype(np.uint8)
    parts = np.pad(flat, (0, -flat.size % each)).reshape(-1, each)
    return np.asarray(np.bitwise_or.reduce(parts << _shifts(bits), axis=1))


def unpack(packed: Array, *, bits: int, signed: bool, shape: tuple[int, ...]) -> Array:
    """The inverse of `pack`.

    >>> unpack(np.uint8([225, 7]), bits=4, signed=True, shape=(3,)).tolist()
    [1, -2, 7]

    Args:
        packed: u8, what `pack` gave.
        bits: Width of a code, 2 or 4.
        signed: Whether codes are two's complements.
        shape: Shape of the codes.

    Returns:
        i8 of `shape`.

    Raises:
        ValueError: There are not as many bytes as the shape takes.
    """
    count, each = math.prod(shape), _each(bits)
    if packed.size != -(-count // each):
        raise ValueError(f"{packed.size} bytes do not hold {count} codes of {bits} bits")
    parts = (packed[:, None] >> _shifts(bits)) & np.uint8((1 << bits) - 1)
    codes = parts.reshape(-1)[:count].reshape(shape).astype(np.int8)
    # Flipping the sign bit and taking its weight off sends 8..15 to -8..-1 and leaves 0..7.
    sign = np.int8(1 << (bits - 1)) if signed else np.int8(0)
    return np.asarray((codes ^ sign) - sign, dtype=np.int8)


def _each(bits: int) -> int:
    if bits not in WIDTHS:
        raise ValueError(f"bits = {bits}: codes of {' or '.join(map(str, WIDTHS))} bits share a byte")
    return 8 // bits


def _shifts(bits: int) -> Array:
    return np.arange(0, 8, bits, dtype=np.uint8)
