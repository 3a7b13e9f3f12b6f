"""From a range to the numbers of a quantizer, and the error that the numbers make."""

from __future__ import annotations

import numpy as np

from fptq.numerics.params import UniformParams
from fptq.numerics.spec import QuantizerSpec
from fptq.numerics.uniform import fake_quantize
from fptq.types import Array

_TINY = np.float32(2.0**-100)  # a tensor that is always 0 still needs a scale > 0


def params_from_range(spec: QuantizerSpec, low: Array | float, high: Array | float) -> UniformParams:
    """The quantizer that covers `[low, high]`, widened so that 0.0 has a code of its own.

    Args:
        spec: The quantizer.
        low: Lowest value to represent: one number, or one for each channel or block.
        high: Highest value, of the same shape.

    Raises:
        ValueError: A bound is NaN or infinite, or `low` exceeds `high`.
    """
    low32, high32 = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
    if not (np.isfinite(low32).all() and np.isfinite(high32).all()):
        raise ValueError("a range must be finite")
    if (low32 > high32).any():
        raise ValueError("a range must not end before it starts")
    low32, high32 = np.minimum(low32, 0), np.maximum(high32, 0)
    if spec.symmetric:
        middle = 0 if spec.signed else (spec.qmax + 1) // 2
        return UniformParams(
            scale=_symmetric_scale(spec, middle, low32, high32), zero_point=np.full_like(low32, middle)
        )
    # Half of each bound keeps the difference of two huge bounds finite.
    scale = (high32 / 2 - low32 / 2) / np.float32((spec.qmax - spec.qmin) / 2)
    scale = np.maximum(scale, _TINY)
    zero_point = np.clip(np.rint(spec.qmin - low32 / scale), spec.qmin, spec.qmax)
    return UniformParams(scale=scale, zero_point=zero_point)


def _symmetric_scale(spec: QuantizerSpec, middle: int, low: Array, high: Array) -> Array:
    """The smallest scale whose range, fixed around `middle`, covers both bounds."""
    below = -low / np.float32(middle - spec.qmin)
    above = high / np.float32(spec.qmax - middle)
    return np.maximum(np.maximum(below, above), _TINY)


def lp_error(x: Array, spec: QuantizerSpec, params: UniformParams, *, p: float = 2.4) -> float:
    """Mean of `|x - fake_quantize(x)|^p`. The exponent 2.4 is BRECQ's (Li et al., ICLR 2021)."""
    difference = np.abs(x - fake_quantize(x, spec, params)).astype(np.float64)
    return float(np.mean(difference**p))
