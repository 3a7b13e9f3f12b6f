"""One opset for every graph."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common

from fptq.errors import ModelError

OPSET = 21
"""The opset of every canonical graph: the first with 4-bit and blocked quantization, read by all engines."""

OPSETS = range(11, 26)
"""Opsets that are read."""

IR_VERSION = 10
"""The file format version that belongs to `OPSET`."""

_SAME_SHAPE = {"GroupNormalization": "InstanceNormalization", "MeanVarianceNormalization": "Relu"}
"""Operations for which ONNX infers no shape, and others of the same shape for which it does."""

_SMALL = 1024
"""Tensors of more bytes than this are kept out of what is handed to ONNX's C++ code, which stops at 2 GB."""


def convert_opset(model: ir.Model) -> None:
    """Convert a graph without functions to opset `OPSET`, in place.

    Raises:
        ModelError: The opset is not in `OPSETS`, or a node has no equivalent.
    """
    opset = opset_of(model)
    if opset > OPSET:
        _expand_new_operations(model)
        _lower(model)
    elif opset < OPSET:
        _raise(model, opset)
    model.ir_version = IR_VERSION


def opset_of(model: ir.Model) -> int:
    """The version of the default operator set.

    Raises:
        ModelError: It is not in `OPSETS`.
    """
    imports = model.opset_imports
    opset = imports.get("", imports.get("ai.onnx"))
    if opset is None or opset not in OPSETS:
        raise ModelError(
            f"the model uses opset {opset}" if opset else "the model names no opset",
            rule=f"opsets {OPSETS.start} to {OPSETS.stop - 1} are read",
            remedy="Export it again with a newer exporter"
            if (opset or 0) < OPSETS.start
            else "Export it with opset 21",
        )
    return opset


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes that follow from the inputs' shapes, in place; big tensors are not copied."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    alike = [(node, node.op_type) for node in nodes if not node.domain and node.op_type in _SAME_SHAPE]
    for node, op_type in alike:
        node.op_type = _SAME_SHAPE[op_type]
    try:
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        for node, op_type in alike:
            node.op_type = op_type


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of the conversion libraries: what matters of them is checked by parity."""
    names = ("onnx_ir", "onnxscript", "torch.onnx", "torch.onnx._internal.exporter")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _raise(model: ir.Model, opset: int) -> None:
    from onnxscript import version_converter

    infer_shapes(model)  # GroupNormalization-18 needs its channels to be converted
    # Without the fallback the converter stamps the new number on graphs older than 18 (Softmax changes meaning).
    version_converter.convert_version(model, target_version=OPSET, fallback=True)
    if model.opset_imports.get("") != OPSET:
        raise ModelError(
            f"the model cannot be converted from opset {opset} to {OPSET}",
            rule="ONNX's version converter refuses it",
            remedy=f"Export it again with opset {OPSET}",
        )


def _expand_new_operations(model: ir.Model) -> None:
    """Replace operations that opset `OPSET` lacks by what their specification defines them as."""
    import onnx
    from onnx import inliner

    newer = {node.op_type for node in model.graph if not node.domain and not onnx.defs.has(node.op_type, OPSET, "")}
    if not newer:
        return
    infer_shapes(model)
    stored = {name: value.const_value for name, value in model.graph.initializers.items()}
    lean = model.clone()
    count = len(lean.graph.inputs)
    for name, value in list(lean.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _SMALL:
            del lean.graph.initializers[name]
            lean.graph.inputs.append(value)
    names = [("", op_type) for op_type in sorted(newer)]
    try:
        proto = inliner.inline_selected_functions(ir.to_proto(lean), names, inline_schema_functions=True)
    except RuntimeError as error:  # an internal assertion, for instance on a left-out input of a definition
        raise ModelError(
            f"{', '.join(sorted(newer))} cannot be expanded into operations of opset {OPSET}",
            rule=f"fptq works in opset {OPSET}",
            remedy=f"Export the model with opset {OPSET}",
        ) from error
    expanded = ir.from_proto(proto)
    for value in expanded.graph.inputs[count:]:
        value.const_value = stored[value.name or ""]
        expanded.graph.register_initializer(value)
    del expanded.graph.inputs[count:]
    model.graph = expanded.graph
    common.InlinePass()(model)


def _lower(model: ir.Model) -> None:
    """Stamp an older opset on a graph whose operations did not change since but for the types they take."""
    import onnx

    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain not in {"", "ai.onnx"}:
            continue
        known = onnx.defs.has(node.op_type, OPSET, "")
        schema = onnx.defs.get_schema(node.op_type, OPSET, "") if known else None
        unknown = [] if schema is None else [name for name in node.attributes if name not in schema.attributes]
        if schema is None or unknown:
            what = f" with {', '.join(unknown)}" if unknown else ""
            raise ModelError(
                f"node {node.name!r} is a {node.op_type}{what}",
                rule=f"opset {OPSET}, in which fptq works, has no such operation",
                remedy=f"Export the model with opset {OPSET}",
            )
        node.version = None
    model.opset_imports.pop("ai.onnx", None)
    model.opset_imports[""] = OPSET
