"""Chains of nodes that do nothing but move numbers, as one Gather of rows.

Exporters write a roll as Slices and Concats, three of each for a volume, a window partition as a Transpose, patch
merging as fourteen Slices: every one of them reads and writes the whole tensor. Which number goes where is found by
running the chain on the numbers 0, 1, 2, ...; what comes out is the chain, whatever it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.opset import infer_shapes
from fptq.graph.rest import drop_unread
from fptq.rewrite.index_maps import as_sum, grid_of, row_length
from fptq.rewrite.movement_chains import IN_PLACE, Chain, chains
from fptq.rewrite.stored import stored_once
from fptq.types import Array

_LEAST_ROW = 8
"""Shorter rows [elements] than a vector register: engines' own nodes move those faster."""
_WORTH_ADDING = 4
"""An index is computed from parts where they are so many times smaller."""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """A chain as a choice of rows.

    Attributes:
        index: i64[*grid], which row of the source stands where.
        row: Length of the rows.
        count: How many rows the source has.
        batch: The rows are those of each sample, all samples alike; otherwise those of the whole tensor.
        shape: Of the result; -1 stands for a batch of any size.
    """

    index: Array
    row: int
    count: int
    batch: bool
    shape: tuple[int, ...]


def movement_as_gather(model: Model) -> Model:
    """The model with every chain of Slices, Concats, Transposes and Gathers that moves whole rows as one Gather.

    A chain is replaced where it copies its tensor at least twice, one of its nodes is a Slice, Concat or Gather, its
    sizes are known up to that of the batch, and where rows of at least eight numbers stay together. The result is
    equal bit by bit.

    Args:
        model: A canonical model.

    Returns:
        The rewritten model; the same model when there is no such chain.
    """
    changed = model.clone()
    origin = dict(model.origin)
    found = [(chain, rows) for chain in chains(changed.graph) if (rows := _rows(chain)) is not None]
    if not found:
        return model
    for chain, rows in reversed(found):  # a later chain may start where an earlier one ends
        names = tuple(dict.fromkeys(name for node in chain.nodes for name in origin.pop(str(node.name), ())))
        origin.update({str(node.name): names for node in _rewrite(changed.graph, chain, rows)})
    drop_unread(changed.graph)
    infer_shapes(changed)
    return replace(model, graph_model=changed, origin=MappingProxyType(origin))


