"""The canonical form: one opset, no functions, no constants to compute, no BatchNorm behind a convolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from fptq.graph import origin, query
from fptq.graph.check import check_supported
from fptq.graph.einsum import einsum_as_matmul
from fptq.graph.opset import convert_opset, infer_shapes, opset_of, quiet
from fptq.graph.passes import (
    NoEffectPass,
    channel_arithmetic_as_batch_norm,
    share_equal_weights,
    unshare_folded_weights,
)
from fptq.graph.precision import widen

_FOLD_LIMIT = 1 << 22
"""Largest constant [elements] that folding may make out of smaller ones."""


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """A canonical graph.

    Attributes:
        graph_model: The graph.
        origin: Where each node came from.
        halves: The half-precision dtypes that became float32.
        contributed: Operations outside the ONNX standard that ONNX Runtime knows.
    """

    graph_model: ir.Model
    origin: Mapping[str, tuple[str, ...]]
    halves: frozenset[str]
    contributed: frozenset[str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the conversion changed that a reader of the results must know."""
        notes = []
        if self.halves:
            notes.append(f"The model is in {' and '.join(sorted(self.halves))}; it was widened to float32.")
        if self.contributed:
            notes.append(f"Other engines than ONNX Runtime may refuse {', '.join(sorted(self.contributed))}.")
        return tuple(notes)


def canonicalize(graph_model: ir.Model) -> Canonical:
    """Bring a float graph into canonical form, on a clone.

    Args:
        graph_model: A graph of any opset in `OPSETS`.

    Returns:
        The graph in opset 21 with functions inlined, constants folded, BatchNormalization folded into
        the convolution or Gemm before it, half precision widened, shapes inferred; every node has a name.

    Raises:
        ModelError: The graph is one that fptq refuses, or its opset cannot be converted.
    """
    model = graph_model.clone()
    opset_of(model)
    with quiet():
        _prepare(model)
        check_supported(model)
        halves = widen(model)
        before = origin.snapshot(model)
        convert_opset(model)
        infer_shapes(model)
        _simplify(model)
        infer_shapes(model)
        names = origin.rename_and_trace(model, before)
        # Exporters write stack traces with the user's paths; what is needed of them is in the origins.
        common.ClearMetadataAndDocStringPass()(model)
        for value in query.values(model).values():
            value.metadata_props.clear()
    contributed = frozenset(f"{node.domain}::{node.op_type}" for node in model.graph if node.domain)
    return Canonical(graph_model=model, origin=names, halves=halves, contributed=contributed)


def _prepare(model: ir.Model) -> None:
    """Name everything and store every constant as an initializer."""
    common.InlinePass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveInitializersFromInputsPass()(model)
    common.CommonSubexpressionEliminationPass(size_limit=1024)(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    _part_inputs_from_outputs(model)
    common.NameFixPass(_Names())(model)
    for node in model.graph:
        while node.inputs and node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)


def _part_inputs_from_outputs(model: ir.Model) -> None:
    """Put an Identity before every output that is an input or another output, in place; inputs keep their names."""
    names = [value.name for value in model.graph.inputs]
    common.OutputFixPass()(model)
    outputs = {value.name: value for value in model.graph.outputs}
    for value, name in zip(model.graph.inputs, names, strict=True):
        if value.name != name:
            outputs[name].name = f"{name}_returned"
            value.name = name


class _Names:
    """Names for what the file leaves unnamed, taken from what it names."""

    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or f"{node.op_type}_{node.outputs[0].name or 'out'}"

    def generate_value_name(self, value: ir.Value) -> str:
        maker = value.producer()
        return value.name or (f"{maker.name or maker.op_type}_out" if maker else "value")


def _simplify(model: ir.Model) -> None:
    from onnxscript.rewriter import RewritePass

    returned = [value.name for value in model.graph.outputs]
    clean = ir.passes.Sequential(_fold_pass(), common.IdentityEliminationPass(), common.RemoveUnusedNodesPass())
    clean(model)
    channel_arithmetic_as_batch_norm(model)
    einsum_as_matmul(model)
    copies = unshare_folded_weights(model)
    merge = common.CommonSubexpressionEliminationPass(size_limit=0)
    steps = [clean, RewritePass(_rules()), clean, merge, NoEffectPass()]
    ir.passes.PassManager(steps, steps=4, early_stop=True)(model)
    share_equal_weights(model, copies)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    _restore_outputs(model, returned)
    common.NameFixPass(_Names())(model)


def _restore_outputs(model: ir.Model, names: Sequence[str | None]) -> None:
    """Give every output its name back: removing Identities leaves one value for two outputs."""
    common.OutputFixPass()(model)
    if [value.name for value in model.graph.outputs] == list(names):
        return
    for index, value in enumerate(model.graph.outputs):
        value.name = f"fptq_output_{index}"
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name


def _fold_pass() -> ir.passes.InPlacePass:
    from onnxscript.optimizer import _constant_folding

    fold: ir.passes.InPlacePass = _constant_folding.FoldConstantsPass(
        shape_inference=True, input_size_limit=1 << 62, output_size_limit=1 << 62, should_fold=_worth_folding
    )
    return fold


def _worth_folding(node: ir.Node) -> bool:
    """Whether folding makes no big constant out of small ones (an expanded mask)."""
    dims = query.static_shape(node.outputs[0])
    if dims is None:
        return True
    read = sum(value.const_value.size for value in node.inputs if value is not None and value.const_value is not None)
    return math.prod(dims) <= max(read, _FOLD_LIMIT)


def _rules() -> list[object]:
    from onnxscript.rewriter.rules import common as rules

    chosen = [
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
        rules.fuse_pad_into_conv_rule,
        rules.normalize_pad_format_conv_rule,
        # torch's exporter gives a convolution without bias zeros of a wrong shape when it does not optimise.
        rules.remove_optional_bias_from_conv_rule,
        rules.remove_optional_bias_from_conv_transpose_rule,
        rules.materialize_reshape_shape_rule,
        rules.reshape_reshape_rule,
        rules.transpose_transpose_rule,
        rules.no_op_transpose_rule,
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.collapse_slice_rule,
        rules.collapse_slice2_rule,
        rules.sub_0_rule,
        rules.div_by_1_rule,
    ]
    return [*chosen, *rules.mul_by_1_rule.commute(), *rules.add_0_rule.commute()]
