"""ONNX files without their large weights, which are grown again from seeds: megabytes become kilobytes.

The weights of the GPU benchmark are random anyway. A large float tensor is uniform numbers of a seeded generator's raw
bits, whose stream numpy promises to keep; integer codes are those numbers, divided by the file's own scales.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from fptq.graph.model import Model
from fptq.types import Array

LARGE = 4096
"""Values from which on a tensor is grown."""


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A tensor of uniform numbers.

    Attributes:
        number: Of the generator.
        bound: Their largest magnitude.
    """

    number: int
    bound: float

    def grown(self, shape: tuple[int, ...]) -> Array:
        """The tensor: 24 bits of each raw number, so that float32 holds it exactly before it is scaled."""
        bits = np.random.PCG64(self.number).random_raw(int(np.prod(shape))) >> np.uint64(40)
        unit = bits.astype(np.float64) * 2.0**-23 - 1.0
        return (unit * self.bound).astype(np.float32).reshape(shape)


def seeded(model: Model) -> tuple[Model, dict[str, Seed]]:
    """The network with its large float weights replaced by seeded ones of the same standard deviation."""
    changed = model.clone()
    seeds: dict[str, Seed] = {}
    for number, (name, value) in enumerate(changed.graph.initializers.items()):
        content = value.const_value
        if content is None or content.dtype != ir.DataType.FLOAT or content.size < LARGE:
            continue
        array = content.numpy()
        if len(np.unique(array)) < LARGE // 4:  # a mask or a table, not weights
            continue
        seeds[name] = Seed(number=number, bound=float(np.sqrt(3.0) * array.std()))
        value.const_value = ir.tensor(seeds[name].grown(array.shape), name=name)
    return model.with_graph(changed), seeds


def pack(path: Path, target: Path, seeds: Mapping[str, Seed]) -> None:
    """Write a file of seeded weights without them, compressed, with what it takes to grow them."""
    proto = onnx.load(path)
    axes = {node.input[0]: _axis(node) for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    scales = {node.input[0]: node.input[1] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    digest, grown = _digest(proto), {}
    for name, tensor in tensors.items():
        source = name.removesuffix("_quantized")
        if name in seeds:
            grown[name] = {**vars(seeds[name])}
        elif source in seeds and name in axes:
            scale = numpy_helper.to_array(tensors[scales[name]])
            codes = _codes(seeds[source].grown(tuple(tensor.dims)), scale, axes[name])
            if not np.array_equal(codes, numpy_helper.to_array(tensor)):
                continue
            grown[name] = {**vars(seeds[source]), "scale": scales[name], "axis": axes[name]}
        else:
            continue
        tensor.ClearField("raw_data")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".onnx.xz").write_bytes(lzma.compress(proto.SerializeToString()))
    target.with_suffix(".json").write_text(json.dumps({"sha256": digest, "grown": grown}), encoding="utf-8")


def unpack(packed: Path, path: Path) -> None:
    """Grow the weights of a packed file again.

    Raises:
        ValueError: They are not what they were.
    """
    recipe = json.loads(packed.with_suffix(".json").read_text(encoding="utf-8"))
    proto = onnx.load_from_string(lzma.decompress(packed.with_suffix(".onnx.xz").read_bytes()))
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, how in recipe["grown"].items():
        content = Seed(number=how["number"], bound=how["bound"]).grown(tuple(tensors[name].dims))
        if "scale" in how:
            content = _codes(content, numpy_helper.to_array(tensors[how["scale"]]), how["axis"])
        tensors[name].raw_data = content.tobytes()
    if _digest(proto) != recipe["sha256"]:
        raise ValueError(f"{packed.name}: the weights that were grown are not the ones that were packed")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())


def _codes(weights: Array, scale: Array, axis: int) -> Array:
    shape = [1] * weights.ndim
    if scale.ndim:
        shape[axis] = scale.size
    return np.clip(np.rint(weights / scale.reshape(shape)), -128, 127).astype(np.int8)


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def _digest(proto: onnx.ModelProto) -> str:
    digest = hashlib.sha256()
    for tensor in sorted(proto.graph.initializer, key=lambda tensor: tensor.name):
        digest.update(tensor.name.encode() + numpy_helper.to_array(tensor).tobytes())
    return digest.hexdigest()
