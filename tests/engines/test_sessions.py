"""The contract of every engine: what a new one must do."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fptq.calibrate import calibrate
from fptq.engines import ENGINES, CompileOptions, engine_named
from fptq.engines.benchmark import Timing, Timings, interleaved, under_loads
from fptq.engines.footprint import footprint
from fptq.errors import ConfigError, DataError, EngineError
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import PROFILES, Policy, materialize, place
from fptq.plan.place import place_weights

OPTIONS = CompileOptions(threads=1)
EACH = [pytest.param(name, marks=pytest.mark.engine(ENGINES[name].extra)) for name in ENGINES]


def compiled(name: str, model: Model, folder: Path):
    save(model, folder / "m.onnx")
    return engine_named(name).compile(folder / "m.onnx", OPTIONS)


def sqnr(exact: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()))


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_of_every_rank_equal_the_simulation_in_float(name: str, rank: int, net, tmp_path) -> None:
    n = net((1, 4, *[8] * rank))
    n.conv(4, 16, rank=rank)
    n("Relu")
    n("ConvTranspose", n.stored(16, 6, *[3] * rank), strides=[2] * rank, output_padding=[1] * rank, pads=[1] * 2 * rank)
    model = n.model()
    x = {"x": np.random.default_rng(0).standard_normal((1, 4, *[8] * rank)).astype(np.float32)}
    reference = compiled("simulation", model, tmp_path)(x)
    found = compiled(name, model, tmp_path)(x)
    assert found.keys() == reference.keys()
    for output, exact in reference.items():
        np.testing.assert_allclose(found[output], exact, atol=1e-4)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.engine)
def test_every_variant_computes_the_simulated_numbers(name: str, profile, cnn: Model, samples, tmp_path) -> None:
    if name in ("openvino", "tensorrt") and name != profile.engine and "tensorrt" in (name, profile.engine):
        pytest.skip("one takes signed codes only, the other gives wrong numbers for some of them")
    for variant in profile.variants:
        made = materialize(cnn, calibrate(cnn, place(cnn, profile, variant), samples))
        exact = compiled("simulation", cnn, tmp_path)(samples[0])["v10"]
        simulated = compiled("simulation", made, tmp_path)(samples[0])["v10"]
        found = compiled(name, made, tmp_path)(samples[0])["v10"]
        assert abs(sqnr(exact, found) - sqnr(exact, simulated)) < 0.7, variant.name


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.engine)
def test_attention_placed_for_one_engine_runs_on_another(name: str, profile, net, tmp_path) -> None:
    """Signed codes behind Reshape and Transpose, beside unsigned ones of Softmax."""
    n = net((1, 8, 16))
    heads = []
    for axes in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
        n.last = n.input
        n("MatMul", n.stored(16, 16))
        n("Reshape", n.shape(1, 8, 4, 4))
        heads.append(n("Transpose", perm=axes))
    query, key, value = heads
    n.last = query
    n("MatMul", key)
    n("Softmax", axis=-1)
    n("MatMul", value)
    n("Transpose", perm=(0, 2, 1, 3))
    n("Reshape", n.shape(1, 8, 16))
    n("MatMul", n.stored(16, 16))
    model = n.model()
    (output,) = model.outputs
    feeds = [{"x": np.random.default_rng(seed).standard_normal((1, 8, 16)).astype(np.float32)} for seed in range(4)]
    for variant in profile.variants:
        made = materialize(model, calibrate(model, place(model, profile, variant), feeds))
        simulated = compiled("simulation", made, tmp_path)(feeds[0])[output.name]
        found = compiled(name, made, tmp_path)(feeds[0])[output.name]
        assert np.linalg.norm(found - simulated) < 0.01 * np.linalg.norm(simulated), variant.name


@pytest.mark.engine("openvino")
def test_openvino_really_runs_integers(cnn: Model, samples, tmp_path) -> None:
    profile = PROFILES["openvino"]
    made = materialize(cnn, calibrate(cnn, place(cnn, profile, profile.variants[0]), samples))
    ran = {
        name: run.precision for run in compiled("openvino", made, tmp_path).profile(samples[0]) for name in run.nodes
    }
    assert [ran.get(f"Conv_{i}") for i in (0, 3, 7)] == ["int8"] * 3


def test_onnx_runtime_really_runs_integers(cnn: Model, samples, tmp_path) -> None:
    profile = PROFILES["onnxruntime"]
    made = materialize(cnn, calibrate(cnn, place(cnn, profile, profile.variants[0]), samples))
    runs = compiled("onnxruntime", made, tmp_path).profile(samples[0])
    assert sum(run.op == "QLinearConv" for run in runs) == 3
    assert all(run.precision == "int8" for run in runs if run.op == "QLinearConv")


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.engine("openvino"))])
def test_narrow_weights_with_zero_points_run_on_the_kernels_of_symmetric_ones(
    name: str, cnn: Model, samples, tmp_path
) -> None:
    plan = place(cnn, PROFILES[name], PROFILES[name].variants[0])
    ran = []
    for bits, symmetric in ((8, True), (4, False)):
        weights = {p: replace(plan.specs[p], bits=bits, signed=symmetric, symmetric=symmetric) for p in plan.weights}
        made = materialize(cnn, calibrate(cnn, replace(plan, specs={**plan.specs, **weights}), samples))
        ran.append([run.kernel for run in compiled(name, made, tmp_path).profile(samples[0], runs=1)])
    assert ran[0] == ran[1]


def test_gemm_with_an_int32_bias_runs_as_qgemm(net, tmp_path) -> None:
    n = net((8, 32))
    n("Gemm", n.stored(32, 16), n.stored(16))
    model = n.model()
    x = [{"x": np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)}]
    profile = PROFILES["onnxruntime"]
    made = materialize(model, calibrate(model, place(model, profile, profile.variants[0]), x))
    assert {run.op for run in compiled("onnxruntime", made, tmp_path).profile(x[0])} >= {"QGemm"}


@pytest.mark.parametrize("name", EACH)
def test_a_missing_input_is_named(name: str, cnn: Model, tmp_path) -> None:
    with pytest.raises(DataError, match="'x'"):
        compiled(name, cnn, tmp_path)({"y": np.zeros(1, np.float32)})


@pytest.mark.parametrize("name", EACH)
def test_what_an_engine_refuses_is_an_engine_error(name: str, tmp_path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"this is no model")
    with pytest.raises(EngineError, match=r"bad\.onnx"):
        engine_named(name).compile(tmp_path / "bad.onnx", OPTIONS)


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="openvino"):
        engine_named("tensorflow")


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.engine("openvino"))])
def test_memory_is_measured_in_a_process_of_its_own(name: str, cnn: Model, samples, tmp_path) -> None:
    save(cnn, tmp_path / "m.onnx")
    found = footprint(tmp_path / "m.onnx", name, samples[0], OPTIONS)
    assert 0 < found.peak_memory_mb < 2000
    assert found.load_s > 0


class Clockwork:
    """A session whose runs take what it is told."""

    load_s = 0.0

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.log: list[float] = []

    def time(self, feeds: object) -> float:
        self.log.append(self.seconds[len(self.log) % len(self.seconds)])
        return self.log[-1]


def test_contenders_take_turns_after_a_warm_up() -> None:
    fast, slow = Clockwork(9.0, 0.010), Clockwork(9.0, 0.020)
    fast.seconds += [0.010] * 10
    slow.seconds += [0.020] * 10
    found = interleaved({"fast": fast, "slow": slow}, {}, rounds=5)  # type: ignore[dict-item]
    assert len(fast.log) == len(slow.log) == 6
    assert found["fast"].median_ms == pytest.approx(10.0)
    assert found["fast"].speedup_over(found["slow"]) == pytest.approx(2.0)


def test_runs_that_waited_for_a_processor_do_not_count() -> None:
    timing = Timing(samples=(10.0, 50.0, 11.0, 12.0), waited=(0.0, 0.6, 0.01, 0.0))
    assert timing.counted == (10.0, 11.0, 12.0)
    assert timing.runs == 3


def test_where_every_run_waited_the_calmer_half_counts() -> None:
    timing = Timing(samples=tuple(range(1, 9)), waited=(0.5, 0.1, 0.2, 0.9, 0.8, 0.7, 0.3, 0.6))
    assert timing.counted == (1, 2, 3, 7)


def test_a_speedup_is_paired_by_rounds() -> None:
    """A machine that slows down by half changes no ratio."""
    slow = Timing(samples=(10.0, 10.0, 20.0, 20.0, 20.0), waited=(0.0,) * 5)
    fast = Timing(samples=(5.0, 5.0, 10.0, 10.0, 10.0), waited=(0.0,) * 5)
    assert fast.speedup_over(slow) == fast.sure_speedup_over(slow) == 2.0


def test_a_sure_speedup_is_below_the_median_where_rounds_disagree() -> None:
    fast = Timing(samples=(1.0,) * 9, waited=(0.0,) * 9)
    slow = Timing(samples=(1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9), waited=(0.0,) * 9)
    assert fast.speedup_over(slow) == 1.5
    assert fast.sure_speedup_over(slow) == 1.3  # P(at most 2 of 9 below the median) = 0.0898


def test_speedups_under_several_loads_are_averaged_as_ratios() -> None:
    one, many = (Timing(samples=(ms,) * 3, waited=(0.0,) * 3) for ms in (4.0, 90.0))
    own = Timing(samples=(1.0,) * 3, waited=(0.0,) * 3), Timing(samples=(90.0,) * 3, waited=(0.0,) * 3)
    ours, other = Timings(by_load=own), Timings(by_load=(one, many))
    assert ours.speedups_over(other) == ours.sure_speedups_over(other) == (4.0, 1.0)
    assert ours.speedup_over(other) == ours.sure_speedup_over(other) == pytest.approx(2.0)
    assert ours.median_ms == 1.0


def test_contenders_take_turns_under_each_load_half_as_often_under_a_larger_one() -> None:
    session = Clockwork(1.0)
    found = under_loads({"one": session}, [{}, {}], rounds=5)  # type: ignore[dict-item]
    assert len(session.log) == 1 + 5 + 1 + 3
    assert [len(timing.samples) for timing in found["one"].by_load] == [5, 3]


@pytest.mark.engine("onnxruntime")
def test_weights_that_are_only_stored_are_not_expanded_in_every_run(cnn: Model, samples, tmp_path) -> None:
    plan = place_weights(cnn, PROFILES["onnxruntime"], Policy())
    session = compiled("onnxruntime", materialize(cnn, calibrate(cnn, plan, samples)), tmp_path)
    assert "DequantizeLinear" not in {run.op for run in session.profile(samples[0])}


@pytest.mark.parametrize("name", EACH)
def test_mapped_weights_compute_the_same_bits(name: str, net, tmp_path) -> None:
    n = net((1, 8, 256))
    n("MatMul", n.stored(256, 512))
    n("Relu")
    n("MatMul", n.stored(512, 64))
    x = {"x": np.random.default_rng(0).standard_normal((1, 8, 256)).astype(np.float32)}
    save(n.model(), tmp_path / "m.onnx", limit=1)
    held = engine_named(name).compile(tmp_path / "m.onnx", OPTIONS)
    mapped = engine_named(name).compile(tmp_path / "m.onnx", replace(OPTIONS, weights="mapped"))
    for output, exact in held(x).items():
        np.testing.assert_array_equal(mapped(x)[output], exact)
    assert {run.op for run in mapped.profile(x)} == {run.op for run in held.profile(x)}
    for output, exact in held(x).items():  # after the profile has closed the session
        np.testing.assert_array_equal(mapped(x)[output], exact)


def test_the_file_of_mapped_weights_goes_with_the_session(cnn: Model, samples, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    save(cnn, tmp_path / "m.onnx")
    session = engine_named("onnxruntime").compile(tmp_path / "m.onnx", replace(OPTIONS, weights="mapped"))
    assert list(tmp_path.glob("fptq-*/m.onnx"))
    session(samples[0])
    del session
    gc.collect()
    assert not list(tmp_path.glob("fptq-*"))
