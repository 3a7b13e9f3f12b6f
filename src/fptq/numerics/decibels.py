"""Signal to noise."""

from __future__ import annotations

import math

import numpy as np

from fptq.types import Array

_LEAST = 1e-300


def sqnr_of(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares [dB]: infinite where there is no noise."""
    return math.inf if noise == 0 else 10 * math.log10(max(signal, _LEAST) / noise)


def sqnr(exact: Array, changed: Array) -> float:
    """The same of an array and what it became [dB]."""
    signal = float(np.square(exact, dtype=np.float64).sum())
    noise = float(np.square(exact.astype(np.float64) - changed).sum())
    return sqnr_of(signal, noise)
