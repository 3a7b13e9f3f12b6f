"""What is refused at the door, with the node or tensor at fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from fptq.errors import ModelError
from fptq.graph import query
from fptq.types import Array

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that ONNX Runtime, which computes the float reference, can run."""

_QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "MatMulNBits",
    "QLinear",
    "QGemm",
    "QAttention",
    "DynamicQuantize",
)

_ARITHMETIC = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "GRU",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "PRelu",
    }
)
"""Operations that an infinite constant ruins; in an attention mask it means what it says."""

_CHUNK = 1 << 24


def check_whole(model: ir.Model) -> None:
    """Check that a file is all there: nodes, what they read, and tensors stored beside it.

    Raises:
        ModelError: The model computes nothing, reads or returns what nothing computes, or a file of tensors is
            missing, too short, or outside the model's folder.
    """
    if not model.graph.outputs or not len(model.graph):
        raise ModelError("the model computes nothing", remedy="The file is truncated or holds only weights")
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.inputs:
            _check_produced(value, f"node {node.name!r} reads")
    for value in model.graph.outputs:
        _check_produced(value, "the model returns")
    for graph in model.graphs():
        for value in graph.initializers.values():
            _check_storage(value)


def check_supported(model: ir.Model) -> None:
    """Check a graph without functions for what fptq cannot work on.

    Raises:
        ModelError: It takes or returns something else than tensors, is quantized already, uses unknown operators,
            or stores NaN or infinite weights.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        _check_type(value)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        _check_operator(node)
    for value in model.graph.initializers.values():
        _check_finite(value)


def _check_produced(value: ir.Value | None, reader: str) -> None:
    if value is None or value.producer() is not None or value.is_graph_input() or value.const_value is not None:
        return
    raise ModelError(
        f"{reader} {value.name!r}, which nothing computes",
        rule="every value has a producer",
        remedy="The file is truncated or broken: fetch or export it again",
    )


def _check_storage(value: ir.Value) -> None:
    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor):
        return
    path, folder = Path(tensor.path).resolve(), Path(tensor.base_dir).resolve()
    if not path.is_relative_to(folder):
        raise ModelError(
            f"tensor {value.name!r} is stored in {tensor.location}",
            rule="external data lie in the model's folder or below",
        )
    needed = (tensor.offset or 0) + (tensor.length or 0)
    size = path.stat().st_size if path.is_file() else None
    if size is None or size < needed:
        raise ModelError(
            f"{path.name} {'is missing' if size is None else f'has {size} of {needed} bytes'}",
            rule=f"it holds tensor {value.name!r}",
            remedy=f"Put the whole file into {folder}",
        )


def _check_type(value: ir.Value) -> None:
    if not isinstance(value.type, ir.TensorType):
        kind = "nothing known" if value.type is None else type(value.type).__name__
        raise ModelError(
            f"input or output {value.name!r} is {kind}",
            rule="networks take and return tensors (no sequences, optionals or maps)",
            remedy="Export the model again with tensors only",
        )


def _check_operator(node: ir.Node) -> None:
    if node.op_type.startswith(_QUANTIZED):
        raise ModelError(
            f"the model is quantized already: node {node.name!r} is a {node.op_type}",
            rule="fptq quantizes float models",
            remedy="Give the float model",
        )
    if node.domain not in DOMAINS:
        raise ModelError(
            f"node {node.name!r} is {node.domain}::{node.op_type}",
            rule=f"operators outside {', '.join(d or 'ai.onnx' for d in sorted(DOMAINS - {'ai.onnx'}))} cannot be run",
            remedy="Export the model with standard operators, or as an ONNX function",
        )


def _check_finite(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or not value.uses():
        return
    try:
        array = tensor.numpy()
    except (ValueError, TypeError, OSError) as error:
        raise ModelError(
            f"tensor {value.name!r} cannot be read: {error}", remedy="The file is truncated or broken: fetch it again"
        ) from error
    nans, infinities = _count_bad(array)
    # A norm's or convolution's weight; constants of an attention mask may be infinite.
    ruinous = any(reader.op_type in _ARITHMETIC for reader, _ in query.readers(value))
    if nans or (infinities and ruinous):
        bad = ", ".join(f"{n} {what}" for n, what in ((nans, "NaN"), (infinities, "infinite")) if n)
        raise ModelError(
            f"weight {value.name!r} has {bad} of {array.size} values",
            rule="weights are finite",
            remedy="Check the checkpoint: training diverged, or half precision overflowed",
        )


def _count_bad(array: Array) -> tuple[int, int]:
    """NaN and infinite values, counted in pieces: a tensor may be larger than memory allows a copy of."""
    flat = array.reshape(-1)
    nans = infinities = 0
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        if np.isfinite(piece).all():
            continue
        found = int(np.isnan(piece).sum())
        nans += found
        infinities += int((~np.isfinite(piece)).sum()) - found
    return nans, infinities
