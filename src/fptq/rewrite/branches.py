"""Two ranges in one Concat: where a skip meets its decoder, the branches are scaled to ranges of one size.

In a U-Net a skip of small values is joined with upsampled values hundreds of times as large: one scale for both rounds
the skip to zero, and the weights that make up for it drown their neighbours. A branch that is scaled by `f` where it is
computed, and whose part of the next layer's weights is divided by `f`, has a quantizer of its own without a node or a
microsecond: codes of one Concat, two scales. Factors are powers of two, so that float results stay bit for bit.

Which factor: SmoothQuant's balance (Xiao et al. 2023, arXiv 2211.10438, equation 4) for a branch as a whole,
`s = max|X|^alpha / max|W|^(1 - alpha)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.rest import put_to_rest
from fptq.plan.profile import STORED_WEIGHTS, input_axis
from fptq.rewrite.channels import channel_maxima
from fptq.rewrite.homogeneous import is_homogeneous
from fptq.rewrite.stored import write_stored
from fptq.types import Array, Feeds

_SUMS = frozenset({"Add", "Sum", "Sub"})
_NORMS = frozenset({"InstanceNormalization", "GroupNormalization", "LayerNormalization"})
"""What forgets the size of its input, but for epsilon."""
_POINTWISE = frozenset({"Relu", "LeakyRelu", "Identity", "Dropout", "MaxPool", "AveragePool"})
"""What leaves channels where they are."""

_LARGEST = 2.0**16
"""A branch that needs more is all but zero: left alone."""


class _Fixed(Exception):
    """A factor cannot be moved: something would compute other results."""


@dataclass(kw_only=True)
class _Move:
    """What has to change for a value to be computed, and read, scaled by a factor.

    Attributes:
        scaled: The values that carry the factor.
        powers: By node and input: stored tensors to multiply by the factor to this power.
        squared: Norms that read a scaled value: their epsilon goes with the square.
        joins: Concats that read one.
    """

    scaled: dict[ir.Value, None] = field(default_factory=dict)
    powers: dict[tuple[ir.Node, int], int] = field(default_factory=dict)
    squared: dict[ir.Node, None] = field(default_factory=dict)
    joins: dict[ir.Node, None] = field(default_factory=dict)

    @classmethod
    def of(cls, branch: ir.Value) -> _Move:
        """The smallest change around a branch.

        Raises:
            _Fixed: There is none.
        """
        move = cls()
        open_values = [branch]
        while open_values:
            value = open_values.pop()
            if value in move.scaled:
                continue
            if value.is_graph_output() or value.is_graph_input() or value.const_value is not None:
                raise _Fixed
            move.scaled[value] = None
            open_values += move._computed(value)
            for node, index in query.readers(value):
                open_values += move._read(node, index)
        return move

    def _computed(self, value: ir.Value) -> Iterator[ir.Value]:
        """The values that must carry the factor for their result to do so."""
        node = query.producer(value)
        assert node is not None
        if node.op_type in STORED_WEIGHTS or node.op_type in _NORMS:
            self._multiply(node, 1, 1)
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                self._multiply(node, 2, 1)
        elif node.op_type in _SUMS:
            for index, operand in enumerate(node.inputs):
                if query.constant(operand) is not None:
                    self._multiply(node, index, 1)
                elif operand is not None:
                    yield operand
        elif node.op_type == "Concat" and None not in node.inputs:
            yield from (operand for operand in node.inputs if operand is not None)
        elif is_homogeneous(node) and node.inputs[0] is not None:
            yield node.inputs[0]
        else:
            raise _Fixed

    def _read(self, node: ir.Node, index: int) -> Iterator[ir.Value]:
        """The values that carry the factor because this node reads one that does."""
        if node.op_type in STORED_WEIGHTS and index == 0:
            self._multiply(node, 1, -1)
        elif node.op_type in _NORMS and index == 0:
            self.squared[node] = None
        elif node.op_type in _SUMS or (index == 0 and is_homogeneous(node)):
            yield node.outputs[0]
        elif node.op_type == "Concat":
            self.joins[node] = None
        else:
            raise _Fixed

    def _multiply(self, node: ir.Node, index: int, power: int) -> None:
        """Take note of a stored tensor; a weight is left in place only where nobody else reads it."""
        value = node.inputs[index]
        content = query.constant(value)
        shared = value is not None and (len(query.readers(value)) > 1 or value.is_graph_output())
        if content is None or content.dtype.kind != "f" or (node.op_type in STORED_WEIGHTS and index == 1 and shared):
            raise _Fixed
        self.powers[node, index] = self.powers.get((node, index), 0) + power

    def parts(self) -> Iterator[tuple[ir.Node, slice]]:
        """The layers that read scaled values beside others in a Concat, each with the input channels that are.

        Raises:
            _Fixed: Something else reads them there.
        """
        for join in self.joins:
            if join.outputs[0] in self.scaled:
                continue
            start = 0
            for operand in join.inputs:
                width = _channels(operand)
                if operand in self.scaled:
                    yield from ((node, slice(start, start + width)) for node in _layers_behind(join))
                start += width

    def apply(self, changed: ir.Model, factor: float) -> None:
        """Change the network, in place."""
        for (node, index), power in self.powers.items():
            if power:
                _scale(changed, node, index, np.float64(factor) ** power)
        for node, part in list(self.parts()):
            weight = query.constant(node.inputs[1])
            assert weight is not None
            axis = input_axis(node, weight.ndim)
            factors = np.ones(weight.shape[axis])
            factors[part] /= factor
            _scale(changed, node, 1, factors.reshape([-1 if at == axis else 1 for at in range(weight.ndim)]))
        for node in self.squared:
            epsilon = node.attributes.get_float("epsilon", 1e-5)
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon * factor**2)


def branches_levelled(model: Model, feeds: Iterable[Feeds], *, alpha: float = 0.5) -> Model | None:
    """The model with branches of one size at its concatenations of channels; it computes the same.

    Names of nodes and values stay, so a plan for the model is one for the result. The factor of a branch goes into
    the layers and norms that compute it, through activations, poolings and residual additions, and out of all that
    read it. A branch whose factor has nowhere to go (a sigmoid, an output of the network) is left alone; so is a
    Concat behind which something else than layers reads the channels.

    Args:
        model: The float network.
        feeds: A few samples, for the largest magnitude of each branch.
        alpha: The share of the activations' range that moves into the weights, in [0, 1].

    Returns:
        The model; None where there is nothing to level.

    Raises:
        ValueError: `alpha` is out of range.
        EngineError: ONNX Runtime failed on a sample.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha}: it is between 0 and 1")
    names = [str(branch.name) for node in model.graph if _levels(node) for branch in node.inputs if branch is not None]
    if not names:
        return None
    found = channel_maxima(model, dict.fromkeys(names, 1), feeds)
    largest = {name: float(maxima.max()) for name, maxima in found.items()}
    changed, moved = model.clone(), False
    for node in changed.graph:
        if _levels(node):
            moved |= _levelled(changed, node, largest, alpha)
    if not moved:
        return None
    put_to_rest(changed)
    return model.with_graph(changed)


