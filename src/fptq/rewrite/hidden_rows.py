"""Rows of attention that a mask hides altogether, found in the mask and not in the scores.

The softmax of a row of minus infinities is NaN. PyTorch's exporter looks for NaN in all scores, `[N, heads, T, T]`, and
writes zeros there, even where it has made the mask of finite numbers: two passes over the largest tensors of a
transformer, and engines no longer see MatMul - Add - Softmax - MatMul, which one kernel computes. Which rows are hidden
is in the mask, and the mask is the same for all heads and mostly for all queries.
Source: `_aten_scaled_dot_product_attention_bool_mask_onnx` in onnxscript's torch_lib.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.rewrite.draft import Draft
from fptq.rewrite.insertion import Insertion


@dataclass(frozen=True, kw_only=True)
class _Guard:
    """Zeros in place of NaN behind a Softmax.

    Attributes:
        is_nan: Finds them.
        where: Writes the zeros.
        softmax: In front of it.
        product: The MatMul of attention, behind it.
        mask: The Add of a mask that may hide a row, and which of its inputs that is; None where no row can be hidden.
    """

    is_nan: ir.Node
    where: ir.Node
    softmax: ir.Node
    product: ir.Node
    mask: tuple[ir.Node, int] | None


def hidden_rows_by_mask(model: Model) -> Model:
    """The model with rows that a mask hides found by the mask: `where(seen, softmax(scores + mask') @ V, 0)`.

    `seen` is where not all of a row of the mask is minus infinity, `mask'` is 0 elsewhere. Where nothing is added to
    the scores, or finite stored numbers are, no row is hidden, and `softmax(scores + mask) @ V` is left. The result is
    the same for all scores within 1e30; the exporter's guard makes zeros of what overflows, too.

    Args:
        model: A canonical model.

    Returns:
        The rewritten model; the same model where no Softmax of attention is guarded.
    """
    if not any(_guard(node) for node in model.graph):
        return model
    draft = Draft(model=model)
    for guard in [found for node in draft.changed.graph if (found := _guard(node)) is not None]:
        _rewrite(draft, guard)
    return draft.finished()


def _guard(node: ir.Node) -> _Guard | None:
    """The guard whose IsNaN a node is, if it is one."""
    if node.op_type != "IsNaN" or node.inputs[0] is None:
        return None
    where, softmax = query.sole_reader(node.outputs[0]), node.inputs[0].producer()
    if where is None or softmax is None or not _makes_zeros(where, node, softmax):
        return None
    product = query.sole_reader(where.outputs[0])
    if product is None or product.op_type != "MatMul" or product.inputs[0] is not where.outputs[0]:
        return None
    if product.outputs[0].is_graph_output():
        return None
    return _masked(_Guard(is_nan=node, where=where, softmax=softmax, product=product, mask=None))


def _makes_zeros(where: ir.Node, is_nan: ir.Node, softmax: ir.Node) -> bool:
    """Whether a Where writes zeros for what is NaN of a Softmax along the last axis that nobody else reads."""
    result = softmax.outputs[0]
    if where.op_type != "Where" or softmax.op_type != "Softmax" or where.inputs[2] is not result:
        return False
    zero, rank = query.constant(where.inputs[1]), query.rank(result)
    only_these = {reader for reader, _ in query.readers(result)} == {is_nan, where} and not result.is_graph_output()
    along_last = softmax.attributes.get_int("axis", -1) in (-1, rank and rank - 1)
    return only_these and along_last and zero is not None and zero.dtype == np.float32 and not zero.any()


def _masked(guard: _Guard) -> _Guard | None:
    """The guard with its mask; None where the scores are no product."""
    scores = guard.softmax.inputs[0]
    if query.attention_product(scores) is not None:
        return guard
    add = scores.producer() if scores is not None else None
    if add is None or add.op_type != "Add":
        return None
    products = [query.attention_product(operand) is not None for operand in add.inputs]
    if sum(products) != 1:
        return None
    index = products.index(False)
    return guard if _is_finite(add.inputs[index]) else replace(guard, mask=(add, index))


def _is_finite(mask: ir.Value | None) -> bool:
    """Whether a mask is made of finite stored numbers."""
    maker = mask.producer() if mask is not None else None
    parts = maker.inputs[1:] if maker is not None and maker.op_type == "Where" else [mask]
    stored = [query.constant(part) for part in parts]
    return all(content is not None and bool(np.isfinite(content).all()) for content in stored)


def _rewrite(draft: Draft, guard: _Guard) -> None:
    written = Insertion(draft=draft, readers=[str(guard.where.name)])
    if guard.mask is not None:
        add, index = guard.mask
        mask, result = add.inputs[index], guard.product.outputs[0]
        assert mask is not None
        add.replace_input_with(index, _shown(written, mask, mask))
        shown = _shown(written, mask, result)
        for reader, place in query.readers(result):
            if reader is not shown.producer():
                reader.replace_input_with(place, shown)
    guard.product.replace_input_with(0, guard.softmax.outputs[0])
    draft.changed.graph.remove([guard.where, guard.is_nan], safe=True)
    for node in (guard.where, guard.is_nan):
        draft.origin.pop(str(node.name), None)


def _shown(written: Insertion, mask: ir.Value, value: ir.Value) -> ir.Value:
    """A value with zeros in the rows that a mask hides; made once."""
    name = f"{value.name}_shown"
    made = query.values(written.changed).get(name)
    zero = written.stored("fptq_zero", np.zeros((), np.float32))
    return made or written.op("Where", [_seen(written, mask), value, zero], name, like=value)


def _seen(written: Insertion, mask: ir.Value) -> ir.Value:
    """Which rows a mask leaves something of, `bool[..., 1]`; made once."""
    name = f"{mask.name}_seen"
    made = query.values(written.changed).get(name)
    if made is not None:
        return made
    nothing = written.stored("fptq_hidden", np.array(-np.inf, np.float32))
    last = written.stored("fptq_last_axis", np.array([-1], np.int64))
    zero = written.stored("fptq_zero", np.zeros((), np.float32))
    # Of ones and zeros: the largest of minus infinities is -3.4e38 to OpenVINO 2026.4.1 where it knows them.
    leaves = written.op("Greater", [mask, nothing], f"{mask.name}_leaves", like=mask)
    leaves.dtype = ir.DataType.BOOL
    counted = written.op("Cast", [leaves], f"{mask.name}_counted", like=mask, to=ir.DataType.FLOAT)
    most = written.op("ReduceMax", [counted, last], f"{mask.name}_most", like=mask, keepdims=1)
    if mask.shape is not None:
        most.shape = ir.Shape([*list(mask.shape)[:-1], 1])
    seen = written.op("Greater", [most, zero], name, like=most)
    seen.dtype = ir.DataType.BOOL
    return seen
