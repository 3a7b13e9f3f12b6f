from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fptq.calibrate import calibrate
from fptq.execute import Executor, Overlay
from fptq.graph import query
from fptq.graph.model import Model
from fptq.plan import PROFILES, place
from fptq.rewrite import branches_levelled


def run(model: Model, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model.graph_model).SerializeToString()
    return [np.asarray(found) for found in ort.InferenceSession(proto, options).run(None, {"x": x})]


def weight(model: Model, name: str) -> np.ndarray:
    content = query.constant(model.graph.initializers[name])
    assert content is not None
    return content


def samples(*shape: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(3)]


def enlarged(value: ir.Value, factor: float) -> ir.Value:
    """A stored tensor, larger."""
    content = query.constant(value)
    assert content is not None
    value.const_value = ir.tensor(content * np.float32(factor), name=value.name)
    return value


def unet(net: Callable, rank: int = 2, *, factor: float = 512.0, join: str = "plain", skip: str = "Relu") -> Model:
    """A skip of small values that meets large ones; the layer behind makes up for that."""
    n = net((1, 4, *[8] * rank))
    n.conv(4, 6, rank=rank)
    if skip == "norm":
        n("InstanceNormalization", n.stored(6, scale=1.0), n.stored(6))
        kept = n("LeakyRelu", alpha=0.1)
    elif skip == "residual":
        first = n("Relu")
        n.conv(6, 6, rank=rank)
        kept = n("Add", first)
    else:
        kept = n(skip)
    n("MaxPool", kernel_shape=[2] * rank, strides=[2] * rank)
    n.conv(6, 8, rank=rank)
    n("Relu")
    up = enlarged(n.stored(8, 5, *[2] * rank), factor)
    n("ConvTranspose", up, strides=[2] * rank, kernel_shape=[2] * rank)
    n("Concat", kept, axis=1)
    if join == "activated":
        n("Relu")
    if join == "sigmoid":
        n("Sigmoid")
    last = n.stored(3, 11, *[3] * rank)
    content = query.constant(last)
    assert content is not None
    last.const_value = ir.tensor(np.concatenate([content[:, :5] / factor, content[:, 5:]], 1), name=last.name)
    n("Conv", last, n.stored(3), kernel_shape=[3] * rank, pads=[1] * 2 * rank)
    return n.model()


@pytest.mark.parametrize("skip", ["Relu", "norm", "residual", "Sigmoid"])
@pytest.mark.parametrize("join", ["plain", "activated"])
def test_what_the_network_computes_stays_bit_for_bit(net, skip: str, join: str) -> None:
    model = unet(net, join=join, skip=skip)
    feeds = samples(1, 4, 8, 8)
    changed = branches_levelled(model, feeds)
    assert changed is not None
    for before, after in zip(run(model, feeds[0]["x"]), run(changed, feeds[0]["x"]), strict=True):
        np.testing.assert_array_equal(after, before)
    assert [node.name for node in changed.graph] == [node.name for node in model.graph]
    assert list(query.values(changed.graph_model)) == list(query.values(model.graph_model))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_branches_come_to_one_size(net, rank: int) -> None:
    model, feeds = unet(net, rank), samples(1, 4, *[8] * rank)
    changed = branches_levelled(model, feeds, alpha=1.0)
    assert changed is not None
    join = next(node for node in model.graph if node.op_type == "Concat")
    names = [str(value.name) for value in join.inputs]
    before, after = ({name: seen(one, feeds, name) for name in names} for one in (model, changed))
    assert max(before.values()) / min(before.values()) > 50
    assert max(after.values()) / min(after.values()) <= 2**0.5 * 1.001


def seen(model: Model, feeds: list[dict[str, np.ndarray]], name: str) -> float:
    """The largest magnitude of a value."""
    executor = Executor.open(model)
    return max(float(executor.run(sample, fetch=[name])[name].abs().max()) for sample in feeds)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_loses_less(net, bits: int) -> None:
    model, feeds = unet(net), samples(1, 4, 8, 8)
    changed = branches_levelled(model, feeds)
    assert changed is not None
    assert error(changed, feeds, bits) < 0.5 * error(model, feeds, bits)


def error(model: Model, feeds: list[dict[str, np.ndarray]], bits: int) -> float:
    """Squared error at the output with weights of a width and activations of 8 bits."""
    profile = PROFILES["openvino"]
    plan = place(model, profile, profile.variants[0])
    plan = plan.with_bits(dict.fromkeys(plan.weights, bits))
    hook, executor = Overlay(encoding=calibrate(model, plan, feeds)), Executor.open(model)
    found, exact = (next(iter(executor.run(feeds[0], hook=h).values())) for h in (hook, None))
    return float((found - exact).square().sum())


def test_a_shared_scale_of_norms_is_copied(net) -> None:
    n = net((1, 4, 8, 8))
    scale, offset = n.stored(4, scale=1.0), n.stored(4)
    first = n("InstanceNormalization", scale, offset)
    n.conv(4, 4)
    n("InstanceNormalization", scale, offset)
    n("Conv", enlarged(n.stored(4, 4, 1, 1), 300.0), kernel_shape=[1, 1])
    n("Concat", first, axis=1)
    n.conv(8, 3)
    model, feeds = n.model(), samples(1, 4, 8, 8)
    before = weight(model, "w0").copy()
    changed = branches_levelled(model, feeds)
    assert changed is not None
    np.testing.assert_array_equal(run(changed, feeds[0]["x"])[0], run(model, feeds[0]["x"])[0])
    np.testing.assert_array_equal(weight(model, "w0"), before)


def test_a_norm_behind_a_branch_keeps_its_result(net) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 4)
    skip = n("Relu")
    n("InstanceNormalization", n.stored(4, scale=1.0), n.stored(4), epsilon=0.1)
    n("Conv", enlarged(n.stored(4, 4, 1, 1), 300.0), kernel_shape=[1, 1])
    n("Sigmoid")  # the branch that cannot move
    n("Concat", skip, axis=1)
    n.conv(8, 3)
    model, feeds = n.model(), [{"x": sample["x"] * 100} for sample in samples(1, 4, 8, 8)]
    changed = branches_levelled(model, feeds)
    assert changed is not None
    np.testing.assert_allclose(run(changed, feeds[0]["x"])[0], run(model, feeds[0]["x"])[0], rtol=1e-5, atol=1e-5)


def test_nothing_is_changed_where_a_factor_has_nowhere_to_go(net) -> None:
    feeds = samples(1, 4, 8, 8)
    assert branches_levelled(unet(net, join="sigmoid"), feeds) is None


def test_no_concatenation_is_none(net) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 4)
    n("Relu")
    n.conv(4, 4)
    assert branches_levelled(n.model(), samples(1, 4, 8, 8)) is None


def test_a_branch_that_is_an_output_stays(net) -> None:
    model, feeds = unet(net), samples(1, 4, 8, 8)
    names = [str(value.name) for value in next(node for node in model.graph if node.op_type == "Concat").inputs]
    graph_model = model.graph_model.clone()
    graph_model.graph.outputs.extend(query.values(graph_model)[name] for name in names)
    model = model.with_graph(graph_model)
    assert branches_levelled(model, feeds) is None


def test_alpha_is_a_share(net) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        branches_levelled(unet(net), samples(1, 4, 8, 8), alpha=2)
