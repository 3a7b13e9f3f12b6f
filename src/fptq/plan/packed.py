"""The small file, whose weights of at most 4 bits share bytes, as standard ONNX; and the way back to what engines run.

Engines compute a convolution of INT4 weights in float, and refuse one of INT2 (OpenVINO 2026.4.1; ONNX Runtime 1.32 but
with its optimisations off): a packed file is made to be kept and sent, and is expanded when a session is compiled.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx_ir as ir

from fptq.graph.metadata import PACKED
from fptq.graph.model import Model
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, UniformParams, pack, unpack
from fptq.numerics.packing import WIDTHS
from fptq.numerics.spec import Granularity
from fptq.plan.encoding import Encoding
from fptq.plan.materialize import groups
from fptq.plan.plan import Plan
from fptq.types import Array

_DTYPES = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (2, True): ir.DataType.INT2,
    (2, False): ir.DataType.UINT2,
}
_WIDTHS = {dtype: form for form, dtype in _DTYPES.items()}

_OPSET_OF_2_BITS, _IR_VERSION_OF_2_BITS = 25, 13
"""The first with INT2 and UINT2. Between opset 21 and 25 operations only gain types and attributes."""


def packs(plan: Plan) -> bool:
    """Whether some weight has so few bits that it can share bytes; one of 5 to 7 bits takes 8 in any file."""
    return any(plan.specs[placement].container_bits in WIDTHS for placement in plan.weights)


def packed(model: Model, encoding: Encoding) -> Model:
    """A materialized model with weights of 4 and 2 bits as such, with their own codes and zero points.

    Weights of 3 bits take 4, weights of 5 to 7 bits 8: emulated, as the metadata say. All else stays as it is.

    Args:
        model: What `materialize` made of the encoding.
        encoding: The encoding.
    """
    changed = model.clone()
    stored = changed.graph.initializers
    bits: Counter[int] = Counter()
    emulated: dict[str, int] = {}
    about = {"opset": changed.opset_imports[""], "ir_version": changed.ir_version}
    for group in groups(encoding):
        held = stored.get(f"{group.stem}_quantized")
        if held is None:  # an activation, whose codes are computed
            continue
        bits[group.spec.bits] += 1
        if group.spec.emulated:
            emulated[group.value] = group.spec.bits
        if group.spec.container_bits not in WIDTHS:
            continue
        around_zero, zero_point = _array(held), group.params.zero_point
        _, spread = group.params.expanded(group.spec, around_zero.shape)
        _store(held, around_zero + spread, group.spec)
        _store(stored[f"{group.stem}_zero_point"], zero_point, group.spec)
        if group.spec.container_bits < 4:
            changed.opset_imports[""], changed.ir_version = _OPSET_OF_2_BITS, _IR_VERSION_OF_2_BITS
    widths = {str(width): bits[width] for width in sorted(bits)}
    changed.metadata_props[PACKED] = json.dumps({**about, "weights_of_bits": widths, "emulated": emulated})
    return model.with_graph(changed)


def expanded(model: ir.Model) -> ir.Model:
    """The int8 form of a packed model, equal to the materialized one in every code.

    Args:
        model: A model of any kind; it is not changed, and weights of 8 bits are what they are.
    """
    made = model.clone()
    for node in made.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            _expand(node, node.inputs[0])
    if PACKED in made.metadata_props:
        about = json.loads(made.metadata_props.pop(PACKED))
        made.opset_imports[""], made.ir_version = about["opset"], about["ir_version"]
    return made


def _expand(node: ir.Node, held: ir.Value) -> None:
    """Codes around zero in the weight of a DequantizeLinear, if it is packed."""
    if held.const_value is None or held.const_value.dtype not in _WIDTHS:
        return
    codes = _unpacked(held.const_value)
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None:
        assert zero.const_value is not None
        zero_point = _unpacked(zero.const_value)
        spec = QuantizerSpec(granularity=_granularity(node, zero_point, codes.ndim))
        params = UniformParams(scale=np.ones(zero_point.shape, np.float32), zero_point=zero_point)
        codes = codes - params.expanded(spec, codes.shape)[1]
        _hold(zero, ir.tensor(np.zeros_like(zero_point), name=zero.name))
    _hold(held, ir.tensor(codes.astype(np.int8), name=held.name))


def _granularity(node: ir.Node, zero_point: Array, rank: int) -> Granularity:
    if zero_point.ndim == 0:
        return PerTensor()
    axis = node.attributes.get_int("axis", 1) % rank
    size = node.attributes.get_int("block_size", 0)
    return PerBlock(axis=axis, size=size) if size else PerChannel(axis=axis)


def _store(value: ir.Value, codes: Array, spec: QuantizerSpec) -> None:
    form = spec.container_bits, spec.signed
    packed_codes = pack(codes, bits=form[0], signed=form[1])
    _hold(value, ir.PackedTensor(packed_codes, _DTYPES[form], shape=codes.shape, name=value.name))


def _hold(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    value.const_value, value.dtype = tensor, tensor.dtype


def _unpacked(tensor: ir.TensorProtocol) -> Array:
    bits, signed = _WIDTHS[tensor.dtype]
    raw = np.frombuffer(tensor.tobytes(), np.uint8)
    return unpack(raw, bits=bits, signed=signed, shape=tuple(tensor.shape.numpy()))


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()
