"""Einsum that is a product of matrices as MatMul, for which engines have integer kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

_EQUATION = re.compile(r"(?P<first>[A-Za-z]+),(?P<second>[A-Za-z]+)->(?P<result>[A-Za-z]+)")


@dataclass(frozen=True, kw_only=True)
class _Product:
    """What MatMul multiplies to compute an Einsum of two operands.

    Attributes:
        operands: Which is on the left, and which on the right.
        axes: The order of each one's axes, as Transpose takes it: `[*batch, row, inner]`, `[*batch, inner, column]`.
    """

    operands: tuple[int, int]
    axes: tuple[tuple[int, ...], tuple[int, ...]]

    @classmethod
    def of(cls, equation: str) -> _Product | None:
        """The product of an equation; None where there is none: other sums, traces, outer products, three operands.

        >>> _Product.of("bhxd,bhyd->bhxy")
        _Product(operands=(0, 1), axes=((0, 1, 2, 3), (0, 1, 3, 2)))
        """
        terms = _EQUATION.fullmatch(equation.replace(" ", ""))
        if terms is None or any(len(set(term)) != len(term) for term in terms.groups()):
            return None
        first, second, result = terms.groups()
        inner = [axis for axis in first if axis in second and axis not in result]
        if len(inner) != 1 or len(result) < 2:
            return None
        batch, row, column = result[:-2], result[-2], result[-1]
        operands = (0, 1) if row in first else (1, 0)
        wanted = ([*batch, row, *inner], [*batch, *inner, column])
        given = tuple((first, second)[operand] for operand in operands)
        if any(sorted(axes) != sorted(term) for axes, term in zip(wanted, given, strict=True)):
            return None  # an axis that is summed within one operand, or a batch axis that lies behind
        left, right = (tuple(term.index(axis) for axis in axes) for axes, term in zip(wanted, given, strict=True))
        return cls(operands=operands, axes=(left, right))


def einsum_as_matmul(model: ir.Model) -> None:
    """Write every Einsum that multiplies piles of matrices as MatMul behind the Transposes that it takes, in place.

    MONAI's attention is written so.
    """
    for node in list(model.graph):
        if node.op_type != "Einsum" or node.domain or len(node.inputs) != 2:
            continue
        product = _Product.of(node.attributes.get_string("equation", "") or "")
        if product is None:
            continue
        nodes: list[ir.Node] = []
        operands = [
            _turned(node.inputs[operand], axes, name=f"{node.name}_operand_{operand}", nodes=nodes)
            for operand, axes in zip(product.operands, product.axes, strict=True)
        ]
        nodes.append(ir.node("MatMul", operands, name=node.name))
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs)


def _turned(value: ir.Value | None, axes: tuple[int, ...], *, name: str, nodes: list[ir.Node]) -> ir.Value:
    """A value with its axes in another order; the Transpose for it, where there is one, is added to the nodes."""
    assert value is not None
    if axes == tuple(range(len(axes))):
        return value
    nodes.append(ir.node("Transpose", [value], {"perm": axes}, name=name))
    return nodes[-1].outputs[0]
