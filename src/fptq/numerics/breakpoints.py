"""Where a piecewise-linear quantizer changes its step, for values of a known density.

Everything is measured in standard deviations of a density that is symmetric around 0, and concerns one side: ranges
`[-m, m]` and `[0, m]` have the same breakpoint.
Source: Fang et al., "Post-training piecewise linear quantization for deep neural networks" (ECCV 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fptq.types import Array

_HALVINGS = 60  # leaves nothing of f64
_SQRT2 = math.sqrt(2.0)
_erfc = np.vectorize(math.erfc, otypes=[np.float64])  # numpy has none


@dataclass(frozen=True, kw_only=True)
class Density:
    """A bell-shaped density of standard deviation 1, by magnitude.

    Attributes:
        name: What it is called.
        outside: The share of values with `|x| > t`.
        height: The density of `|x|` at t.
        fit: The paper's fit of the best breakpoint for a highest magnitude m.
        memoryless: Whether the excess over a threshold has the same density again.
    """

    name: str
    outside: Callable[[Array], Array]
    height: Callable[[Array], Array]
    fit: Callable[[Array], Array]
    memoryless: bool


GAUSSIAN = Density(
    name="gaussian",
    outside=lambda t: _erfc(t / _SQRT2),
    height=lambda t: math.sqrt(2 / math.pi) * np.exp(-(t**2) / 2),
    fit=lambda m: np.log(0.8614 * m + 0.6079),
    memoryless=False,
)
LAPLACE = Density(
    name="laplace",
    outside=lambda t: np.exp(-_SQRT2 * t),
    height=lambda t: _SQRT2 * np.exp(-_SQRT2 * t),
    fit=lambda m: 0.8030 * np.sqrt(m) - 0.3167,
    memoryless=True,
)

Solve = Callable[[Density, Array, Array], Array]
"""`bisected` or `closed_form`: the breakpoint between a start and a highest magnitude."""


def bisected(density: Density, m: Array | float, start: Array | float = 0.0) -> Array:
    """The breakpoint of least expected squared error, by bisection of the paper's stationarity condition.

    `p - 2 m + 2 m F(p) + m (2 p - m) f(p) = 0` for a centre from 0; here for a part from `start`, which is how a
    tail is split again. Values beyond m count as tail. The error is convex in the lower half of the part.

    Args:
        density: What the values follow.
        m: Highest magnitude, >= start.
        start: Where the part begins.

    Returns:
        f64, between `start` and the middle of the part.
    """
    m, start = np.broadcast_arrays(np.asarray(m, np.float64), np.asarray(start, np.float64))
    length, mass = m - start, density.outside(start)
    low, high = np.zeros_like(length), length / 2
    for _ in range(_HALVINGS):
        width = (low + high) / 2
        at = start + width
        slope = 2 * (width * mass - length * density.outside(at)) + density.height(at) * length * (2 * width - length)
        low, high = np.where(slope < 0, width, low), np.where(slope < 0, high, width)
    return np.asarray(start + (low + high) / 2)


def closed_form(density: Density, m: Array | float, start: Array | float = 0.0) -> Array:
    """The paper's fits to `bisected`: no iteration, for ranges of common width.

    Gaussian `ln(0.8614 m + 0.6079)` (printed as p / m, but it is p), Laplacian `0.8030 sqrt(m) - 0.3167`; the middle
    where a fit is beyond it or the part is shorter than 1, as the density is nearly flat there.
    Against `bisected`, p is within 2 % for m from 2.5 to 10 and the expected error within 3 % up to 20. Beyond, the
    fits grow too fast (Gaussian 3.4 against 3.0 at 35): bisect where there are outliers.

    Args:
        density: What the values follow.
        m: Highest magnitude, >= start.
        start: Where the part begins.

    Raises:
        ValueError: The part starts beyond 0 and the density's tails are not like the whole.
    """
    start64 = np.asarray(start, np.float64)
    if start64.any() and not density.memoryless:
        raise ValueError(f"there is no closed form for the tail of a {density.name} density: bisect")
    length = np.asarray(m, np.float64) - start64
    middle = length / 2
    return np.asarray(start64 + np.where(length < 1, middle, np.minimum(density.fit(np.maximum(length, 1)), middle)))


def expected_error(density: Density, m: Array | float, p: Array | float, *, bits: int) -> Array:
    """Expected squared error of two regions, f64, in squared standard deviations.

    `C(b - 1) {(m - p)^2 + m (2 p - m) [2 F(p) - 1]}` with `C(b) = 1 / (12 (2^b - 1)^2)`: each region has b - 1 bits
    of magnitude, and rounding is as if values were uniform within a step. A uniform quantizer of 2^b levels has
    `4 m^2 C(b)`, so that already at `p = m / 2` the ratio is at most 9/16, the value at 2 bits, and near 1/4 above.

    Args:
        density: What the values follow.
        m: Highest magnitude.
        p: Breakpoint, 0 to m.
        bits: b, of a region with its sign, >= 2.
    """
    m, p = np.asarray(m, np.float64), np.asarray(p, np.float64)
    tail = density.outside(p)
    return np.asarray((p**2 * (1 - tail) + (m - p) ** 2 * tail) / (12 * (2 ** (bits - 1) - 1) ** 2))
