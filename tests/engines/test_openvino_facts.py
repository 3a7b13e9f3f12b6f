"""The facts of OpenVINO's profile, tried on the installed version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fptq.calibrate import calibrate
from fptq.engines import CompileOptions, engine_named
from fptq.engines.cpu import detect
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.numerics import QuantizerSpec
from fptq.plan import PROFILES, Placement, materialize, place
from fptq.plan.plan import Plan
from fptq.plan.profile import Family, Variant
from fptq.rewrite import bias_for_several_readers, hidden_rows_by_mask

pytestmark = pytest.mark.engine("openvino")
PROFILE = PROFILES["openvino"]
SIGNED, UNSIGNED = QuantizerSpec(), QuantizerSpec(signed=False, symmetric=False)
OPTIONS = CompileOptions(threads=1)


def sqnr(exact: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()))


def against_simulation(model: Model, plan: Plan, x: np.ndarray, folder: Path) -> tuple[float, float]:
    made = materialize(model, calibrate(model, plan, [{"x": x}]))
    save(model, folder / "f.onnx")
    save(made, folder / "q.onnx")
    name = model.outputs[0].name
    exact = engine_named("simulation").compile(folder / "f.onnx", OPTIONS)({"x": x})[name]
    found = (engine_named(e).compile(folder / "q.onnx", OPTIONS)({"x": x})[name] for e in ("simulation", "openvino"))
    simulated, ran = (sqnr(exact, array) for array in found)
    return simulated, ran


def plan_of(model: Model, activation: QuantizerSpec) -> Plan:
    return place(model, PROFILE, Variant(name="t", families=frozenset({Family.CORE}), activation=activation))


def test_placement_behind_a_concat_gives_the_simulated_numbers(net, tmp_path) -> None:
    n = net((1, 4, 6, 6, 6))
    n.conv(4, 16, rank=3)
    skip = n("LeakyRelu", alpha=0.1)
    n.conv(16, 16, rank=3)
    n("LeakyRelu", alpha=0.1)
    n("Concat", skip, axis=1)
    n.conv(32, 8, rank=3)
    model = n.model()
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6, 6)).astype(np.float32)
    plan = plan_of(model, SIGNED)
    assert not plan.specs[Placement("v4", "Conv_5", 0)].signed
    assert plan.specs[Placement("v1", "Conv_2", 0)].signed
    simulated, ran = against_simulation(model, plan, x, tmp_path)
    assert abs(simulated - ran) < 0.5


@pytest.mark.parametrize("activation", [SIGNED, UNSIGNED], ids=str)
def test_transposed_convolutions_run_as_integers(net, activation: QuantizerSpec, tmp_path) -> None:
    n = net((1, 4, 6, 6, 6))
    n.conv(4, 16, rank=3)
    n("LeakyRelu", alpha=0.1)
    n("ConvTranspose", n.stored(16, 16, 2, 2, 2), strides=[2, 2, 2], kernel_shape=[2, 2, 2])
    model = n.model()
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6, 6)).astype(np.float32)
    made = materialize(model, calibrate(model, plan_of(model, activation), [{"x": x}]))
    save(made, tmp_path / "q.onnx")
    runs = engine_named("openvino").compile(tmp_path / "q.onnx", OPTIONS).profile({"x": x})
    assert [run.precision for run in runs if run.op == "Deconvolution"] == ["int8"]
    simulated, ran = against_simulation(model, plan_of(model, activation), x, tmp_path)
    assert abs(simulated - ran) < 0.5


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_convolution_that_several_read_is_scaled_once_with_a_dynamic_batch(net, op, rank, tmp_path) -> None:
    n = net(("n", 16, *[8] * rank))
    first = n(op, n.stored(16, 16, *[3] * rank), pads=[1] * 2 * rank)
    n("Relu")
    n.conv(16, 16, rank=rank)
    n("Add", first)
    model = bias_for_several_readers(n.model())
    x = np.abs(np.random.default_rng(0).standard_normal((2, 16, *[8] * rank)).astype(np.float32))
    simulated, ran = against_simulation(model, plan_of(model, UNSIGNED), x, tmp_path)
    assert abs(simulated - ran) < 0.5
    assert simulated > 20


@pytest.mark.parametrize(("moved", "precision"), [(False, "bf16"), (True, "f32")])
def test_a_bf16_product_that_writes_codes_runs_in_f32(moved: bool, precision: str, net, tmp_path) -> None:
    if not detect().bf16:
        pytest.skip("this processor has no bf16")
    n = net((2, 8, 64, 64))
    x = n.scores()
    n("Relu")
    product = n("MatMul", x)
    n("Transpose", perm=[0, 2, 1, 3])
    joined = n("Reshape", n.shape(2, 64, 512))
    n("MatMul", n.stored(512, 64))
    model = n.model()
    weight = Placement(str(n.nodes[-1].inputs[1].name), "MatMul_6", 1)
    placement = Placement(str(product.name), "Transpose_4", 0) if moved else Placement(str(joined.name), "MatMul_6", 0)
    plan = Plan(engine="openvino", specs={placement: UNSIGNED, weight: SIGNED}, weights=frozenset({weight}))
    given = {"x": np.random.default_rng(0).standard_normal((2, 8, 64, 64)).astype(np.float32)}
    save(materialize(model, calibrate(model, plan, [given])), tmp_path / "q.onnx")
    options = CompileOptions(threads=1, float_precision="default")
    ran = engine_named("openvino").compile(tmp_path / "q.onnx", options).profile(given)
    assert [run.precision for run in ran if run.op == "MatMul"][-1] == precision


@pytest.mark.parametrize("guarded", [True, False])
def test_a_guard_against_nan_parts_attention(guarded: bool, net, tmp_path) -> None:
    n = net((2, 8, 64, 64))
    x = n.scores()
    softmax = n("Softmax", axis=-1)
    n("IsNaN").dtype = ir.DataType.BOOL
    n("Where", n.stored(1, scale=0.0), softmax)
    n("MatMul", x)
    n("Mul", n.stored(64))
    model = n.model() if guarded else hidden_rows_by_mask(n.model())
    save(model, tmp_path / "m.onnx")
    given = {"x": np.random.default_rng(0).standard_normal((2, 8, 64, 64)).astype(np.float32)}
    ran = engine_named("openvino").compile(tmp_path / "m.onnx", OPTIONS).profile(given)
    assert ("MatMul" in {run.op for run in ran}) == guarded
