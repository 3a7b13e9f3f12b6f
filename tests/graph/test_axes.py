import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fptq.errors import ConfigError, DataError
from fptq.graph.axes import fix_axes, parse_axes, rename_symbols, varying_axes
from fptq.graph.load import load
from fptq.graph.parity import run_graph
from fptq.graph.shapes import with_fixed_shapes

PROTO = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, L, 4] x) => (float[A, B, 4] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] minus = {-1}, int64[1] four = {4}> {
    s = Shape(x)
    n = Gather(s, zero)
    l = Gather(s, one)
    both = Mul(n, l)
    flat = Concat <axis = 0> (both, four)
    h = Reshape(x, flat)
    r = Relu(h)
    back = Concat <axis = 0> (n, l, four)
    y = Reshape(r, back)
}
"""


@pytest.mark.parametrize("text", ["", "x", "x:0", "x:a=b", "x:0=0", "x:0=b,"])
def test_malformed_axes_are_refused(text):
    with pytest.raises(ConfigError, match="input:axis=name"):
        parse_axes(text)


def test_names_with_colons_are_names():
    assert parse_axes("model/x:0:2=depth") == {"model/x:0": {2: "depth"}}


def test_the_batch_and_what_varies():
    samples = [{"ids": (2, 7), "mask": (2, 7), "step": (2,), "table": (5, 3)}, {"ids": (2, 9), "mask": (2, 9)}]
    assert varying_axes(samples) == {
        "ids": {0: "batch", 1: "ids_1"},
        "mask": {0: "batch", 1: "mask_1"},
        "step": {0: "batch"},
    }


def test_symbols_are_renamed_inside_expressions():
    model = ir.from_proto(onnx.parser.parse_model(PROTO))
    model.graph.inputs[0].shape = ir.Shape(["s1", "2*s1 + s11", 4])
    rename_symbols(model, {"s1": "batch"})
    assert model.graph.inputs[0].shape == ir.Shape(["batch", "2*batch + s11", 4])


def test_a_model_with_fixed_shapes_folds_its_shape_arithmetic():
    model = load(onnx.parser.parse_model(PROTO))
    fixed = with_fixed_shapes(model, {"x": (2, 3, 4)})
    assert [node.op_type for node in fixed.graph] == ["Reshape", "Relu", "Reshape"]
    assert fixed.outputs[0].shape == (2, 3, 4)
    assert model.inputs[0].shape == ("N", "L", 4)
    assert with_fixed_shapes(fixed, {"x": (9, 9, 9)}) is fixed
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        run_graph(fixed.graph_model, {"x": x})["y"], run_graph(model.graph_model, {"x": x})["y"]
    )


@pytest.mark.parametrize("shapes", [{}, {"x": (2, 3)}])
def test_a_sample_that_does_not_fit(shapes):
    with pytest.raises(DataError):
        fix_axes(ir.from_proto(onnx.parser.parse_model(PROTO)), shapes)
