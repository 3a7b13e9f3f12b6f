"""ONNX operations as plain torch functions, one each.

To add one, write its function in the file it belongs to and name it in that file's `OPS`.
Integer tensors (shapes, axes, indices) may lie on the CPU while the data is elsewhere: a function moves what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping

from fptq.execute.ops import conv, elementwise, matmul, norm, pool, quant, reduce, resize, shape
from fptq.execute.ops.call import Call, Op, Result

FILES = (elementwise, conv, pool, norm, shape, reduce, matmul, resize, quant)

OPS: Mapping[str, Op] = {name: function for file in FILES for name, function in file.OPS.items()}
"""Functions by ONNX operation."""

__all__ = ["OPS", "Call", "Op", "Result"]
