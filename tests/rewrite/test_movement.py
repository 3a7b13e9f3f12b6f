from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

from fptq.graph.model import Model
from fptq.rewrite.index_maps import as_sum
from fptq.rewrite.movement import movement_as_gather

WINDOW, SIZE, CHANNELS = 4, 8, 8


class Moves:
    """Builds a graph from `x` on; what only moves numbers stands between two Sqrt nodes."""

    def __init__(self, *shape: int | str) -> None:
        self.x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape(shape))
        self.nodes: list[ir.Node] = []
        self.stored: list[ir.Value] = []
        self.start = self.op("Sqrt", self.x)

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{op_type}_{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        name = f"i{len(self.stored)}"
        self.stored.append(ir.val(name, const_value=ir.tensor(np.array(numbers, np.int64), name=name)))
        return self.stored[-1]

    def cut(self, value: ir.Value, start: int, end: int, axis: int, step: int = 1) -> ir.Value:
        return self.op("Slice", value, *(self.ints(number) for number in (start, end, axis, step)))

    def rolled(self, value: ir.Value, shift: int, axes: Iterable[int]) -> ir.Value:
        """As PyTorch's exporter writes `torch.roll` by `-shift`."""
        for axis in axes:
            first, rest = self.cut(value, 0, shift, axis), self.cut(value, shift, SIZE, axis)
            value = self.op("Concat", rest, first, axis=axis)
        return value

    def reshaped(self, value: ir.Value, *shape: int) -> ir.Value:
        return self.op("Reshape", value, self.ints(*shape))

    def model(self, *ends: ir.Value) -> Model:
        return self.returning(*(self.op("Sqrt", end) for end in ends))

    def returning(self, *outputs: ir.Value) -> Model:
        graph = ir.Graph(
            [self.x], outputs, nodes=self.nodes, initializers=self.stored, opset_imports={"": 21}, name="g"
        )
        for output in outputs:
            output.dtype = ir.DataType.FLOAT
        inferred = ShapeInferencePass()(ir.Model(graph, ir_version=10)).model
        return Model(graph_model=inferred, origin={str(node.name): (f"user.{node.name}",) for node in self.nodes})


def into_windows(moves: Moves) -> ir.Value:
    """A shifted window partition of an image `[N, 8, 8, C]` into `[4 N, 16, C]`."""
    rolled, count = moves.rolled(moves.start, 1, (1, 2)), SIZE // WINDOW
    split = moves.reshaped(rolled, -1, count, WINDOW, count, WINDOW, CHANNELS)
    return moves.reshaped(moves.op("Transpose", split, perm=[0, 1, 3, 2, 4, 5]), -1, WINDOW**2, CHANNELS)


def out_of_windows(moves: Moves) -> ir.Value:
    """What turns windows `[4 N, 16, C]` back and crops the image to `[N, 7, 7, C]`."""
    count = SIZE // WINDOW
    split = moves.reshaped(moves.start, -1, count, count, WINDOW, WINDOW, CHANNELS)
    image = moves.reshaped(moves.op("Transpose", split, perm=[0, 1, 3, 2, 4, 5]), -1, SIZE, SIZE, CHANNELS)
    rolled = moves.rolled(image, SIZE - 1, (1, 2))
    return moves.cut(moves.cut(rolled, 0, SIZE - 1, 1), 0, SIZE - 1, 2)


def merged_patches(moves: Moves) -> ir.Value:
    """The four phases of an image `[N, 8, 8, C]` as channels `[N, 4, 4, 4 C]`."""
    phases = [
        moves.cut(moves.cut(moves.start, row, 2**63 - 1, 1, 2), column, 2**63 - 1, 2, 2)
        for column in (0, 1)
        for row in (0, 1)
    ]
    return moves.op("Concat", *phases, axis=-1)


IMAGE, WINDOWS = (SIZE, SIZE, CHANNELS), (WINDOW**2, CHANNELS)
CHAINS: list[tuple[Callable[[Moves], ir.Value], int, tuple[int, ...]]] = [
    (into_windows, 1, IMAGE),
    (out_of_windows, (SIZE // WINDOW) ** 2, WINDOWS),
    (merged_patches, 1, IMAGE),
]


def outputs(model: Model, x: np.ndarray) -> list[np.ndarray]:
    proto = ir.to_proto(model.graph_model).SerializeToString()
    return [np.asarray(found) for found in ort.InferenceSession(proto).run(None, {"x": x})]


def assert_equal(model: Model, rewritten: Model, x: np.ndarray) -> None:
    for expected, found in zip(outputs(model, x), outputs(rewritten, x), strict=True):
        np.testing.assert_array_equal(found, expected)


def moving(model: Model) -> list[str]:
    """Operations that copy a floating-point tensor."""
    return [n.op_type for n in model.graph if n.op_type in {"Slice", "Concat", "Transpose", "Gather"}]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)


@pytest.mark.parametrize(("chain", "entries", "rest"), CHAINS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_chain_becomes_one_gather(
    chain: Callable[[Moves], ir.Value], entries: int, rest: tuple[int, ...], batch: int
) -> None:
    moves = Moves(batch * entries, *rest)
    model = moves.model(chain(moves))
    rewritten = movement_as_gather(model)
    assert moving(rewritten) == ["Gather"]
    assert_equal(model, rewritten, numbers(batch * entries, *rest))


@pytest.mark.parametrize(("chain", "entries", "rest"), CHAINS)
def test_a_batch_of_any_size_is_moved_alike(
    chain: Callable[[Moves], ir.Value], entries: int, rest: tuple[int, ...]
) -> None:
    moves = Moves("batch", *rest)
    model = moves.model(chain(moves))
    rewritten = movement_as_gather(model)
    assert moving(rewritten) == ["Gather"]
    for batch in (1, 2, 5):
        assert_equal(model, rewritten, numbers(batch * entries, *rest))


def test_a_window_partition_of_an_image_stores_its_axes_only() -> None:
    moves = Moves("batch", *IMAGE)
    rewritten = movement_as_gather(moves.model(into_windows(moves)))
    stored = [value.const_value.size for value in rewritten.graph.initializers.values() if value.const_value]
    assert max(stored) == SIZE  # of 64 rows


def test_new_nodes_come_from_what_the_user_knows_and_values_keep_their_names() -> None:
    moves = Moves(1, *IMAGE)
    model = moves.model(merged_patches(moves))
    concat = next(node for node in model.graph if node.op_type == "Concat")
    rewritten = movement_as_gather(model)
    made = {str(node.name) for node in rewritten.graph} - {str(node.name) for node in model.graph}
    assert made
    assert all(f"user.{concat.name}" in rewritten.origin[name] for name in made)
    assert concat.outputs[0].name in {output.name for node in rewritten.graph for output in node.outputs}


def left_alone() -> dict[str, Model]:
    """Networks that stay as they are, by the reason."""
    made = {}
    lone = Moves(1, *IMAGE)
    made["one copy"] = lone.model(lone.cut(lone.start, 0, 4, 1))
    turned = Moves(1, *IMAGE)
    once = turned.reshaped(turned.op("Transpose", turned.start, perm=[0, 2, 1, 3]), 1, 16, 4, 8)
    made["transposes only"] = turned.model(turned.op("Transpose", once, perm=[0, 2, 1, 3]))
    short = Moves(1, SIZE, SIZE, 4)
    made["short rows"] = short.model(short.rolled(short.start, 3, (1, 2)))
    mixed = Moves("batch", *IMAGE)
    made["samples are mixed"] = mixed.model(
        mixed.op("Concat", *(mixed.cut(mixed.start, a, a + 1, 0) for a in (1, 0)), axis=0)
    )
    open_axis = Moves(1, "rows", SIZE, CHANNELS)
    made["another axis is open"] = open_axis.model(open_axis.rolled(open_axis.start, 3, (2,)))
    two = Moves(1, *IMAGE)
    other = two.op("Sqrt", two.start)
    made["two sources"] = two.model(two.op("Concat", two.cut(two.start, 0, 4, 1), two.cut(other, 0, 4, 1), axis=1))
    computed = Moves(1, *IMAGE)
    parts = [computed.op("Sqrt", computed.cut(computed.start, a, b, 1)) for a, b in ((0, 3), (3, 8))]
    made["computed in between"] = computed.model(computed.op("Concat", *parts, axis=1))
    return made


@pytest.mark.parametrize("reason", left_alone())
def test_leaves_alone(reason: str) -> None:
    model = left_alone()[reason]
    assert movement_as_gather(model) is model


def test_what_others_read_stays() -> None:
    moves = Moves(1, *IMAGE)
    rolled = moves.rolled(moves.start, 3, (1, 2))
    model = moves.model(rolled, moves.cut(moves.cut(rolled, 0, 5, 1), 0, 5, 2))
    rewritten = movement_as_gather(model)
    assert moving(rewritten) == ["Gather", "Gather"]
    assert_equal(model, rewritten, numbers(1, *IMAGE))

    made = {output for node in rewritten.graph for output in node.outputs}
    read = {value for node in rewritten.graph for value in node.inputs if value is not None}
    assert {value.name for value in read - made} == {"x", *rewritten.graph.initializers}


def test_a_chain_may_end_the_network() -> None:
    moves = Moves(1, *IMAGE)
    model = moves.returning(merged_patches(moves))
    rewritten = movement_as_gather(model)
    assert moving(rewritten) == ["Gather"]
    assert [output.name for output in rewritten.outputs] == [output.name for output in model.outputs]
    assert_equal(model, rewritten, numbers(1, *IMAGE))


@st.composite
def chains(draw: st.DrawFn) -> Model:
    """Rolls, crops, phases and transposes of an image, in any order."""
    moves = Moves(2, *IMAGE)
    value, sizes = moves.start, list(IMAGE[:2])
    for kind in draw(st.lists(st.sampled_from(["crop", "phase", "transpose", "twice"]), min_size=1, max_size=5)):
        axis = draw(st.sampled_from([1, 2]))
        size = sizes[axis - 1]
        start = draw(st.integers(0, size - 1))
        match kind:
            case "crop":
                value, sizes[axis - 1] = moves.cut(value, start, size, axis), size - start
            case "phase":
                value, sizes[axis - 1] = moves.cut(value, start, size, axis, 2), (size - start + 1) // 2
            case "transpose":
                value, sizes = moves.op("Transpose", value, perm=[0, 2, 1, 3]), sizes[::-1]
            case _:
                value = moves.op("Concat", value, moves.cut(value, start, size, axis), axis=axis)
                sizes[axis - 1] = 2 * size - start
    return moves.model(value)


@settings(deadline=None, max_examples=50)
@given(chains())
def test_any_chain_computes_the_same_bits(model: Model) -> None:
    assert_equal(model, movement_as_gather(model), numbers(2, *IMAGE))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4).flatmap(
        lambda shape: st.tuples(st.just(tuple(shape)), st.randoms(use_true_random=False), st.booleans())
    )
)
def test_parts_add_up_to_the_index(case: tuple[tuple[int, ...], object, bool]) -> None:
    shape, random, separable = case
    index = np.zeros(shape, np.int64)
    if separable:
        for axis, size in enumerate(shape):
            along = np.array([random.randrange(100) for _ in range(size)])  # type: ignore[attr-defined]
            index = index + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    else:
        index = np.array([random.randrange(9) for _ in range(index.size)]).reshape(shape)  # type: ignore[attr-defined]
    parts = as_sum(index)
    np.testing.assert_array_equal(sum(np.broadcast_to(part, shape) for part in parts), index)
    if separable:
        assert all(sum(size > 1 for size in part.shape) <= 1 for part in parts)
