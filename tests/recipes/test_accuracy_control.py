"""The cheapest network that keeps the user's metric: floors, budgets of time, interrupts, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest

import fptq
from fptq.errors import BudgetError, ConfigError, MetricError
from fptq.recipes import search


class Calls:
    """Counts what the metric was called; the fingerprint sees the class, not its numbers."""

    made = 0
    interrupt_at = 0


def fidelity(reference: list[np.ndarray], inputs: list[dict[str, np.ndarray]]):
    """Minus the relative error of every sample: the float network scores 0."""

    def metric(run) -> list[float]:
        Calls.made += 1
        if Calls.made == Calls.interrupt_at:
            raise KeyboardInterrupt
        found = [next(iter(run(x).values())) for x in inputs]
        return [-float(np.square(a - b).sum() / np.square(a).sum()) for a, b in zip(reference, found, strict=True)]

    return metric


def changing_count():
    counts = iter((5, 3, 3))
    return lambda run: [1.0] * next(counts)


@pytest.fixture
def given(net, samples, tmp_path):
    from fptq.execute import Executor

    n = net((1, 4, 16, 16), seed=3)
    for c_in, c_out in ((4, 16), (16, 16), (16, 32), (32, 16)):
        n.conv(c_in, c_out)
        n("Relu")
    n.conv(16, 4)
    model = n.model()
    rng = np.random.default_rng(7)
    inputs = [{"x": rng.standard_normal((1, 4, 16, 16)).astype(np.float32)} for _ in range(24)]
    reference = [next(iter(Executor.open(model).run(x).values())).numpy() for x in inputs]
    Calls.made = Calls.interrupt_at = 0
    options = {"calibration": samples, "cache": tmp_path / "cache", "threads": 1, "engine": "onnxruntime"}
    return model.graph_model, {**options, "formats": ("w8a8", "w4a4"), "evaluate": fidelity(reference, inputs)}


def test_the_drop_is_kept_and_a_larger_one_is_cheaper(given) -> None:
    model, options = given
    tight, loose = (search(model, max_drop=drop, **options) for drop in (4e-4, 1e-2))
    for found, drop in ((tight, 4e-4), (loose, 1e-2)):
        chosen = next(point for point in found.front if point.chosen)
        assert chosen.upper is not None
        assert max(chosen.drop, chosen.upper) <= drop
    assert loose.costs["bops"] < tight.costs["bops"] < tight.float_costs["bops"]
    assert {row.precision for row in loose.rows} >= {"w4a4"}


def test_no_more_evaluations_than_a_bisection_needs(given) -> None:
    model, options = given
    found = search(model, max_drop=1e-3, **options)
    assert found.evaluations == Calls.made <= 7
    assert found.complete


def test_evaluations_are_kept_and_a_changed_metric_sample_or_weight_starts_anew(given) -> None:
    model, options = given
    first = search(model, max_drop=1e-3, **options)
    Calls.made = 0
    again = search(model, max_drop=1e-3, **options)
    assert again.summary() == {**first.summary(), "evaluations": 1}  # the float network's, which guards the rest
    assert Calls.made == 1

    Calls.made = 0
    shifted = options["evaluate"]
    search(model, max_drop=1e-3, **{**options, "evaluate": lambda run: [2 * x for x in shifted(run)]})
    assert Calls.made > 1

    Calls.made = 0
    other = [{"x": sample["x"] + 0.25} for sample in options["calibration"]]
    search(model, max_drop=1e-3, **{**options, "calibration": other})
    assert Calls.made > 1

    Calls.made = 0
    changed = model.clone()
    weight = changed.graph.initializers["w0"]
    weight.const_value = type(weight.const_value)(weight.const_value.numpy() * np.float32(1.01), name="w0")
    search(changed, max_drop=1e-3, **options)
    assert Calls.made > 1


def test_an_interrupt_keeps_the_best_so_far(given, tmp_path) -> None:
    model, options = given
    Calls.interrupt_at = 4
    found = search(model, max_drop=1e-2, **options)
    chosen = next(point for point in found.front if point.chosen)
    assert not found.complete
    assert any("stopped by an interrupt" in note for note in found.notes)
    assert chosen.upper is not None
    assert chosen.upper <= 1e-2
    Calls.made = 0
    result = fptq.quantize(model, max_drop=1e-2, **{**options, "cache": tmp_path / "another"})
    assert result.report.quantized.scores  # judged and ready to be saved
    assert any("stopped by an interrupt" in warning for warning in result.report.warnings)


def test_without_time_everything_stays_float(given) -> None:
    model, options = given
    found = search(model, max_drop=1e-3, time_budget="0.001s", **options)
    assert {row.precision for row in found.rows} == {"float"}
    assert not found.complete
    assert any("everything stays float" in note for note in found.notes)


def test_a_size_limit_holds_beside_the_drop_or_the_nearest_is_named(given) -> None:
    model, options = given
    found = search(model, max_drop=1e-2, max_size="0.5x", **options)
    assert found.costs["size"] <= 0.5 * found.float_costs["size"]
    with pytest.raises(BudgetError, match=r"nothing within size <= 0.2x is known to lose at most 1e-07"):
        search(model, max_drop=1e-7, max_size="0.2x", **options)


def test_quantize_takes_the_same_limits_and_saves_a_folder_that_runs(given, tmp_path) -> None:
    model, options = given
    result = fptq.quantize(model, max_size="0.3x", max_drop=0.05, **options)
    result.save(tmp_path / "out")
    drop = result.report.drops[0]
    assert drop.value <= 0.05
    assert any("emulated" in warning for warning in result.report.warnings)
    kept = {name: options[name] for name in ("calibration", "cache", "threads")}
    replayed = fptq.quantize(model, plan=tmp_path / "out" / "plan.json", **kept)
    assert replayed.encoding.plan.specs == result.encoding.plan.specs


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"evaluate": None}, ConfigError, "max_drop = 0.001 without a metric"),
        ({"max_drop": -1.0}, ConfigError, "max_drop = -1.0 should be"),
        ({"plan": "plan.json"}, ConfigError, "a plan is replayed, not searched"),
        ({"formats": ()}, ConfigError, "formats is empty"),
        ({"formats": ("int8",)}, ConfigError, "'int8' is not a format"),
        ({"weight_bits": 4}, ConfigError, "Use --format w4a8"),
        ({"evaluate": lambda run: 1 / 0}, MetricError, "raised ZeroDivisionError"),
        ({"evaluate": lambda run: float("nan")}, MetricError, "a metric is a finite number"),
        ({"evaluate": lambda run: np.array(1.0)}, MetricError, r"Return value.item\(\)"),
        ({"evaluate": changing_count()}, MetricError, "it gave 5 for the float"),
    ],
)
def test_bad_input_is_one_line(given, wrong, error, says) -> None:
    model, options = given
    with pytest.raises(error, match=says):
        search(model, **{"max_drop": 1e-3, **options, **wrong})


def test_a_time_budget_needs_a_limit(given) -> None:
    model, options = given
    with pytest.raises(ConfigError, match="a search keeps a limit"):
        fptq.quantize(model, time_budget="10m", **options)


def test_an_output_without_gradient_is_searched_by_leave_one_in_and_says_so(net, samples, tmp_path) -> None:
    n = net((1, 4, 16, 16), seed=3)
    n.conv(4, 8)
    n("Relu")
    n.conv(8, 4)
    n("Sign")
    options = {"calibration": samples, "cache": tmp_path / "cache", "threads": 1, "engine": "onnxruntime"}
    found = search(n.model().graph_model, max_size="0.5x", **options)
    assert any("no gradient" in note and "leave-one-in" in note for note in found.notes)
