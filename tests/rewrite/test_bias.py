from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fptq.calibrate import calibrate
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import PerChannel, QuantizerSpec
from fptq.plan import materialize
from fptq.plan.plan import Plan
from fptq.rewrite.bias import corrected_biases


def weight_plan(name: str, axis: int) -> Plan:
    placement = Placement("w0", name, 1)
    return Plan(
        engine="",
        specs={placement: QuantizerSpec(bits=3, granularity=PerChannel(axis=axis))},
        weights=frozenset({placement}),
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("op", "group"), [("Conv", 1), ("Conv", 2), ("ConvTranspose", 1), ("ConvTranspose", 2)])
def test_the_mean_of_each_channel_comes_back(net, rank: int, op: str, group: int, has_bias: bool) -> None:
    n = net((2, 4, *[10] * rank))
    kernel = [1] * rank  # no border: the correction is exact
    shape = (6, 4 // group) if op == "Conv" else (4, 6 // group)
    weight = n.stored(*shape, *kernel)
    n(op, weight, *([n.stored(6)] if has_bias else []), group=group, kernel_shape=kernel)
    model = n.model()
    rng = np.random.default_rng(0)
    x = {"x": (rng.standard_normal((2, 4, *[10] * rank)) + 1.5).astype(np.float32)}
    encoding = calibrate(model, weight_plan(f"{op}_0", 0 if op == "Conv" else 1), [x])
    corrected = corrected_biases(model, encoding, [x])
    assert corrected is not None
    exact, biased = channel_means(model, x), channel_means(materialize(model, encoding), x)
    repaired = channel_means(materialize(corrected, encoding), x)
    assert np.abs(biased - exact).max() > 1e-2
    np.testing.assert_allclose(repaired, exact, atol=1e-4)


def channel_means(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(model.graph_model).SerializeToString()
    (output,) = ort.InferenceSession(proto).run(None, feeds)
    return np.asarray(output).mean(axis=(0, *range(2, output.ndim)))


def test_gemm_is_corrected(net) -> None:
    n = net((16, 6))
    n("Gemm", n.stored(6, 4), n.stored(4))
    model = n.model()
    x = {"x": np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32) + 2}
    encoding = calibrate(model, weight_plan("Gemm_0", 1), [x])
    corrected = corrected_biases(model, encoding, [x])
    assert corrected is not None
    before = query.constant(model.graph.initializers["w1"])
    after = query.constant(corrected.graph.initializers["w1"])
    assert not np.allclose(before, after)


def test_layers_that_a_normalisation_centres_are_left_alone(net) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 8)
    n("InstanceNormalization", n.stored(8), n.stored(8))
    model = n.model()
    x = {"x": np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)}
    assert corrected_biases(model, calibrate(model, weight_plan("Conv_0", 0), [x]), [x]) is None