def _rows(chain: Chain) -> _Rows | None:
    """A chain as a choice of rows; None where sizes are not known or rows are short."""
    dims = query.shape(chain.source)
    if not dims or not all(isinstance(dim, int) for dim in dims[1:]):
        return None
    fixed = isinstance(dims[0], int)
    lead = dims[0] if isinstance(dims[0], int) else _entries(chain)
    if lead is None:
        return None
    sizes = (lead, *(dim for dim in dims[1:] if isinstance(dim, int)))
    if not 0 < math.prod(sizes) <= np.iinfo(np.int32).max:
        return None
    shapes, moved = _run(chain, np.arange(math.prod(sizes), dtype=np.int32).reshape(sizes))
    samples = lead if fixed and _alike(moved, lead) else 1
    batch = not fixed or samples > 1
    flat = (moved[: len(moved) // samples] if batch else moved).reshape(-1)
    row = row_length(flat) if flat.size else 0
    if row < _LEAST_ROW:
        return None
    shape = moved.shape if fixed else (-1, *moved.shape[1:])
    index = _on_grid(chain, shapes, flat[::row].astype(np.int64) // row, row)
    count = math.prod(sizes) // samples // row
    return _Rows(index=index, row=row, count=count, batch=batch, shape=shape)


def _entries(chain: Chain) -> int | None:
    """How many entries of the first axis, at least, the chain moves within themselves; None where it moves all.

    Where every node leaves the first axis alone, only a Reshape can join or split its entries, in their order. As many
    as make all Reshapes come out even are moved like the next as many, however many there are.
    """
    each = {chain.source: Fraction(1)}
    for node in chain.nodes:
        before, after = (query.shape(value) for value in (node.inputs[0], node.outputs[0]))
        if not before or not after or not _leaves_first_axis(node):
            return None
        count, made = (_product(dims[1:]) for dims in (before, after))
        if count is None or made is None or node.inputs[0] not in each:
            return None
        joined = Fraction(count, made) if node.op_type == "Reshape" else 1
        each[node.outputs[0]] = each[node.inputs[0]] * joined
    return math.lcm(*(entries.denominator for entries in each.values()))


def _product(dims: Sequence[query.Dim]) -> int | None:
    return math.prod(dim for dim in dims if isinstance(dim, int)) if all(isinstance(d, int) for d in dims) else None


def _leaves_first_axis(node: ir.Node) -> bool:
    rank = query.rank(node.inputs[0])
    match node.op_type:
        case "Identity":
            return True
        case "Reshape":
            shape = query.constant(node.inputs[1])
            return shape is not None and bool(shape[0] == -1 and (shape[1:] > 0).all())
        case "Transpose":
            return (node.attributes.get_ints("perm") or (None,))[0] == 0
        case "Concat" | "Gather":
            axes = [node.attributes.get_int("axis", 0)]
        case "Slice":
            given = query.constant(node.inputs[3]) if len(node.inputs) > 3 else None
            axes = [0] if given is None else given.tolist()
        case _:
            return False
    return rank is not None and all(axis % rank != 0 for axis in axes)


def _run(chain: Chain, numbers: Array) -> tuple[dict[ir.Value, tuple[int, ...]], Array]:
    """The shape of all that the chain makes of some numbers, and what comes out."""
    from onnx.reference import ReferenceEvaluator

    made, shapes = {chain.source: numbers}, {chain.source: numbers.shape}
    for at, node in enumerate(chain.nodes):
        feeds = {str(v.name): made[v] if v in made else query.constant(v) for v in node.inputs if v is not None}
        result = node.outputs[0]
        made[result] = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)[0]
        shapes[result] = made[result].shape
        needed = {chain.target, *(value for later in chain.nodes[at + 1 :] for value in later.inputs)}
        made = {value: array for value, array in made.items() if value in needed}
    return shapes, made[chain.target]


def _alike(moved: Array, samples: int) -> bool:
    """Whether all samples are moved alike, each within itself."""
    if moved.ndim == 0 or len(moved) % samples:
        return False
    each = moved.reshape(samples, -1)
    steps = each - each[:1]
    return bool((steps == steps[:, :1]).all()) and bool((steps[:, 0] == np.arange(samples) * each.shape[1]).all())


def _on_grid(chain: Chain, shapes: Mapping[ir.Value, tuple[int, ...]], index: Array, row: int) -> Array:
    """The index in the shape that shows most of its structure: one that the result had before it was flattened."""
    best: tuple[int, ...] = (len(index),)
    value: ir.Value | None = chain.target
    while value is not None and value in shapes:
        grid = grid_of(shapes[value], row)
        if grid:  # the first axis may be that of all samples, the index is that of one
            grid = (grid[0] * len(index) // math.prod(grid), *grid[1:])
            best = grid if math.prod(grid) == len(index) and len(grid) > len(best) else best
        node = value.producer()
        value = node.inputs[0] if node in chain.nodes and node.op_type in IN_PLACE else None
    return index.reshape(best)


def _rewrite(graph: ir.Graph, chain: Chain, rows: _Rows) -> list[ir.Node]:
    """Replace a chain; the target keeps its name."""
    new = _New(graph=graph, name=str(chain.target.name), nodes=[])
    lead = [-1] if rows.batch else []
    source = new.op("Reshape", [chain.source, new.stored([*lead, rows.count, rows.row])], "as_rows")
    gathered = new.op("Gather", [source, _index(new, rows)], "rows", axis=len(lead))
    result = new.op("Reshape", [gathered, new.stored(list(rows.shape))], "from_rows")
    ir.convenience.replace_nodes_and_values(
        graph, chain.nodes[-1], list(chain.nodes), new.nodes, [chain.target], [result]
    )
    return new.nodes


def _index(new: _New, rows: _Rows) -> ir.Value:
    """The index as a stored tensor, or as a sum of small ones: engines add them up when they load the file."""
    parts = as_sum(rows.index)
    if sum(part.size for part in parts) * _WORTH_ADDING > rows.index.size:
        return new.stored(rows.index.reshape(-1))
    total = new.stored(parts[0])
    for at, part in enumerate(parts[1:]):
        total = new.op("Add", [total, new.stored(part)], f"index_{at}")
    return new.op("Reshape", [total, new.stored([-1])], "index")


@dataclass(frozen=True, kw_only=True)
class _New:
    """New nodes for a graph, in order, named after what they compute."""

    graph: ir.Graph
    name: str
    nodes: list[ir.Node]

    def op(self, op_type: str, inputs: Sequence[ir.Value], suffix: str, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{self.name}_{suffix}")
        node.outputs[0].name = f"{self.name}_{suffix}_output"
        self.nodes.append(node)
        return node.outputs[0]

    def stored(self, content: Array | list[int]) -> ir.Value:
        """A stored tensor of integers, once for each content."""
        array = np.asarray(content, np.int64)
        for value in self.graph.initializers.values():
            same = value.const_value is not None and tuple(value.const_value.shape) == array.shape
            if same and value.dtype == ir.DataType.INT64 and np.array_equal(query.constant(value), array):  # type: ignore[arg-type]
                return value
        return stored_once(self.graph, f"{self.name}_numbers_{len(self.graph.initializers)}", array)
