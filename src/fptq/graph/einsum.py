"""Einsum that is a product of matrices as MatMul, for which engines have integer kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

_EQUATION = re.compile(r"(?P<left>[A-Za-z]+),(?P<right>[A-Za-z]+)->(?P<result>[A-Za-z]+)")


@dataclass(frozen=True, kw_only=True)
class _Product:
    """How the axes of two operands and a result lie, as Transpose takes it, for MatMul to compute an Einsum.

    Attributes:
        left: Of the first operand, to `[*batch, row, inner]`.
        right: Of the second, to `[*batch, inner, column]`.
        result: Of `[*batch, row, column]`, to the result.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    result: tuple[int, ...]

    @classmethod
    def of(cls, equation: str) -> _Product | None:
        """The product of an equation; None where it is another one: sums, traces, outer products, three operands.

        >>> _Product.of("bhxd,bhyd->bhxy")
        _Product(left=(0, 1, 2, 3), right=(0, 1, 3, 2), result=(0, 1, 2, 3))
        """
        terms = _EQUATION.fullmatch(equation.replace(" ", ""))
        if terms is None or any(len(set(term)) != len(term) for term in terms.groups()):
            return None
        left, right, result = terms.groups()
        rows = [axis for axis in left if axis in result and axis not in right]
        columns = [axis for axis in right if axis in result and axis not in left]
        inner = [axis for axis in left if axis in right and axis not in result]
        batch = [axis for axis in result if axis in left and axis in right]
        if not len(rows) == len(columns) == len(inner) == 1:
            return None
        wanted = ([*batch, *rows, *inner], [*batch, *inner, *columns], [*batch, *rows, *columns])
        if (
            sorted(wanted[0]) != sorted(left)
            or sorted(wanted[1]) != sorted(right)
            or sorted(wanted[2]) != sorted(result)
        ):
            return None
        return cls(
            left=tuple(left.index(axis) for axis in wanted[0]),
            right=tuple(right.index(axis) for axis in wanted[1]),
            result=tuple(wanted[2].index(axis) for axis in result),
        )


def einsum_as_matmul(model: ir.Model) -> None:
    """Write every Einsum that multiplies piles of matrices as MatMul between the Transposes that it takes, in place.

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
            _turned(value, axes, name=f"{node.name}_{side}", nodes=nodes)
            for value, axes, side in zip(node.inputs, (product.left, product.right), ("left", "right"), strict=True)
        ]
        nodes.append(ir.node("MatMul", operands, name=node.name))
        result = _turned(nodes[-1].outputs[0], product.result, name=f"{node.name}_result", nodes=nodes)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, [result])


def _turned(value: ir.Value | None, axes: tuple[int, ...], *, name: str, nodes: list[ir.Node]) -> ir.Value:
    """A value with its axes in another order; the Transpose for it, where there is one, is added to the nodes."""
    assert value is not None
    if axes == tuple(range(len(axes))):
        return value
    nodes.append(ir.node("Transpose", [value], {"perm": axes}, name=name))
    return nodes[-1].outputs[0]
