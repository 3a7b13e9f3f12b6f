"""What is tried to lower the output error, and what of it stays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

import fptq
from fptq.calibrate import CalibrationOptions, observer, solve, weight_observer
from fptq.config import Recipe
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import materialize
from fptq.plan.encoding import Encoding
from fptq.recipes import refine as refining
from fptq.recipes.refine import refine
from fptq.recipes.workbench import MARGIN, Refined
from fptq.rewrite.channels import channel_means

ENGINE = "onnxruntime"


@pytest.fixture
def pair_net(net) -> Model:
    """Two convolutions that can be equalized."""
    n = net((1, 4, 8, 8))
    n.conv(4, 16)
    n("Relu")
    n.conv(16, 8)
    n("Relu")
    n.conv(8, 4, kernel=1)
    return n.model()


def samples(count: int, *shape: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal(shape or (1, 4, 8, 8)).astype(np.float32)} for _ in range(count)]


def refined(
    model: Model, score: Callable[[Model, Encoding], float], started: Callable, *, count: int = 6, **options: object
) -> Refined:
    recipe = Recipe.of({"threads": 1, "engine": ENGINE, **options})
    names = ("lp", "minmax") if recipe.observer == "auto" else (recipe.observer,)
    problem, start = started(model, samples(count + 2), recipe, observers=names)
    return refine(start, problem=problem, score=score)


def rising(step: float) -> Callable[[Model, Encoding], float]:
    """A score that every trial raises by so much."""
    numbers = itertools.count()
    return lambda model, encoding: 30 + step * next(numbers)


def names(found: Refined) -> list[str]:
    return [one.name for one in found.tried]


CHEAP = ["activations minmax", "weights lp (clipped)", "cross-layer equalization", "bias correction"]


def test_what_helps_is_kept_and_listed(pair_net, started) -> None:
    found = refined(pair_net, rising(1.0), started)
    assert names(found) == CHEAP
    assert [(one.before_db, one.after_db, one.kept) for one in found.tried] == [
        (30, 31, True),
        (31, 32, True),
        (32, 33, True),
        (33, 34, True),
    ]
    assert found.observers == ("minmax", "lp")
    assert found.encoding.rewrites == (
        "cross-layer equalization: output SQNR 32.00 -> 33.00 dB on held-out samples",
        "bias correction: output SQNR 33.00 -> 34.00 dB on held-out samples",
    )


@pytest.mark.parametrize("recipe", ["auto", "best"])
def test_what_does_not_help_leaves_no_trace(pair_net, started, recipe: str) -> None:
    wavering = itertools.cycle([30.0, 30.0 + 0.9 * MARGIN, 29.0])
    found = refined(pair_net, lambda model, encoding: next(wavering), started, recipe=recipe)
    assert found.tried
    assert not any(one.kept for one in found.tried)
    assert found.model is pair_net
    assert found.encoding.rewrites == ()
    assert found.observers == ("lp", "minmax")


def test_fast_tries_nothing_and_runs_nothing(pair_net, started) -> None:
    def refuse(model: Model, encoding: Encoding) -> float:
        raise AssertionError("nothing is judged")

    found = refined(pair_net, refuse, started, recipe="fast")
    assert found.tried == ()
    assert found.model is pair_net
    assert found.observers == ("lp", "minmax")


def test_best_tries_more(pair_net, started) -> None:
    found = refined(pair_net, rising(1.0), started, recipe="best")
    assert names(found) == [*CHEAP, "bias correction, measured layer by layer"]
    assert len(found.encoding.rewrites) == 3
    axes = {str(node.outputs[0].name): 1 for node in pair_net.graph if node.op_type == "Conv"}
    feeds = samples(8)[2:]
    exact, after = (
        channel_means(model, axes, feeds) for model in (found.exact, materialize(found.model, found.encoding))
    )
    for name, means in exact.items():
        np.testing.assert_allclose(after[name], means, atol=0.01 * np.abs(means).max())


def test_clipped_weights_are_those_of_the_observer(pair_net, started) -> None:
    found = refined(pair_net, rising(1.0), started, observer="minmax", bias_correction="off")
    assert found.observers == ("minmax", "lp")
    plan = found.encoding.plan
    options = CalibrationOptions(observer=observer("minmax"), weight_observer=weight_observer("lp", {"p": 2.0}))
    expected = solve(found.model, plan, found.statistics, options=options)
    for placement in plan.specs:
        np.testing.assert_array_equal(found.encoding.params[placement].scale, expected.params[placement].scale)


def test_options_that_name_a_choice_win(pair_net, started) -> None:
    found = refined(pair_net, rising(1.0), started, recipe="best", observer="percentile", bias_correction="off")
    assert names(found) == ["weights lp (clipped)", "cross-layer equalization"]
    assert found.observers == ("percentile", "lp")


@pytest.fixture
def norm_net(net) -> Model:
    """A norm that can be smoothed."""
    n = net((1, 4, 8, 8))
    n("LayerNormalization", n.stored(8, scale=1.0), n.stored(8), axis=-1)
    n("MatMul", n.stored(8, 8))
    n("Relu")
    n("MatMul", n.stored(8, 4))
    return n.model()


@pytest.mark.parametrize(
    ("count", "scores"),
    [
        (6, [31.0, 33.0, 32.0, 32.5]),
        (20, [34.0, 31.0, 31.5, 33.0, 29.0, 29.5]),  # those that help on a few samples are judged again on all
    ],
)
def test_of_several_smoothings_the_best_one_is_kept(norm_net, started, count: int, scores: list[float]) -> None:
    after = iter([30.0, 20.0, 20.0, *scores])
    found = refined(norm_net, lambda model, encoding: next(after), started, count=count, recipe="best")
    smoothing = [one for one in found.tried if "smoothing" in one.name]
    assert [one.name for one in smoothing] == [
        "smoothing, alpha 0.25",
        "smoothing, alpha 0.5",
        "smoothing, alpha 0.75",
        "logarithmic smoothing",
    ]
    assert [one.kept for one in smoothing] == [False, True, False, False]
    assert {one.before_db for one in smoothing} == {30.0}
    assert len(found.statistics.samples) == count
    assert found.encoding.rewrites == ("smoothing, alpha 0.5: output SQNR 30.00 -> 33.00 dB on held-out samples",)


def test_a_rewrite_is_tried_on_a_few_samples_and_kept_on_all(pair_net, started) -> None:
    seen: list[int] = []
    score = rising(1.0)

    def watched(model: Model, encoding: Encoding) -> float:
        seen.append(1)
        return score(model, encoding)

    found = refined(pair_net, watched, started, count=20)
    assert len(found.statistics.samples) == 20
    assert len(seen) == 1 + len(found.tried) + 1  # the start, each trial, and equalization again on all samples


def test_a_rewrite_that_gains_only_on_a_few_samples_is_dropped(pair_net, started) -> None:
    after = iter([30.0, 20.0, 20.0, 35.0, 30.0, 20.0])
    found = refined(pair_net, lambda model, encoding: next(after), started, count=20)
    (trial,) = (one for one in found.tried if one.name == "cross-layer equalization")
    assert (trial.after_db, trial.kept) == (30.0, False)
    assert found.model is pair_net


def test_a_rewrite_that_changes_the_network_is_not_run(pair_net, started, monkeypatch, caplog) -> None:
    def broken(model: Model) -> Model:
        changed = model.clone()
        weight = query.constant(changed.graph.initializers["w0"])
        assert weight is not None
        changed.graph.initializers["w0"].const_value = ir.tensor(2 * weight, name="w0")
        return model.with_graph(changed)

    monkeypatch.setattr(refining, "equalized", broken)
    found = refined(pair_net, rising(1.0), started)
    (trial,) = (one for one in found.tried if one.name == "cross-layer equalization")
    assert not trial.kept
    assert math.isnan(trial.after_db)
    assert "cross-layer equalization is not tried" in caplog.text


def test_outputs_that_cannot_be_compared_are_not_refined(pair_net, started) -> None:
    assert refined(pair_net, lambda model, encoding: math.nan, started).tried == ()
    assert refined(pair_net, lambda model, encoding: math.inf, started).tried == ()


def unequal(model: Model) -> Model:
    """The network with channels of very different size between its first two layers; it computes the same."""
    changed = model.clone()
    factors = np.logspace(-1.5, 1.5, 16).astype(np.float32)
    for name, by in (("w0", factors.reshape(16, 1, 1, 1)), ("w1", factors), ("w2", 1 / factors.reshape(1, 16, 1, 1))):
        content = query.constant(changed.graph.initializers[name])
        assert content is not None
        changed.graph.initializers[name].const_value = ir.tensor(content * by, name=name)
    return model.with_graph(changed)


def test_equalization_rescues_channels_of_unequal_size(pair_net, tmp_path) -> None:
    save(unequal(pair_net), tmp_path / "net.onnx")
    found = {
        name: fptq.quantize(
            tmp_path / "net.onnx",
            calibration=samples(8),
            recipe=Recipe(recipe=name, engine=ENGINE, threads=1, gate="off", granularity="tensor", cache=tmp_path),
        )
        for name in ("fast", "auto")
    }
    assert found["fast"].report.gate is None
    assert any(line.startswith("cross-layer equalization") for line in found["auto"].report.rewrites)
    trial = next(trial for trial in found["auto"].report.tried if "equalization" in trial.name)
    assert trial.kept
    assert trial.gain_db > 6
    assert found["auto"].report.agreement.sqnr_db > found["fast"].report.agreement.sqnr_db + 6


def test_smoothing_helps_where_channels_stand_out(net, tmp_path) -> None:
    n = net((1, 4, 8, 8))
    scale = n.stored(8, scale=1.0)
    content = query.constant(scale)
    assert content is not None
    scale.const_value = ir.tensor(content * np.where(np.arange(8) == 3, 100, 1).astype(np.float32), name=scale.name)
    n("LayerNormalization", scale, axis=-1)
    weight = n.stored(8, 32)
    content = query.constant(weight)
    assert content is not None  # the channel that stands out is worth little
    weight.const_value = ir.tensor(content * np.where(np.arange(8) == 3, 0.01, 1).astype("f4")[:, None], name="w1")
    n("MatMul", weight)
    n("Add", n.stored(32))
    n("Relu")
    n("MatMul", n.stored(32, 8))
    save(n.model(), tmp_path / "net.onnx")
    made = fptq.quantize(
        tmp_path / "net.onnx",
        calibration=samples(8),
        recipe=Recipe(engine=ENGINE, threads=1, gate="off", cache=tmp_path),
    )
    (trial,) = (one for one in made.prepared.tried if one.name.startswith("smoothing"))
    assert trial.kept
    assert trial.after_db > trial.before_db + 6
    assert any(line.startswith("smoothing, alpha 0.5") for line in made.report.rewrites)
