from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fptq.calibrate import CalibrationOptions, calibrate, observer
from fptq.errors import ModelError
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.rest import put_to_rest
from fptq.numerics import (
    PerBlock,
    PerChannel,
    PerTensor,
    QuantizerSpec,
    UniformParams,
    fake_quantize,
    params_from_range,
    ranges,
)
from fptq.plan import PROFILES, Encoding, Placement, Plan, materialize, place

U8 = QuantizerSpec(signed=False, symmetric=False)


def run(model: Model, feeds: dict[str, np.ndarray], *fetch: str) -> list[np.ndarray]:
    graph_model = model.clone()
    values = query.values(graph_model)
    for name in fetch:
        graph_model.graph.outputs.append(values[name])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(graph_model).SerializeToString(), options)
    return [np.asarray(a) for a in session.run(list(fetch) or None, feeds)]


def params(scale: float, zero_point: int = 0) -> UniformParams:
    return UniformParams(scale=np.float32(scale), zero_point=zero_point)


def encoding(plan: Plan, numbers: dict[Placement, UniformParams]) -> Encoding:
    return Encoding(plan=plan, params=numbers, model_sha256="")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 12, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_the_engine_computes_what_numerics_say(net, bits: int, signed: bool) -> None:
    n = net((1, 3, 8))
    n("Relu")
    model = n.model()
    spec = QuantizerSpec(bits=bits, signed=signed, symmetric=signed)
    numbers = params(0.37, 0 if signed else 1)
    placement = Placement("x", "Relu_0", 0)
    made = materialize(model, encoding(Plan(engine="", specs={placement: spec}), {placement: numbers}))
    x = np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32) * 4
    np.testing.assert_array_equal(run(made, {"x": x})[0], np.maximum(fake_quantize(x, spec, numbers), 0))


def test_only_the_named_reader_sees_the_quantized_value(net) -> None:
    n = net((2, 4))
    x = n.input
    n("Mul", x)
    model = n.model()
    first = Placement("x", "Mul_0", 0)
    made = materialize(model, encoding(Plan(engine="", specs={first: U8}), {first: params(1.0)}))
    array = np.float32([[0.4, 1.6, 2.2, 3.0]] * 2)
    np.testing.assert_allclose(run(made, {"x": array})[0], np.rint(array) * array, rtol=1e-6)


def test_placements_with_equal_numbers_share_a_pair_and_others_do_not(net) -> None:
    n = net((2, 4))
    n("Mul", n.input)
    model = n.model()
    left, right = Placement("x", "Mul_0", 0), Placement("x", "Mul_0", 1)
    plan = Plan(engine="", specs={left: U8, right: U8})
    shared = materialize(model, encoding(plan, {left: params(1.0), right: params(1.0)}))
    apart = materialize(model, encoding(plan, {left: params(1.0), right: params(0.5)}))
    count = [sum(node.op_type == "QuantizeLinear" for node in made.graph) for made in (shared, apart)]
    assert count == [1, 2]


def test_names_do_not_collide_with_values_that_look_alike(net) -> None:
    n = net((2, 4))
    n("Mul", n.input)
    n.last.name = "x_2"
    n("Mul", n.input)
    model = n.model()
    places = {Placement("x", "Mul_0", 0): 1.0, Placement("x", "Mul_1", 1): 0.5, Placement("x_2", "Mul_1", 0): 0.25}
    plan = Plan(engine="", specs=dict.fromkeys(places, U8))
    made = materialize(model, encoding(plan, {p: params(s) for p, s in places.items()}))
    x = np.float32([[0.4, 1.6, 2.2, 3.0]] * 2)
    squared = np.rint(x) * x
    expected = np.rint(squared / 0.25) * 0.25 * (np.rint(x / 0.5) * 0.5)
    np.testing.assert_allclose(run(made, {"x": x})[0], expected, rtol=1e-6)


def test_weights_become_integers_with_the_codes_of_numerics(net) -> None:
    n = net((1, 3, 8, 8))
    n.conv(3, 5)
    model = n.model()
    weight = Placement("w0", "Conv_0", 1)
    spec = QuantizerSpec(granularity=PerChannel(axis=0))
    numbers = UniformParams(scale=np.linspace(0.01, 0.05, 5), zero_point=np.zeros(5))
    made = materialize(
        model, encoding(Plan(engine="", specs={weight: spec}, weights=frozenset({weight})), {weight: numbers})
    )
    stored = made.graph.initializers["w0_quantized"].const_value
    assert stored is not None
    assert stored.dtype == ir.DataType.INT8
    assert "w0" not in made.graph.initializers
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    floats = model.graph.initializers["w0"].const_value
    assert floats is not None
    exact = model.clone()
    exact.graph.initializers["w0"].const_value = ir.tensor(fake_quantize(floats.numpy(), spec, numbers))
    np.testing.assert_allclose(run(made, {"x": x})[0], run(model.with_graph(exact), {"x": x})[0], atol=1e-5)


