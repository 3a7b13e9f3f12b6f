"""What a positive factor passes through: operations with `f(s x) = s f(x)` for `s > 0`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fptq.graph import query

_HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Identity"}
    | {"Dropout", "Resize", "Flatten", "Reshape", "Slice", "Transpose", "Pad", "Squeeze", "Unsqueeze", "DepthToSpace"}
    | {"SpaceToDepth", "ReduceMean", "ReduceMax", "Expand"}
)


def is_homogeneous(node: ir.Node) -> bool:
    """Whether a positive factor of a node's first input comes out of it."""
    if node.op_type not in _HOMOGENEOUS or node.domain:
        return False
    match node.op_type:
        case "PRelu":
            return query.constant(node.inputs[1]) is not None
        case "Resize":  # outside of the box that this mode takes, there is a value that no factor reaches
            return node.attributes.get_string("coordinate_transformation_mode", "") != "tf_crop_and_resize"
        case "Pad":
            filling = node.inputs[2] if len(node.inputs) > 2 else None
            content = query.constant(filling)
            return filling is None or (content is not None and not np.any(content))
    return True
