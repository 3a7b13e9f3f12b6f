"""Half precision written into a graph: what must be exact, what stays single, what the file says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fptq.calibrate import calibrate
from fptq.errors import ModelError
from fptq.graph.half import NORMALISATIONS, halved
from fptq.graph.model import Model
from fptq.graph.parity import HALF, check_parity, graph_reference, run_graph
from fptq.graph.write import to_bytes
from fptq.plan import PROFILES, materialize, place

TENSORRT = PROFILES["tensorrt"]


def types(model: ir.Model, op: str) -> set[ir.DataType | None]:
    """What the operations of a kind compute in."""
    return {node.outputs[0].dtype for node in model.graph if node.op_type == op}


def valid(model: ir.Model) -> None:
    onnx.checker.check_model(onnx.load_from_string(to_bytes(model)), full_check=True)


def whole(shape: tuple[int, ...], low: int, high: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.float32)


def test_numbers_that_half_precision_holds_are_computed_exactly(net) -> None:
    """Small whole numbers: every product and sum is below 2048, so no bit is lost in any order."""
    n = net((4, 8))
    weight = n.stored(8, 8)
    weight.const_value = ir.tensor(whole((8, 8), -3, 4), name=weight.name)
    n("Gemm", weight)
    n("Relu")
    model = n.model().graph_model
    feeds = {"x": whole((4, 8), -4, 5)}
    made = halved(model)
    assert types(made, "Gemm") == {ir.DataType.FLOAT16}
    (exact,), (found,) = run_graph(model, feeds).values(), run_graph(made, feeds).values()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, exact)


def test_codes_are_the_same_where_scales_are_powers_of_two(net) -> None:
    n = net((2, 16))
    numbers = [
        ir.val(f"n{i}", const_value=ir.tensor(a, name=f"n{i}")) for i, a in enumerate((np.float32(0.25), np.int8(0)))
    ]
    n.initializers += numbers
    n("QuantizeLinear", *numbers)
    n.last.dtype = ir.DataType.INT8
    n("DequantizeLinear", *numbers)
    model = n.model().graph_model
    feeds = {"x": whole((2, 16), -400, 400) / 8}
    made = halved(model)
    assert types(made, "DequantizeLinear") == {ir.DataType.FLOAT16}
    np.testing.assert_array_equal(run_graph(made, feeds)["v1"], run_graph(model, feeds)["v1"])


@pytest.mark.parametrize("single", [NORMALISATIONS, frozenset()], ids=["norms single", "all half"])
def test_a_network_agrees_to_half_precision_with_and_without_quantizers(cnn: Model, samples, single) -> None:
    for variant in (None, *TENSORRT.variants):
        model = cnn if variant is None else materialize(cnn, calibrate(cnn, place(cnn, TENSORRT, variant), samples))
        made = halved(model.graph_model, single=single)
        valid(made)
        reference = graph_reference(model.graph_model, samples[0], name="single precision")
        check_parity(made, samples[0], reference, tolerance=HALF)
        kept = ir.DataType.FLOAT if single else ir.DataType.FLOAT16
        assert types(made, "InstanceNormalization") == {kept}
        assert types(made, "Conv") == {ir.DataType.FLOAT16}


def test_inputs_outputs_and_the_given_model_stay_as_they_are(cnn: Model) -> None:
    before = to_bytes(cnn)
    made = halved(cnn.graph_model)
    assert to_bytes(cnn) == before
    for ends in ("inputs", "outputs"):
        assert [(v.name, v.dtype, v.shape) for v in getattr(made.graph, ends)] == [
            (v.name, v.dtype, v.shape) for v in getattr(cnn.graph, ends)
        ]


def test_no_more_casts_than_precisions_that_meet(cnn: Model) -> None:
    """One behind the input, one before the output, two around the normalisation."""
    assert Counter(node.op_type for node in halved(cnn.graph_model).graph)["Cast"] == 4
    assert Counter(node.op_type for node in halved(cnn.graph_model, single=frozenset()).graph)["Cast"] == 2


def test_a_weight_beyond_the_range_saturates_and_stays_finite(net) -> None:
    n = net((1, 4))
    weight = n.stored(4)
    weight.const_value = ir.tensor(np.array([1e6, -1e6, 2.0, -np.inf], np.float32), name=weight.name)
    n("Add", weight)
    found = run_graph(halved(n.model().graph_model), {"x": np.zeros((1, 4), np.float32)})["v0"]
    np.testing.assert_array_equal(found, [[65504.0, -65504.0, 2.0, -np.inf]])


@pytest.mark.parametrize("epsilon", [1e-12, 3e-7])
def test_a_scalar_that_half_precision_loses_keeps_its_operation_single(net, epsilon: float) -> None:
    n = net((1, 4))
    scalar = n.stored()
    scalar.const_value = ir.tensor(np.float32(epsilon), name=scalar.name)
    n("Add", scalar)
    n("Sqrt")
    made = halved(n.model().graph_model)
    assert types(made, "Add") == {ir.DataType.FLOAT}
    assert types(made, "Sqrt") == {ir.DataType.FLOAT16}


def test_scales_that_half_precision_loses_stay_single(cnn: Model, samples) -> None:
    encoding = calibrate(cnn, place(cnn, TENSORRT, TENSORRT.variants[0]), samples)
    model = materialize(cnn, encoding)
    scales = [
        node.inputs[1] for node in model.graph if node.op_type == "DequantizeLinear" and node.name.startswith("w")
    ]
    tiny = scales[0]
    tiny.const_value = ir.tensor(np.full(tiny.const_value.shape, 1e-7, np.float32), name=tiny.name)
    made = halved(model.graph_model)
    kept = [n for n in made.graph if n.op_type == "DequantizeLinear" and n.outputs[0].dtype == ir.DataType.FLOAT]
    assert [n.inputs[1].name for n in kept] == [tiny.name]
    valid(made)


def test_sizes_of_a_resize_stay_single(net) -> None:
    n = net((1, 4, 8, 8))
    scales = n.stored(4)
    scales.const_value = ir.tensor(np.array([1, 1, 2, 2], np.float32), name=scales.name)
    empty = ir.val("none", const_value=ir.tensor(np.zeros(0, np.float32), name="none"))
    n.initializers.append(empty)
    n("Resize", empty, scales, mode="nearest")
    made = halved(n.model().graph_model)
    valid(made)
    (resize,) = (node for node in made.graph if node.op_type == "Resize")
    assert (resize.inputs[0].dtype, resize.inputs[2].dtype) == (ir.DataType.FLOAT16, ir.DataType.FLOAT)


def test_casts_of_the_network_follow(net) -> None:
    n = net((2, 4))
    n("Cast", to=int(ir.DataType.INT32))
    n.last.dtype = ir.DataType.INT32
    n("Cast", to=int(ir.DataType.FLOAT))
    n("Relu")
    made = halved(n.model().graph_model)
    valid(made)
    assert types(made, "Relu") == {ir.DataType.FLOAT16}
    feeds = {"x": np.array([[1.7, -2.2, 3.0, 4.9], [0, 1, 2, 3]], np.float32)}
    np.testing.assert_array_equal(run_graph(made, feeds)["v2"], np.maximum(np.trunc(feeds["x"]), 0))


def test_subgraphs_are_refused(net) -> None:
    n = net((1, 4))
    n("Relu")
    model = n.model().graph_model
    body = ir.Graph([], [], nodes=[], name="body")
    model.graph.append(ir.node("If", [model.graph.inputs[0]], {"then_branch": body, "else_branch": body}, name="fork"))
    with pytest.raises(ModelError, match="'fork'"):
        halved(model)
