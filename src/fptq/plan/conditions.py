"""Requirements of integer kernels: each is called with a node and gives the reason why it fails, or None."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from fptq.graph import query
from fptq.plan.profile import channel_axis, input_axis


@dataclass(frozen=True, kw_only=True)
class SpatialRank:
    """Only convolutions of at most this many spatial axes."""

    most: int
    because: str

    def __call__(self, node: ir.Node) -> str | None:
        rank = query.conv_attributes(node).rank
        return None if rank <= self.most else f"{rank} spatial axes: {self.because}"


@dataclass(frozen=True, kw_only=True)
class AlignedChannels:
    """Input and output channels of a convolution of more than `free_rank` axes fit the kernel's blocks."""

    free_rank: int
    inputs: int
    outputs: int
    least_outputs: int
    because: str

    def __call__(self, node: ir.Node) -> str | None:
        weight = query.static_shape(node.inputs[1])
        attributes = query.conv_attributes(node)
        if weight is None or attributes.rank <= self.free_rank:
            return None
        c_out, c_in = (weight[axis(node, len(weight))] for axis in (channel_axis, input_axis))
        aligned = c_in % self.inputs == 0 and c_out % self.outputs == 0 and c_out >= self.least_outputs
        if aligned and attributes.group == 1:
            return None
        return f"{c_in} -> {c_out} channels in {attributes.group} group(s): {self.because}"


@dataclass(frozen=True, kw_only=True)
class MatrixWeight:
    """The stored weight is a matrix."""

    def __call__(self, node: ir.Node) -> str | None:
        rank = query.rank(node.inputs[1])
        return None if rank == 2 else f"the weight has {rank} axes; integer matrix products take a matrix"


@dataclass(frozen=True, kw_only=True)
class PlainGemm:
    """`alpha = beta = 1` and an untransposed activation."""

    def __call__(self, node: ir.Node) -> str | None:
        scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
        transposed = node.attributes.get_int("transA", 0) == 1
        if scaled or transposed:
            return "alpha, beta or transA are set; the integer kernel takes a plain product"
        return None
