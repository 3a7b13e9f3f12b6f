"""ONNX QuantizeLinear and DequantizeLinear in numpy, equal to ONNX Runtime in every integer code.

`q = saturate(round_half_to_even(x / scale) + zero_point)`: divide (a reciprocal changes codes), and round
before the zero point is added (an odd zero point added first moves ties).
Source: ONNX operator specification, QuantizeLinear-21.
"""

from __future__ import annotations

import numpy as np

from fptq.numerics.params import UniformParams
from fptq.numerics.spec import QuantizerSpec
from fptq.types import Array


def quantize(x: Array, spec: QuantizerSpec, params: UniformParams) -> Array:
    """Integer codes of `x`, i32 of the same shape.

    Args:
        x: f32 of any shape.
        spec: The quantizer.
        params: Its numbers.
    """
    scale, zero_point = params.expanded(spec, x.shape)
    return _steps(x, spec, scale, zero_point).astype(np.int32) + zero_point


def dequantize(codes: Array, spec: QuantizerSpec, params: UniformParams) -> Array:
    """The real values `(q - zero_point) * scale` of integer codes, f32."""
    scale, zero_point = params.expanded(spec, codes.shape)
    return (codes.astype(np.int32) - zero_point).astype(np.float32) * scale


def fake_quantize(x: Array, spec: QuantizerSpec, params: UniformParams) -> Array:
    """`dequantize(quantize(x))`: what an integer engine sees of `x`.

    >>> from fptq.numerics import params_from_range
    >>> spec = QuantizerSpec(bits=2, signed=False, symmetric=False)
    >>> fake_quantize(np.float32([-1.0, 0.2, 0.6, 9.0]), spec, params_from_range(spec, 0.0, 3.0)).tolist()
    [0.0, 0.0, 1.0, 3.0]
    """
    scale, zero_point = params.expanded(spec, x.shape)
    return _steps(x, spec, scale, zero_point) * scale + np.float32(0)  # adding 0 turns -0.0 into 0.0


def _steps(x: Array, spec: QuantizerSpec, scale: Array, zero_point: Array) -> Array:
    """Codes counted from the zero point, still f32: huge ratios do not fit an integer before they are clipped."""
    with np.errstate(over="ignore"):  # an infinite ratio saturates like any other large one
        steps = np.rint(np.asarray(x, dtype=np.float32) / scale)
    # 16-bit bounds are exact in f32; integer bounds would make numpy compute in f64.
    return np.clip(steps, (spec.qmin - zero_point).astype(np.float32), (spec.qmax - zero_point).astype(np.float32))
