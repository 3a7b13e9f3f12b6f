"""Activations that lose most are tried with two regions; what helps at little cost stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import fptq
from fptq.cache import Cache
from fptq.calibrate import collect, needed, observer
from fptq.config import Recipe
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import PROFILES, Encoding, Placement, place
from fptq.recipes.problem import Problem
from fptq.recipes.refine import Refined, unrefined
from fptq.recipes.two_regions import TAIL_SHARE, in_two_regions
from fptq.rewrite.channels import channel_extremes

BOTH = [pytest.param(name, marks=pytest.mark.engine(name)) for name in ("onnxruntime", "openvino")]
WIDE = 64


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 32, 16)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def spiky(net: Callable) -> Model:
    """Layers of one size; between two of them, two channels reach far beyond the others, for few tokens."""
    n = net((1, 32, 16))
    n("MatMul", n.stored(16, WIDE))
    n("Sigmoid")
    factors, powers = n.stored(WIDE), n.stored(WIDE)
    stands_out = np.isin(np.arange(WIDE), (5, 40))
    factors.const_value = ir.tensor(np.where(stands_out, 3, 1).astype(np.float32), name=factors.name)
    powers.const_value = ir.tensor(np.where(stands_out, 5, 1).astype(np.float32), name=powers.name)
    n("Mul", factors)
    n("Pow", powers)
    weight = n.stored(WIDE, WIDE)
    content = query.constant(weight)
    assert content is not None  # what reaches far is worth little
    weight.const_value = ir.tensor(content * np.where(stands_out, 0.05, 1).astype("f4")[:, None], name=weight.name)
    n("MatMul", weight)
    n("Relu")
    n("MatMul", n.stored(WIDE, WIDE))
    n("Relu")
    n("MatMul", n.stored(WIDE, WIDE))
    return n.model()


def cut(
    model: Model, score: Callable[[Model, Encoding], float], folder: Path, *, found_by: str = "lp", **options: object
) -> Refined:
    recipe = Recipe.of({"threads": 1, "engine": "onnxruntime", "recipe": "best", **options})
    feeds = samples(8)
    problem = Problem(
        model=model,
        calibration=feeds[2:],
        held_out=tuple(feeds[:2]),
        task=None,
        recipe=recipe,
        store=Cache(folder),
    )
    profile = PROFILES["onnxruntime"]
    plan = place(model, profile, profile.variants[0])
    statistics = collect(model, needed(plan, [observer(found_by)]), problem.calibration)
    start = unrefined(model, plan, statistics=statistics, recipe=recipe)
    return in_two_regions(start, problem=problem, score=score)


def tails(encoding: Encoding) -> list[str]:
    return [p.value for p in encoding.plan.activations if p.value.endswith("_tail")]


def better_with(model: Model, encoding: Encoding) -> float:
    return 30.0 + len(tails(encoding))


def test_the_worst_is_cut_where_few_channels_reach_farthest(spiky, tmp_path) -> None:
    found = cut(spiky, better_with, tmp_path)
    assert found.tried[0].name.startswith("two regions for v3 (its own SQNR ")
    assert found.tried[0].name.endswith("tail of 2 of 64 channels)")
    assert found.tried[0].kept
    assert found.encoding.rewrites[0].endswith("output SQNR 30.00 -> 31.00 dB on held-out samples")
    channels = query.constant(found.model.graph.initializers["v3_tail_channels"])
    assert channels is not None
    assert channels.tolist() == [5, 40]
    _, high = channel_extremes(spiky, {"v3": 2}, samples(8)[2:])["v3"]
    end = query.constant(found.model.graph.initializers["v3_high"])
    assert end is not None  # the others may reach half as far again on other samples
    assert float(end) == pytest.approx(1.5 * np.delete(high, [5, 40]).max(), rel=0.01)
    assert found.encoding.model_sha256 == found.model.sha256


def test_what_does_not_help_leaves_no_trace(spiky, tmp_path) -> None:
    found = cut(spiky, lambda model, encoding: 30.0, tmp_path)
    assert found.tried
    assert not any(one.kept for one in found.tried)
    assert found.model is spiky
    assert found.encoding.rewrites == ()


def test_all_tails_together_stay_within_the_budget(spiky, tmp_path) -> None:
    found = cut(spiky, better_with, tmp_path)
    stored = found.model.graph.initializers
    copies = [query.constant(stored[p.value]) for p in found.encoding.plan.weights if p.value.endswith("tail_weight")]
    weights = 16 * WIDE + 3 * WIDE**2
    assert 0 < sum(copy.size for copy in copies if copy is not None) <= TAIL_SHARE * weights


@pytest.mark.parametrize("recipe", ["fast", "auto"])
def test_other_recipes_run_nothing(spiky, tmp_path, recipe: str) -> None:
    def refuse(model: Model, encoding: Encoding) -> float:
        raise AssertionError("nothing is judged")

    assert cut(spiky, refuse, tmp_path, recipe=recipe).tried == ()


def test_an_observer_without_histograms_is_left_its_ranges(spiky, tmp_path) -> None:
    found = cut(spiky, better_with, tmp_path, found_by="minmax", observer="minmax")
    assert found.tried == ()


@pytest.mark.parametrize("engine", BOTH)
def test_two_regions_rescue_an_activation_with_spikes(spiky, tmp_path, engine: str) -> None:
    save(spiky, tmp_path / "net.onnx")
    options = {"engine": engine, "threads": 1, "gate": "off", "cache": tmp_path / "cache"}
    made = fptq.quantize(tmp_path / "net.onnx", calibration=samples(10), recipe=Recipe(recipe="best", **options))
    trials = [one for one in made.prepared.tried if one.name.startswith("two regions for v3 ")]
    assert [one.kept for one in trials] == [True]
    assert trials[0].after_db > trials[0].before_db + 6
    assert any(line.startswith("two regions for v3 ") for line in made.report.rewrites)
    without = fptq.quantize(tmp_path / "net.onnx", calibration=samples(10), recipe=Recipe(recipe="auto", **options))
    assert made.report.agreement.sqnr_db > without.report.agreement.sqnr_db + 6
    assert any(one.tensor == "v3_tail" for one in made.report.placements)
    folder = made.save(tmp_path / "out")
    plan = json.loads((folder / "plan.json").read_text())
    assert not any("_tail" in row["placement"] for row in plan["placements"])
    again = fptq.quantize(
        tmp_path / "net.onnx",
        calibration=samples(10),
        recipe=Recipe(recipe="best", plan=folder / "plan.json", **options),
    )
    assert tails(again.encoding) == tails(made.encoding)
    assert Placement("v3_tail", "MatMul_4_tail", 0) in again.encoding.plan.specs
