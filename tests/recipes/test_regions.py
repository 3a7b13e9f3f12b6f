"""What the recipe says of regions and of inputs that engines compute on in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fptq
from fptq.config import Recipe
from fptq.errors import ConfigError
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan.float_inputs import quantized_for_float

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
