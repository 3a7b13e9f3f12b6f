"""Statistics computed in the graph are those of the tensors."""

import math

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.calibrate.probe import probed, sample_stride
from fptq.calibrate.states import Kind
from fptq.calibrate.statistics import Statistic
from fptq.errors import DataError, ModelError


def read(model, statistics, feeds):
    """Readings by tensor, and the probed graph."""
    graph_model, probes = probed(model, statistics)
    options = onnxruntime.SessionOptions()
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    session = onnxruntime.InferenceSession(ir.to_proto(graph_model).SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, feeds), strict=True))
    return {probe.value: probe.read(outputs, 1) for probe in probes}, graph_model


def tensors(model, names, feeds):
    """The tensors themselves."""
    graph_model = model.clone()
    values = {v.name: v for node in graph_model.graph for v in node.outputs}
    graph_model.graph.outputs.clear()
    graph_model.graph.outputs.extend(values[name] for name in names)
    session = onnxruntime.InferenceSession(ir.to_proto(graph_model).SerializeToString())
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("batch", [1, 40])
def test_extremes_and_sample_are_of_the_tensor(conv_net, batch):
    x = np.random.default_rng(0).standard_normal((batch, 2, 12, 12)).astype(np.float32)
    asked = [Statistic("x", Kind.SKETCH), Statistic("relu", Kind.SKETCH), Statistic("hidden", Kind.EXTREMES)]
    readings, _ = read(conv_net, asked, {"x": x})
    floats = {"x": x, **tensors(conv_net, ["relu", "hidden"], {"x": x})}
    for name, reading in readings.items():
        np.testing.assert_allclose(reading.low, floats[name].min(), rtol=1e-5)
        np.testing.assert_allclose(reading.high, floats[name].max(), rtol=1e-5)
    for name in ("x", "relu"):  # the batch is dynamic: the stride is computed in the graph
        flat = floats[name].reshape(-1)
        np.testing.assert_allclose(readings[name].sample, flat[:: sample_stride(floats[name].shape)], rtol=1e-4)
    assert readings["hidden"].sample is None


@pytest.mark.parametrize("axis", [1, -3])
def test_per_channel(conv_net, axis):
    x = np.random.default_rng(1).standard_normal((200, 2, 12, 12)).astype(np.float32)
    readings, _ = read(conv_net, [Statistic("relu", Kind.SKETCH, axis)], {"x": x})
    relu = tensors(conv_net, ["relu"], {"x": x})["relu"]
    reading = readings["relu"]
    np.testing.assert_allclose(reading.low, relu.min(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(reading.high, relu.max(axis=(0, 2, 3)), rtol=1e-5)
    channel = np.broadcast_to(np.arange(4)[:, None, None], relu.shape).reshape(-1)[:: sample_stride(relu.shape)]
    assert sample_stride(relu.shape) > 1
    np.testing.assert_array_equal(reading.channels, channel)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_static_shapes_of_any_rank(make_net, rank):
    size = {1: 30000, 2: 200, 3: 32}[rank]
    shape = f"1, 2{f', {size}' * rank}"
    net = make_net(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}", {})
    x = np.random.default_rng(0).standard_normal((1, 2, *[size] * rank)).astype(np.float32)
    readings, graph_model = read(net, [Statistic("y", Kind.SKETCH)], {"x": x})
    stride = sample_stride(x.shape)
    np.testing.assert_array_equal(readings["y"].sample, np.maximum(x, 0).reshape(-1)[::stride])
    assert "Size" not in {node.op_type for node in graph_model.graph}


def test_nothing_is_computed_behind_the_last_probe(conv_net):
    graph_model, _ = probed(conv_net, [Statistic("x", Kind.EXTREMES)])
    assert "Conv" not in {node.op_type for node in graph_model.graph}
    assert not graph_model.graph.initializers
    assert [node.op_type for node in conv_net.graph] == ["Conv", "Relu", "Conv"]


def test_minmax_takes_no_sample(conv_net):
    graph_model, _ = probed(conv_net, [Statistic("relu", Kind.EXTREMES)])
    assert "Slice" not in {node.op_type for node in graph_model.graph}


def test_half_precision_tensors_are_read_as_f32(make_net):
    net = make_net("g (float16[1, 100] x) => (float16[1, 100] y) { y = Relu(x) }", {})
    x = np.linspace(-1, 1, 100, dtype=np.float16)[None]
    reading = read(net, [Statistic("y", Kind.SKETCH)], {"x": x})[0]["y"]
    assert reading.low.dtype == reading.sample.dtype == np.float32
    assert (reading.low, reading.high) == (0, 1)


@pytest.mark.parametrize("position", [0, 1, 777, -1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_single_bad_element_is_found(conv_net, bad, position):
    x = np.random.default_rng(0).standard_normal((4, 2, 12, 12)).astype(np.float32)
    x.flat[position] = bad
    with pytest.raises(DataError, match=r"sample 1: tensor 'x' holds NaN or an infinity"):
        read(conv_net, [Statistic("x", Kind.EXTREMES)], {"x": x})


def test_a_tensor_that_does_not_exist(conv_net):
    with pytest.raises(ModelError, match="'nowhere'"):
        probed(conv_net, [Statistic("nowhere", Kind.EXTREMES)])


def test_an_unknown_rank_is_refused_per_channel_only(make_net):
    net = make_net("g (float[N] x, int64[K] s) => (float[M] y) { h = Reshape(x, s) \n y = Relu(h) }", {})
    feeds = {"x": np.float32([1, -2, 3, 4]), "s": np.int64([2, 2])}
    assert read(net, [Statistic("h", Kind.SKETCH)], feeds)[0]["h"].sample.tolist() == [1, -2, 3, 4]
    with pytest.raises(ModelError, match="rank of tensor 'h'"):
        probed(net, [Statistic("h", Kind.SKETCH, 1)])


def test_old_opsets_are_refused(make_net):
    net = make_net("g (float[3] x) => (float[3] y) { y = Relu(x) }", {}, 17)
    with pytest.raises(ModelError, match="opset 17"):
        probed(net, [Statistic("y", Kind.EXTREMES)])


@given(st.lists(st.integers(1, 512), min_size=1, max_size=5).map(tuple))
def test_strides_share_no_factor_with_any_axis(shape):
    size, stride = math.prod(shape), sample_stride(shape)
    assert stride == 1 or size % stride
    assert all(math.gcd(stride, d) == 1 for d in shape)
    assert size // stride >= min(size, 8192)


@pytest.mark.parametrize("shape", [(1, 32, 96, 96, 96), (1, 256, 1920), (1, 64, 48, 48, 48), (1, 256, 480)])
def test_samples_of_usual_shapes_are_neither_small_nor_large(shape):
    count = math.prod(shape) / sample_stride(shape)
    assert 8192 <= count <= 1.25 * 65536