def test_learned_codes_are_used_as_they_are(net) -> None:
    n = net((1, 3, 8))
    n("MatMul", n.stored(8, 4))
    model = n.model()
    weight = Placement("w0", "MatMul_0", 1)
    codes = np.ones((8, 4), dtype=np.int32)
    made = materialize(
        model,
        Encoding(
            plan=Plan(engine="", specs={weight: QuantizerSpec()}, weights=frozenset({weight})),
            params={weight: params(0.5)},
            model_sha256="",
            codes={weight: codes},
        ),
    )
    x = np.ones((1, 3, 8), np.float32)
    np.testing.assert_array_equal(run(made, {"x": x})[0], np.full((1, 3, 4), 4.0))


def test_int32_biases_are_written_where_both_scales_are_known(cnn: Model, samples) -> None:
    profile = PROFILES["onnxruntime"]
    plan = place(cnn, profile, profile.variants[0])
    made = materialize(cnn, calibrate(cnn, plan, samples, options=CalibrationOptions(observer=observer("minmax"))))
    stored = {name: v.const_value for name, v in made.graph.initializers.items() if name.endswith("_bias_quantized")}
    assert len(stored) == 3  # the last convolution gives the network's output, which stays float
    assert all(t is not None and t.dtype == ir.DataType.INT32 for t in stored.values())
    exact, found = run(cnn, samples[0])[0], run(made, samples[0])[0]
    assert 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()) > 25


def test_graph_outputs_stay_float(net) -> None:
    n = net((1, 4))
    n("Relu")
    model = n.model()
    out = Placement("v0")
    made = materialize(model, encoding(Plan(engine="", specs={out: U8}), {out: params(1.0)}))
    assert made.outputs[0].name == "v0"
    assert run(made, {"x": np.float32([[0.3, 1, 2, 3]])})[0][0, 0] == np.float32(0.3)


def test_an_encoding_of_another_model_is_refused(cnn: Model) -> None:
    stranger = Placement("nothing")
    with pytest.raises(ModelError, match="nothing"):
        materialize(cnn, encoding(Plan(engine="", specs={stranger: U8}), {stranger: params(1.0)}))


NARROW = [(bits, signed) for bits in range(2, 8) for signed in (True, False)]


@pytest.mark.parametrize(("bits", "signed"), NARROW)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=0), PerBlock(axis=1, size=2)], ids=str)
def test_narrow_weights_with_zero_points_are_int8_around_zero(net, bits: int, signed: bool, granularity) -> None:
    n = net((1, 4, 6))
    n.conv(4, 5, rank=1)
    model = n.model()
    weight = Placement("w0", "Conv_0", 1)
    floats = model.graph.initializers["w0"].const_value.numpy()
    spec = QuantizerSpec(bits=bits, signed=signed, symmetric=False, granularity=granularity)
    numbers = params_from_range(spec, *ranges(floats + np.float32(0.1), granularity))
    made = materialize(
        model, encoding(Plan(engine="", specs={weight: spec}, weights=frozenset({weight})), {weight: numbers})
    )
    zero_point = made.graph.initializers["w0_zero_point"].const_value.numpy()
    assert numbers.zero_point.any()
    assert zero_point.dtype == made.graph.initializers["w0_quantized"].const_value.numpy().dtype == np.int8
    assert not zero_point.any()
    found = run(made, {"x": np.zeros((1, 4, 6), np.float32)}, "w0_dequantized")[0]
    np.testing.assert_array_equal(found, fake_quantize(floats, spec, numbers))


def test_int32_biases_do_not_see_the_zero_point_of_narrow_weights(net) -> None:
    n = net((3, 4))
    n("Gemm", n.stored(4, 5), n.stored(5))
    model = n.model()
    x, weight = Placement("x", "Gemm_0", 0), Placement("w0", "Gemm_0", 1)
    floats, bias = (model.graph.initializers[name].const_value.numpy() for name in ("w0", "w1"))
    spec = QuantizerSpec(bits=4, signed=False, symmetric=False, granularity=PerChannel(axis=1))
    numbers = {x: params(1 / 64, 100), weight: params_from_range(spec, *ranges(floats, spec.granularity))}
    plan = Plan(engine="", specs={x: U8, weight: spec}, weights=frozenset({weight}), int32_bias=frozenset({"Gemm_0"}))
    made = materialize(model, encoding(plan, numbers))
    assert made.graph.initializers["Gemm_0_bias_quantized"].const_value.dtype == ir.DataType.INT32
    array = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    scale = numbers[weight].scale * np.float32(1 / 64)
    exact = fake_quantize(array, U8, numbers[x]) @ fake_quantize(floats, spec, numbers[weight])
    np.testing.assert_allclose(run(made, {"x": array})[0], exact + np.rint(bias / scale) * scale, atol=1e-6)


