"""A scale for each token, found when the network runs, on the kernels of a fixed scale.

Each row of an activation (its last axis) is divided by how far it reaches, `r = max(max(x) / h, min(x) / l)`; a fixed
quantizer of range `[l, h]` rounds it, an ordinary integer product multiplies it, and the result is multiplied by
`r` before the bias: `W x + b = r (W (x / r)) + b`. The integers are those of a quantizer whose scale is `r` times as
large, one for each token; no operation with a scale of its own is needed, and no row ever saturates.
Source: per-token dynamic quantization of Yao et al., ZeroQuant, NeurIPS 2022, arXiv 2206.01861; as a fixed quantizer
between two scalings here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import params_from_range
from fptq.plan.encoding import Encoding
from fptq.rewrite.draft import Draft
from fptq.rewrite.insertion import Insertion
from fptq.rewrite.product_inputs import ProductInput
from fptq.types import Array

LEAST = 1e-30
"""A row that reaches no farther counts as one that does: a row of zeros has zeros, not NaN."""

Ends = tuple[float, float]
"""What a row may reach after it was divided: `low <= 0 <= high`."""


def reach(rows: Array, ends: Ends) -> Array:
    """How far each row of `f32[..., C]` reaches, `f32[..., 1]`: divided by it, it lies within the ends."""
    found = np.full((*rows.shape[:-1], 1), LEAST, np.float32)
    for end, extreme in ((ends[0], rows.min), (ends[1], rows.max)):
        if end:
            found = np.maximum(found, extreme(axis=-1, keepdims=True) * np.float32(1 / end))
    return found


def takes_tokens(model: Model, cut: ProductInput) -> bool:
    """Whether rows of an activation can be scaled: its channels are the last axis, and Gemms do nothing but add."""
    nodes = [query.node_named(model.graph_model, name) for name in cut.readers]
    value = query.values(model.graph_model)[cut.value]
    return cut.axis + 1 == query.rank(value) and all(_is_plain(node) for node in nodes)


def _is_plain(node: ir.Node) -> bool:
    factors = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and factors == (1.0, 1.0))


def scale_tokens(draft: Draft, encoding: Encoding, *, cut: ProductInput, ends: Ends) -> Encoding:
    """Divide the rows of an activation before products, and multiply behind them.

    The float network computes the same, but for rounding, whatever its input. Names of nodes and values stay.

    Args:
        draft: The float network; changed in place.
        encoding: Its quantizers.
        cut: What is scaled: one of `product_inputs` that `takes_tokens`.
        ends: The range of the fixed quantizer; a low end of 0 is for activations that are never negative.
    """
    _Writer(draft=draft, readers=cut.readers, cut=cut, ends=ends).write()
    return _scaled_encoding(encoding, cut, ends)


def _scaled_encoding(encoding: Encoding, cut: ProductInput, ends: Ends) -> Encoding:
    plan = encoding.plan
    renamed = {p: Placement(_scaled(cut), p.consumer, p.index) for p in cut.placements}
    fixed = params_from_range(cut.spec, *ends)
    return replace(
        encoding,
        plan=replace(
            plan,
            specs={renamed.get(p, p): spec for p, spec in plan.specs.items()},
            # The bias is added behind the product, in float.
            int32_bias=plan.int32_bias - set(cut.readers),
        ),
        params={renamed.get(p, p): fixed if p in renamed else encoding.params[p] for p in plan.specs},
    )


def _scaled(cut: ProductInput) -> str:
    return f"{cut.value}_per_token"


@dataclass(kw_only=True)
class _Writer(Insertion):
    """Scales the rows of one activation of a draft."""

    cut: ProductInput
    ends: Ends

    def write(self) -> None:
        source = query.values(self.changed)[self.cut.value]
        reach = self._reach(source)
        scaled = self.op("Div", [source, reach], _scaled(self.cut), like=source)
        for name in self.cut.readers:
            self._between(query.node_named(self.changed, name), scaled, reach)

    def _reach(self, source: ir.Value) -> ir.Value:
        name = f"{self.cut.value}_reach"
        axis = self.stored(f"{name}_axis", np.asarray([-1], np.int64))
        found = [self.stored(f"{name}_least", np.asarray(LEAST, np.float32))]
        for op, end in (("ReduceMin", self.ends[0]), ("ReduceMax", self.ends[1])):
            if not end:
                continue
            extreme = self._row(op, [source, axis], f"{name}_{op[6:].lower()}", source)
            factor = self.stored(f"{name}_{op[6:].lower()}_factor", np.asarray(1 / end, np.float32))
            found.insert(0, self._row("Mul", [extreme, factor], f"{extreme.name}_share", source))
        return self._row("Max", found, name, source)

    def _row(self, op: str, inputs: list[ir.Value], name: str, source: ir.Value) -> ir.Value:
        """One number for each row."""
        attributes = {"keepdims": 1} if op.startswith("Reduce") else {}
        found = self.op(op, inputs, name, like=source, **attributes)
        if source.shape is not None:
            found.shape = ir.Shape([*source.shape[:-1], 1])
        return found

    def _between(self, node: ir.Node, scaled: ir.Value, reach: ir.Value) -> None:
        """Let a product read what was divided; multiply its result, and add its bias there."""
        graph, result = self.changed.graph, node.outputs[0]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        product = self._product(node, scaled)
        behind = [ir.node("Mul", [product.outputs[0], reach], name=f"{node.name}_rescaled")]
        if bias is not None:
            behind.append(ir.node("Add", [behind[0].outputs[0], bias], name=f"{node.name}_biased"))
        name, last = str(result.name), behind[-1].outputs[0]
        result.replace_all_uses_with(last, replace_graph_outputs=True)
        graph.insert_after(node, [product, *behind])
        graph.remove(node, safe=True)
        for made, label in zip((product, *behind), (f"{name}_of_scaled", f"{name}_rescaled", name), strict=False):
            value = made.outputs[0]
            value.name, value.shape = label, result.shape
            if result.dtype is not None:
                value.dtype = result.dtype
        last.name = name
        self.trace(*behind)

    def _product(self, node: ir.Node, scaled: ir.Value) -> ir.Node:
        """The product without its bias: a MatMul where it can be one, which engines multiply behind for less."""
        weight = node.inputs[1]
        if node.attributes.get_int("transB", 0):
            return ir.node("Gemm", [scaled, weight], {"transB": 1}, name=str(node.name))
        return ir.node("MatMul", [scaled, weight], name=str(node.name))