def _levelled(changed: ir.Model, join: ir.Node, largest: dict[str, float], alpha: float) -> bool:
    """Level the branches of one Concat, in place, and what is known of their sizes; whether anything moved."""
    branches = [branch for branch in join.inputs if branch is not None]
    sizes = _sizes(join, branches, largest, alpha)
    moves = {branch: move for branch in sizes if (move := _move(branch, branches)) is not None}
    if len(sizes) < 2 or not moves:
        return False
    # One branch stays: one that cannot move, or the one that most hangs on.
    fixed = max(sizes, key=lambda branch: (branch not in moves, len(moves[branch].scaled) if branch in moves else 0))
    moved = False
    for branch, move in moves.items():
        if branch is fixed:
            continue
        factor = 2.0 ** round(math.log2(sizes[fixed] / sizes[branch]))
        if factor != 1 and 1 / _LARGEST <= factor <= _LARGEST:
            move.apply(changed, factor)
            for value in move.scaled:
                if value.name in largest:
                    largest[value.name] *= factor
            moved = True
    return moved


def _sizes(
    join: ir.Node, branches: list[ir.Value], largest: Mapping[str, float], alpha: float
) -> dict[ir.Value, float]:
    """Equation 4 for each branch that is not zero, nor its weights."""
    sizes: dict[ir.Value, float] = {}
    start = 0
    for branch in branches:
        part = slice(start, start := start + _channels(branch))
        weights = max(float(np.abs(_input_channels(node)[part]).max()) for node in _layers_behind(join))
        if largest[str(branch.name)] > 0 and weights > 0:
            sizes[branch] = largest[str(branch.name)] ** alpha / weights ** (1 - alpha)
    return sizes


def _move(branch: ir.Value, branches: list[ir.Value]) -> _Move | None:
    """How a branch is scaled without the others; None where it cannot be."""
    try:
        move = _Move.of(branch)
        list(move.parts())
    except _Fixed:
        return None
    return move if sum(other in move.scaled for other in branches) == 1 else None


def _levels(node: ir.Node) -> bool:
    """Whether a node joins channels for layers alone."""
    rank = query.rank(node.outputs[0])
    if node.op_type != "Concat" or rank is None or node.attributes.get_int("axis", 0) % rank != 1:
        return False
    if len(set(node.inputs)) < len(node.inputs) or not all(_channels(branch) for branch in node.inputs):
        return False
    try:
        return bool(list(_layers_behind(node)))
    except _Fixed:
        return False


def _layers_behind(join: ir.Node) -> Iterator[ir.Node]:
    """The layers that read the channels of a Concat.

    Raises:
        _Fixed: Something else does.
    """
    open_values = [join.outputs[0]]
    while open_values:
        value = open_values.pop()
        if value.is_graph_output():
            raise _Fixed
        for node, index in query.readers(value):
            if node.op_type in _POINTWISE and is_homogeneous(node):
                open_values.append(node.outputs[0])
            elif node.op_type in query.CONVOLUTIONS and index == 0 and _is_own(node):
                yield node
            else:
                raise _Fixed


def _is_own(node: ir.Node) -> bool:
    """Whether a convolution has a stored weight for itself, of one group."""
    weight = node.inputs[1]
    stored = query.constant(weight)
    if weight is None or stored is None or node.attributes.get_int("group", 1) != 1:
        return False
    return stored.dtype.kind == "f" and len(query.readers(weight)) == 1 and not weight.is_graph_output()


def _input_channels(node: ir.Node) -> Array:
    """A convolution's weight with its input channels first."""
    weight = query.constant(node.inputs[1])
    assert weight is not None
    return np.moveaxis(weight, input_axis(node, weight.ndim), 0)


def _channels(value: ir.Value | None) -> int:
    """The number of channels; 0 where it is not known."""
    dims = query.shape(value)
    return dims[1] if dims is not None and len(dims) > 1 and isinstance(dims[1], int) else 0


def _scale(changed: ir.Model, node: ir.Node, index: int, factor: Array | np.float64) -> None:
    old = query.constant(node.inputs[index])
    assert old is not None
    write_stored(changed, node, index, old * factor, label="levelled")
