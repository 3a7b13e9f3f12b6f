"""Small pure questions about a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from fptq.errors import ModelError
from fptq.types import Array

Dim: TypeAlias = int | str | None
"""A fixed size, the name of a dynamic one, or unknown."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

_SCALINGS = frozenset({"Mul", "Div"})
_NON_WEIGHT_INPUTS = frozenset({"Reshape", "Pad", "Slice", "Expand", "Resize", "Tile", "Squeeze", "Unsqueeze", "TopK"})
"""Operations whose constant inputs say how, not with what."""


@dataclass(frozen=True, kw_only=True)
class ConvAttributes:
    """A convolution's attributes with ONNX's defaults filled in.

    Attributes:
        kernel: Kernel size, one entry per spatial axis.
        strides: Step per spatial axis.
        dilations: Spacing of kernel taps per spatial axis.
        pads: Zeros added before every spatial axis, then after every one; None when `auto_pad` decides.
        output_padding: ConvTranspose only: extra rows on the far side of each spatial axis.
        group: Number of groups.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    output_padding: tuple[int, ...]
    group: int

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The main graph's nodes, each after the nodes it reads from."""
    yield from model.graph


def node_named(model: ir.Model, name: str) -> ir.Node:
    """The node of that name.

    Raises:
        ModelError: No node has it.
    """
    for node in model.graph:
        if node.name == name:
            return node
    raise ModelError(f"no node is named {name!r}", remedy="Names are listed by `fptq inspect`")


def values(model: ir.Model) -> dict[str, ir.Value]:
    """Every value of the main graph by name: inputs, initializers and node outputs."""
    found = [*model.graph.inputs, *model.graph.initializers.values()]
    found += [output for node in model.graph for output in node.outputs]
    return {value.name: value for value in found if value.name}


def producer(value: ir.Value) -> ir.Node | None:
    """The node that computes a value; None for inputs and initializers."""
    return value.producer()


def readers(value: ir.Value) -> tuple[tuple[ir.Node, int], ...]:
    """The nodes that read a value, each with the index of the input."""
    return tuple((use.node, use.idx) for use in value.uses())


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value; None when several do or when the value is a graph output."""
    found = readers(value)
    return found[0][0] if len(found) == 1 and not value.is_graph_output() else None


def attention_product(value: ir.Value | None) -> ir.Node | None:
    """The MatMul of two activations that a value is, or is a multiple of; None where it is something else."""
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type in _SCALINGS and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    if maker is None or maker.op_type != "MatMul" or any(constant(operand) is not None for operand in maker.inputs):
        return None
    return maker


def constant(value: ir.Value | None) -> Array | None:
    """A value's content when it is stored in the file; None when it depends on the inputs."""
    if value is None or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy()


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a stored floating-point tensor that enters the arithmetic (not a shape or a pad)."""
    if value is None or value.is_graph_input() or value.const_value is None:
        return False
    if not value.const_value.dtype.is_floating_point():
        return False
    return any(reader.op_type not in _NON_WEIGHT_INPUTS or index == 0 for reader, index in readers(value))


def shape(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """A value's shape; dynamic sizes by name, unknown ones as None. None when nothing is known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """A value's shape when every size is fixed, else None."""
    dims = shape(value)
    if dims is None:
        return None
    fixed = tuple(dim for dim in dims if isinstance(dim, int))
    return fixed if len(fixed) == len(dims) else None


def rank(value: ir.Value | None) -> int | None:
    """Number of axes, or None when it is not known."""
    dims = shape(value)
    return None if dims is None else len(dims)


def conv_attributes(node: ir.Node) -> ConvAttributes:
    """Strides, pads and the rest of a Conv or ConvTranspose, defaults filled in.

    Raises:
        ModelError: The node is no convolution, or neither its kernel attribute nor its weight's shape is known.
    """
    if node.op_type not in CONVOLUTIONS:
        raise ModelError(f"node {node.name!r} is a {node.op_type}", rule="only convolutions have these attributes")
    weight = static_shape(node.inputs[1])
    kernel = _ints(node, "kernel_shape", default=weight[2:] if weight else None)
    if kernel is None:
        raise ModelError(f"node {node.name!r} has no known kernel shape", rule="a convolution's weight has a shape")
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    explicit = node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    return ConvAttributes(
        kernel=kernel,
        strides=_ints(node, "strides", default=ones) or ones,
        dilations=_ints(node, "dilations", default=ones) or ones,
        pads=_ints(node, "pads", default=zeros + zeros) if explicit else None,
        output_padding=_ints(node, "output_padding", default=zeros) or zeros,
        group=node.attributes.get_int("group", 1) or 1,
    )


def _ints(node: ir.Node, name: str, *, default: Sequence[int] | None) -> tuple[int, ...] | None:
    found = node.attributes.get_ints(name, default)
    return None if found is None else tuple(found)
