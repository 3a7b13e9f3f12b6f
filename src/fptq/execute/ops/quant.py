"""Quantize and dequantize, to the last bit as ONNX states them.

Integers of 4 bits and less lie in 8-bit tensors. No gradient passes through integers; scales of a DequantizeLinear, and
of course float inputs of other operations, have theirs.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor

from fptq.errors import ModelError
from fptq.execute.ops.call import Call, Op, dtype_of
from fptq.execute.ops.elementwise import together

_RANGES: Mapping[ir.DataType, tuple[int, int, torch.dtype]] = {
    ir.DataType.INT2: (-2, 1, torch.int8),
    ir.DataType.UINT2: (0, 3, torch.uint8),
    ir.DataType.INT4: (-8, 7, torch.int8),
    ir.DataType.UINT4: (0, 15, torch.uint8),
    ir.DataType.INT8: (-128, 127, torch.int8),
    ir.DataType.UINT8: (0, 255, torch.uint8),
    ir.DataType.INT16: (-32768, 32767, torch.int16),
    ir.DataType.UINT16: (0, 65535, torch.uint16),
}
"""Lowest and highest code, and what they are stored in."""

_STORED: Mapping[torch.dtype, ir.DataType] = {
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
    torch.int16: ir.DataType.INT16,
    torch.uint16: ir.DataType.UINT16,
}


def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """`clamp(round(x / scale) + zero_point)`, halves to even.

    Args:
        call: axis, block_size, output_dtype and precision.
        x: Of any rank.
        scale: One number; one for each index of the axis; or of the rank of `x`, one for each block along it.
        zero_point: Of the shape of `scale`; left out: zero.

    Raises:
        ModelError: The codes are no integers of at most 16 bits.
    """
    low, high, dtype = _range(call, zero_point)
    precision = dtype_of(call.int("precision")) if call.int("precision") else scale.dtype
    codes = torch.round(x.to(precision) / _spread(call, scale, x).to(precision))
    # Half precision does not hold every 16-bit code.
    codes = codes.to(torch.promote_types(precision, torch.float32))
    if zero_point is not None:
        codes = codes + _spread(call, zero_point, x).to(codes.dtype)
    return codes.clamp(low, high).to(dtype)


def dequantize_linear(call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """`(x - zero_point) * scale`, in the type of `scale` if no other is asked for.

    Args:
        call: axis, block_size and output_dtype.
        x: Integer codes of any rank.
        scale: One number; one for each index of the axis; or of the rank of `x`, one for each block along it.
        zero_point: Of the shape of `scale`; left out: zero.
    """
    x, scale = together((x, scale))  # stored codes may lie on the CPU, and their scale not
    steps = x.to(torch.int32)
    if zero_point is not None:
        steps = steps - _spread(call, zero_point, x).to(torch.int32)
    wide = torch.promote_types(scale.dtype, torch.float32)
    asked = call.int("output_dtype")
    return (steps.to(wide) * _spread(call, scale, x).to(wide)).to(dtype_of(asked) if asked else scale.dtype)


def _range(call: Call, zero_point: Tensor | None) -> tuple[int, int, torch.dtype]:
    code = _code(call, zero_point)
    if code not in _RANGES:
        raise ModelError(
            f"QuantizeLinear {call.node.name!r} writes {code.name}",
            rule="codes are integers of at most 16 bits",
            remedy="Quantize to one of " + ", ".join(known.name for known in _RANGES),
        )
    return _RANGES[code]


def _code(call: Call, zero_point: Tensor | None) -> ir.DataType:
    """The element type of the codes: asked for, or that of the zero point, or uint8."""
    if call.int("output_dtype"):
        return ir.DataType(call.int("output_dtype"))
    if zero_point is None:
        return ir.DataType.UINT8
    # A 4-bit zero point lies in an 8-bit tensor: only what the graph declares tells them apart.
    value = call.node.inputs[2]
    return value.dtype if value is not None and value.dtype is not None else _STORED[zero_point.dtype]


def _spread(call: Call, parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter on the device of `x`, with a shape that broadcasts over it."""
    parameter = parameter.to(x.device)
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis = call.int("axis", 1) % x.dim()
    block = call.int("block_size")
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if other == axis else 1 for other in range(x.dim())])


OPS: Mapping[str, Op] = {
    "DequantizeLinear": dequantize_linear,
    "QuantizeLinear": quantize_linear,
}
"""Functions by ONNX operation."""