def test_a_bias_behind_blocks_stays_float(net) -> None:
    """Its layer's products are no integers of one scale."""
    n = net((3, 4))
    n("Gemm", n.stored(4, 5), n.stored(5))
    model = n.model()
    x, weight = Placement("x", "Gemm_0", 0), Placement("w0", "Gemm_0", 1)
    floats = model.graph.initializers["w0"].const_value.numpy()
    spec = QuantizerSpec(bits=4, granularity=PerBlock(axis=0, size=2))
    numbers = {x: params(1 / 64, 100), weight: params_from_range(spec, *ranges(floats, spec.granularity))}
    plan = Plan(engine="", specs={x: U8, weight: spec}, weights=frozenset({weight}), int32_bias=frozenset({"Gemm_0"}))
    made = materialize(model, encoding(plan, numbers))
    assert "w1" in made.graph.initializers
    array = np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32)
    bias = model.graph.initializers["w1"].const_value.numpy()
    exact = fake_quantize(array, U8, numbers[x]) @ fake_quantize(floats, spec, numbers[weight]) + bias
    np.testing.assert_allclose(run(made, {"x": array})[0], exact, atol=1e-6)


@pytest.mark.parametrize(
    ("bounds", "dropped"),
    [((-3.0, 3.0), True), ((-1.0, 3.0), False), ((-3.0, 1.0), False)],
    ids=["wider", "higher floor", "lower ceiling"],
)
@pytest.mark.parametrize("form", ["Clip", "Max and Min"])
def test_a_clip_that_saturation_does_is_left_out(net, bounds: tuple[float, float], dropped: bool, form: str) -> None:
    n = net((2, 4))
    n("Neg")
    ends = [n.stored(), n.stored()] if form == "Clip" else [n.stored(4), n.stored(4)]
    for end, bound in zip(ends, bounds, strict=True):
        shape = query.constant(end).shape
        end.const_value = ir.tensor(np.full(shape, bound, np.float32), name=end.name)
    if form == "Clip":
        n("Clip", *ends)
    else:
        n("Max", ends[0])
        n("Min", ends[1])
    clipped = n.last
    n("Abs")
    model = n.model()
    placement = Placement(str(clipped.name), n.nodes[-1].name, 0)
    spec = QuantizerSpec()
    numbers = params_from_range(spec, -2.0, 2.0)
    made = materialize(model, encoding(Plan(engine="", specs={placement: spec}), {placement: numbers}))
    left = {node.op_type for node in made.graph} & {"Clip", "Max", "Min"}
    assert (not left) == dropped
    x = np.linspace(-5, 5, 8, dtype=np.float32).reshape(2, 4)
    expected = np.abs(fake_quantize(np.clip(-x, *bounds), spec, numbers))
    np.testing.assert_array_equal(run(made, {"x": x})[0], expected)


def test_a_clip_that_others_read_stays(net) -> None:
    n = net((2, 4))
    n("Relu")
    n("Clip", n.stored(), n.stored())
    for name, bound in (("w0", -3.0), ("w1", 3.0)):
        stored = next(value for value in n.initializers if value.name == name)
        stored.const_value = ir.tensor(np.float32(bound), name=name)
    n("Mul", n.last)
    model = n.model()
    placement, spec = Placement("v1", "Mul_2", 0), QuantizerSpec()
    plan = Plan(engine="", specs={placement: spec})
    made = materialize(model, encoding(plan, {placement: params_from_range(spec, -2.0, 2.0)}))
    quantize = next(node for node in made.graph if node.op_type == "QuantizeLinear")
    assert quantize.inputs[0].name == "v1"


def test_codes_of_weights_at_rest_rest_too_and_are_the_same(cnn: Model, samples) -> None:
    profile = PROFILES["onnxruntime"]
    found = calibrate(cnn, place(cnn, profile, profile.variants[0]), samples)
    expected = materialize(cnn, found)
    put_to_rest(cnn.graph_model, large=1)
    made = materialize(cnn, found)
    assert list(made.graph.initializers) == list(expected.graph.initializers)
    codes = [value for name, value in made.graph.initializers.items() if name.endswith("_quantized")]
    large = [value for value in codes if value.const_value.nbytes > 1024]
    assert large
    assert all(isinstance(value.const_value, ir.ExternalTensor) for value in large)
    for name, value in expected.graph.initializers.items():
        np.testing.assert_array_equal(made.graph.initializers[name].const_value.numpy(), value.const_value.numpy())
    assert [node.op_type for node in made.graph] == [node.op_type for node in expected.graph]
