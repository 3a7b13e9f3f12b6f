"""A bias that adds nothing, for convolutions that several nodes read.

OpenVINO scales the sums of an integer convolution behind it. With a dynamic axis and several readers it does so once
for each of them, one after the other, in the convolution: all read wrong numbers. It does not where a bias comes first,
and it drops one of zeros.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model

_NOTHING = np.float32(1e-30)
"""Less than the last bit of any sum that is not below 1e-22."""
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def bias_for_several_readers(model: Model) -> Model:
    """The model whose convolutions of dynamic shape and several readers have a bias; the same if all have.

    Args:
        model: A canonical model.
    """
    names = [str(node.name) for node in model.graph if _lacks_bias(node)]
    if not names:
        return model
    changed = model.clone()
    for name in names:
        node = query.node_named(changed, name)
        count = _channels(node)
        assert count is not None
        bias = ir.val(f"{name}_nothing", const_value=ir.Tensor(np.full(count, _NOTHING), name=f"{name}_nothing"))
        changed.graph.register_initializer(bias)
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
    return model.with_graph(changed)


def _lacks_bias(node: ir.Node) -> bool:
    if node.op_type not in _CONVOLUTIONS or node.domain or query.static_shape(node.outputs[0]) is not None:
        return False
    readers = len(node.outputs[0].uses()) + node.outputs[0].is_graph_output()
    bias = query.constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(0)
    return readers > 1 and bias is not None and not bias.any() and _channels(node) is not None


def _channels(node: ir.Node) -> int | None:
    """Of the result."""
    weight = query.static_shape(node.inputs[1])
    if weight is None:
        return None
    return weight[0] if node.op_type == "Conv" else weight[1] * query.conv_attributes(node).group
