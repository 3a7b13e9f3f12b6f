"""What the recipe says of regions and of inputs that engines compute on in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fptq
from fptq.calibrate import collect, needed, observer
from fptq.config import Recipe
from fptq.errors import ConfigError
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import PROFILES, place
from fptq.plan.float_inputs import quantized_for_float, with_float_inputs
from fptq.recipes.policies import everywhere
from fptq.recipes.policies.offer import rewriting
from fptq.recipes.policies.spots import extremes_of, lossy_inputs
from fptq.recipes.workbench import Refined, unrefined
from fptq.rewrite import Change

BOTH = [pytest.param(name, marks=pytest.mark.engine(name)) for name in ("onnxruntime", "openvino")]


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_t(3, (1, 32, 16)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def block(net: Callable) -> Model:
    """A feed-forward layer between two normalisations."""
    n = net((1, 32, 16))
    n("LayerNormalization", n.stored(16, scale=1.0), n.stored(16), axis=-1)
    n("MatMul", n.stored(16, 64, scale=0.6))
    n("Gelu")
    n("MatMul", n.stored(64, 16))
    n("LayerNormalization", n.stored(16, scale=1.0), n.stored(16), axis=-1)
    n("MatMul", n.stored(16, 16))
    return n.model()


def quantized(model: Model, folder: Path, **options: object) -> fptq.Result:
    save(model, folder / "net.onnx")
    recipe = Recipe.of({"threads": 1, "gate": "off", "recipe": "fast", "cache": folder / "cache", **options})
    return fptq.quantize(folder / "net.onnx", calibration=samples(10), recipe=recipe)


@pytest.mark.parametrize("engine", BOTH)
def test_more_regions_lose_less_on_the_engine(block: Model, tmp_path: Path, engine: str) -> None:
    kinds = ("layernorm", "activation")
    made = {
        regions: quantized(block, tmp_path, engine=engine, also_quantize=kinds, regions=regions, activation_bits=6)
        for regions in ("auto", "one", "two", "three")
    }
    lost = {regions: one.report.agreement.sqnr_db for regions, one in made.items()}
    assert lost["auto"] == lost["one"]  # "fast" tries nothing
    assert lost["two"] > lost["one"] + 6
    assert lost["three"] > lost["two"] + 1
    lines = made["three"].report.rewrites
    assert sum(line.startswith("three regions for ") for line in lines) == 6
    assert sum("read in float without gain" in line for line in lines) == 3
    assert made["one"].report.rewrites == ()


@pytest.mark.parametrize("engine", BOTH)
def test_the_report_says_what_is_without_gain(block: Model, tmp_path: Path, engine: str) -> None:
    made = quantized(block, tmp_path, engine=engine, also_quantize="layernorm")
    reasons = {row.node: row.reason for row in made.report.refusals}
    said = f"its input is quantized without gain: {engine} computes LayerNormalization in float"
    assert [node for node, reason in reasons.items() if reason == said] == [
        "LayerNormalization_0",
        "LayerNormalization_4",
    ]
    assert len(quantized_for_float(made.encoding.plan)) == 2
    folder = made.save(tmp_path / "out")
    again = quantized(block, tmp_path, engine=engine, plan=folder / "plan.json")
    assert again.encoding.plan.specs == made.encoding.plan.specs
    plain = quantized(block, tmp_path, engine=engine)
    assert quantized_for_float(plain.encoding.plan) == ()


def test_a_kind_that_the_network_lacks_is_an_error(block: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no input of the kind 'softmax'"):
        quantized(block, tmp_path, engine="onnxruntime", also_quantize="softmax")


def one_after_the_other(*changes: Change) -> Callable[[Refined], Refined]:
    def make(found: Refined) -> Refined:
        for change in changes:
            found = rewriting(change)(found)
        return found

    return make


@pytest.mark.parametrize("corrected", [False, True])
def test_all_cuts_together_are_the_cuts_one_after_the_other(block: Model, monkeypatch, corrected: bool) -> None:
    model, profile = Model(graph_model=block.graph_model, origin={"MatMul_1": ("up",)}), PROFILES["onnxruntime"]
    plan = with_float_inputs(model, place(model, profile, profile.variants[0]), ("layernorm", "activation"))
    feeds = samples(4)
    found = unrefined(
        model, plan, statistics=collect(model, needed(plan, [observer("lp")]), feeds), recipe=Recipe.of({})
    )
    if corrected:  # a network whose biases were corrected is another one than the exact one
        found = replace(found, model=model.with_graph(model.clone()))
    extremes = extremes_of(found, feeds, lossy_inputs(found))
    together = everywhere.everywhere_in_regions(found, extremes, count=3, p=2.0)
    monkeypatch.setattr(everywhere, "rewriting", one_after_the_other)
    apart = everywhere.everywhere_in_regions(found, extremes, count=3, p=2.0)
    assert len(together.encoding.rewrites) == 6
    assert together.encoding.rewrites == apart.encoding.rewrites
    assert together.model.sha256 == together.encoding.model_sha256 == apart.model.sha256 == apart.encoding.model_sha256
    assert together.exact.sha256 == apart.exact.sha256
    assert (together.exact is together.model) != corrected
    assert together.model.origin == apart.model.origin
    assert "MatMul_1_tail" in together.model.origin
    assert together.encoding.plan == apart.encoding.plan
    assert list(together.encoding.params) == list(apart.encoding.params)
    for placement, params in together.encoding.params.items():
        np.testing.assert_array_equal(params.scale, apart.encoding.params[placement].scale)
        np.testing.assert_array_equal(params.zero_point, apart.encoding.params[placement].zero_point)
