from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fptq.calibrate import CalibrationOptions, collect
from fptq.engines import ENGINES, CompileOptions, Engine, Session
from fptq.graph import query
from fptq.graph.model import Model
from fptq.numerics import QuantizerSpec
from fptq.plan import PROFILES, Policy, Refusal, materialize
from fptq.search import Candidates, Gate

pytestmark = pytest.mark.engine("openvino")


def candidates(model: Model, engine: str = "openvino") -> Candidates:
    return Candidates(model=model, profile=PROFILES[engine], policy=Policy(), options=CalibrationOptions())


def gate(engine: Engine | Counting, model: Model, samples: list[dict[str, np.ndarray]], folder: Path) -> Gate:
    made = candidates(model, engine.name)
    return Gate(
        engine=engine,
        float_model=model,
        candidates=made,
        statistics=collect(model, made.statistics_needed(), samples),
        samples=tuple(samples[:2]),
        folder=folder,
        threads=1,
        rounds=3,
        seconds=5.0,
    )


def test_variants_that_come_out_equal_are_measured_once(net) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 8)
    plans = candidates(n.model()).plans()
    assert len(plans) == 2  # unsigned and signed: there is nothing to join, add or normalise
    activations = {next(iter(p.specs[a] for a in p.activations)).signed for p in plans.values()}
    assert activations == {False, True}


def test_one_pass_collects_for_every_variant(cnn: Model, samples) -> None:
    made = candidates(cnn)
    statistics = collect(cnn, made.statistics_needed(), samples)
    for name in made.plans():
        candidate = made.make(name, statistics)
        assert materialize(cnn, candidate.encoding).graph


def test_a_layer_taken_back_says_why_and_can_keep_integer_weights(cnn: Model, samples) -> None:
    made = candidates(cnn)
    statistics = collect(cnn, made.statistics_needed(), samples)
    back = (Refusal(node="Conv_7", op="Conv", reason="measured: slower"),)
    name = next(iter(made.plans()))
    candidate = made.make(name, statistics, back)
    assert "Conv_7" not in {p.consumer for p in candidate.encoding.plan.specs}
    assert [r.reason for r in candidate.encoding.plan.refusals if r.node == "Conv_7"] == ["measured: slower"]
    stored = made.stored(candidate, "")
    assert "Conv_7" in {p.consumer for p in stored.encoding.plan.weights}
    assert not any(p.consumer == "Conv_7" for p in stored.encoding.plan.activations)


def test_a_reader_of_moved_codes_can_be_taken_back(net, samples) -> None:
    """Two readers ask for one quantizer in front of the MaxPool; when one leaves, it moves behind."""
    n = net((1, 4, 16, 16))
    n.conv(4, 8)
    n("Relu")
    pooled = n("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    left = n.conv(8, 8)
    n.last = pooled
    n.conv(8, 8)
    n("Sub", left)
    made = candidates(n.model())
    statistics = collect(made.model, made.statistics_needed(), [{"x": np.ones((1, 4, 16, 16), np.float32)}])
    reader = next(node for node, _ in query.readers(pooled))
    for name in made.plans():
        back = (Refusal(node=str(reader.name), op="Conv", reason="measured: slower"),)
        assert made.make(name, statistics, back).encoding.plan.activations


def test_storage_alone_quantizes_no_activation(cnn: Model) -> None:
    stored = candidates(cnn).stored(None, "measured: float is faster")
    assert stored.encoding.plan.activations == ()
    reasons = {r.reason for r in stored.encoding.plan.refusals}
    assert "measured: float is faster" in reasons


class Counting:
    """An engine that counts how often it compiles the float network."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.floats = engine, list[CompileOptions]()
        self.name, self.extra, self.computes_in_f32 = engine.name, engine.extra, engine.computes_in_f32

    def compile(self, model: Path, options: CompileOptions) -> Session:
        if not any(node.op_type == "DequantizeLinear" for node in ir.load(model).graph):
            self.floats.append(options)
        return self.engine.compile(model, options)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize(("engine", "sessions"), [("openvino", 2), ("onnxruntime", 1)])
def test_no_float_network_is_compiled_twice(
    engine: str, sessions: int, large: bool, cnn: Model, samples, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("fptq.graph.rest.LARGE", 1 if large else 1 << 30)
    counting = Counting(ENGINES[engine])
    gate(counting, cnn, samples, tmp_path).choose()
    assert [options.weights for options in counting.floats] == ["mapped" if large else "held"] * sessions


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_gate_measures_and_explains(engine: str, cnn: Model, samples, tmp_path) -> None:
    outcome = gate(ENGINES[engine], cnn, samples, tmp_path).choose()
    assert outcome.trials
    assert outcome.latency_ms > 0
    assert outcome.sizes == ""
    assert all(trial.speedups == (pytest.approx(trial.speedup),) for trial in outcome.trials)
    assert all(trial.median_ms > 0 and trial.sqnr_db is not None for trial in outcome.trials)
    json.dumps([vars(trial) for trial in outcome.trials])
    plan = outcome.candidate.encoding.plan
    assert plan.weights
    if not outcome.pays:
        assert plan.activations == ()
        assert any("not faster" in note for note in outcome.notes)
    assert all(isinstance(spec, QuantizerSpec) for spec in plan.specs.values())


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_network_of_any_batch_is_judged_on_a_sample_and_on_many(engine: str, net, tmp_path) -> None:
    n = net(("batch", 4, 16, 16))
    n.conv(4, 16)
    n("Relu")
    n.conv(16, 16)
    given = [{"x": np.random.default_rng(i).standard_normal((1, 4, 16, 16)).astype(np.float32)} for i in range(3)]
    outcome = gate(ENGINES[engine], n.model(), given, tmp_path).choose()
    assert outcome.sizes == "16 x 4 x 16 x 16"
    assert {len(trial.speedups) for trial in outcome.trials} == {2}
    for trial in outcome.trials:
        assert min(trial.speedups) <= trial.speedup <= max(trial.speedups)
