from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fptq.calibrate import CalibrationOptions, calibrate, observer
from fptq.graph import query
from fptq.graph.gemm import matmul_add_to_gemm
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import QuantizerSpec
from fptq.plan import materialize
from fptq.plan.plan import Plan
from fptq.rewrite.smooth import logarithmically_smoothed, smoothed


def stored(model: Model, name: str) -> np.ndarray:
    content = query.constant(model.graph.initializers[name])
    assert content is not None
    return content


def encoder(net, *, outliers: float = 1.0) -> Model:
    """A norm that two products read, with two channels that stand out, and one that a residual reads too."""
    n = net((2, 5, 8))
    scale = n.stored(8, scale=1.0)
    factors = np.where(np.arange(8) < 2, outliers, 1.0)
    scale.const_value = ir.tensor((query.constant(scale) * factors).astype(np.float32), name=scale.name)
    normed = n("LayerNormalization", scale, n.stored(8), axis=-1)
    n("MatMul", n.stored(8, 6))
    n("Add", n.stored(6))
    first = n("Relu")
    n.last = normed
    n("MatMul", n.stored(8, 6))
    n("Add", n.stored(6))
    n("Mul", first)
    both = n("LayerNormalization", n.stored(6, scale=1.0), n.stored(6), axis=-1)
    n("MatMul", n.stored(6, 6))
    n("Add", both)
    return n.model()


def samples(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal((2, 5, 8)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("as_gemm", [False, True])
def test_what_the_network_computes_stays(net, alpha: float, as_gemm: bool, run) -> None:
    model = encoder(net, outliers=50.0)
    model = matmul_add_to_gemm(model) if as_gemm else model
    changed = smoothed(model, samples(), alpha=alpha)
    assert changed is not None
    x = samples()[0]["x"]
    np.testing.assert_allclose(run(changed, x), run(model, x), rtol=1e-4, atol=1e-5)
    assert list(query.values(changed.graph_model)) == list(query.values(model.graph_model))
    for name in ("w0", "w1", "w2", "w4"):  # the first norm and its two readers
        assert not np.array_equal(stored(changed, name), stored(model, name))
    for name in ("w6", "w7", "w8"):  # a residual reads the second norm
        assert np.array_equal(stored(changed, name), stored(model, name))


def test_the_factors_are_those_of_the_equation(net, run) -> None:
    n = net((3, 8))
    n("LayerNormalization", n.stored(8, scale=1.0), n.stored(8), axis=-1)
    n("Gemm", n.stored(4, 8), n.stored(4), transB=1)
    model = n.model()
    feeds = [{"x": np.random.default_rng(seed).standard_normal((3, 8)).astype(np.float32)} for seed in range(3)]
    changed = smoothed(model, feeds, alpha=0.75)
    assert changed is not None
    proto = model.clone()
    proto.graph.outputs[:] = [query.values(proto)["v0"]]
    normed = np.concatenate([run(model.with_graph(proto), sample["x"]) for sample in feeds])
    expected = np.abs(normed).max(0) ** 0.75 / np.abs(stored(model, "w2")).max(0) ** 0.25
    np.testing.assert_allclose(stored(changed, "w2") / stored(model, "w2"), np.tile(expected, (4, 1)), rtol=1e-4)
    np.testing.assert_allclose(stored(model, "w0") / stored(changed, "w0"), expected, rtol=1e-4)


def test_a_scale_that_other_norms_share_is_copied(net, run) -> None:
    n = net((2, 5, 8))
    scale = n.stored(8, scale=1.0)
    n("LayerNormalization", scale, axis=-1)
    n("MatMul", n.stored(8, 8))
    n("LayerNormalization", scale, axis=-1)
    model = n.model()
    changed = smoothed(model, samples())
    assert changed is not None
    x = samples()[0]["x"]
    np.testing.assert_allclose(run(changed, x), run(model, x), rtol=1e-4, atol=1e-5)
    assert np.array_equal(stored(changed, "w0"), stored(model, "w0"))


def test_networks_without_such_a_norm_are_left_alone(net, cnn) -> None:
    assert smoothed(cnn, []) is None
    n = net((2, 5, 8))
    n("LayerNormalization", n.stored(8), axis=-1)
    n("Relu")
    n("MatMul", n.stored(8, 8))
    assert smoothed(n.model(), []) is None


def test_an_exponent_out_of_range_is_refused(cnn) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        smoothed(cnn, [], alpha=1.5)


def test_channels_that_stand_out_cost_less_afterwards(net, run) -> None:
    model = encoder(net, outliers=100.0)
    activation = Placement("v0")
    weights = (Placement("w2", "MatMul_1", 1), Placement("w4", "MatMul_4", 1))
    specs = {activation: QuantizerSpec(signed=False, symmetric=False)} | dict.fromkeys(weights, QuantizerSpec())
    plan = Plan(engine="", specs=specs, weights=frozenset(weights))
    options = CalibrationOptions(observer=observer("minmax"))
    changed = smoothed(model, samples())
    assert changed is not None
    errors = []
    for made in (model, changed):
        quantized = materialize(made, calibrate(made, plan, samples(), options=options))
        errors.append(np.square(run(quantized, samples()[1]["x"]) - run(model, samples()[1]["x"])).mean())
    assert errors[1] < errors[0] / 4


def test_logarithmic_factors_are_those_of_the_equation_whatever_the_scale(net, run) -> None:
    n = net((3, 8))
    n("LayerNormalization", n.stored(8, scale=1.0), axis=-1)
    n("Gemm", n.stored(4, 8), n.stored(4), transB=1)
    model = n.model()
    feeds = [{"x": np.random.default_rng(seed).standard_normal((3, 8)).astype(np.float32)} for seed in range(3)]
    proto = model.clone()
    proto.graph.outputs[:] = [query.values(proto)["v0"]]
    normed = np.abs(np.concatenate([run(model.with_graph(proto), sample["x"]) for sample in feeds])).max(0)
    relative = normed / np.median(normed)
    expected = relative / np.log2(2 + relative)
    for scale in (1.0, 1000.0):
        scaled = model.clone()
        gain = stored(model, "w0") * np.float32(scale)
        scaled.graph.initializers["w0"].const_value = ir.tensor(gain, name="w0")
        before = model.with_graph(scaled)
        changed = logarithmically_smoothed(before, feeds)
        assert changed is not None
        found = stored(changed, "w1") / stored(before, "w1")
        np.testing.assert_allclose(found, np.tile(expected, (4, 1)), rtol=1e-4)
        x = feeds[0]["x"]
        np.testing.assert_allclose(run(changed, x), run(before, x), rtol=1e-4, atol=1e-4 * scale)


def test_logarithmic_factors_leave_channels_that_are_all_zero(net) -> None:
    n = net((3, 8))
    scale = n.stored(8)
    n("LayerNormalization", scale, axis=-1)
    n("Gemm", n.stored(4, 8), n.stored(4), transB=1)
    feeds = [{"x": np.ones((3, 8), np.float32)}]
    model = n.model()
    changed = logarithmically_smoothed(model, feeds)
    assert changed is not None
    np.testing.assert_array_equal(stored(changed, "w1"), stored(model, "w1"))
