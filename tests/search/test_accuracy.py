from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.errors import ConfigError, EngineError, MetricError
from fptq.search.accuracy import Floor, control
from fptq.search.limits import upper_drop, upper_share
from fptq.search.table import Assignment

SAMPLES = 64
FLOATS = np.random.default_rng(0).uniform(0.8, 0.95, SAMPLES)


def point(index: int, count: int) -> Assignment:
    """The point `index` of a front of `count`."""
    formats = tuple("float" if i < index else "int8" for i in range(count))
    return Assignment(
        items=tuple(f"layer{i}" for i in range(count)),
        formats=formats,
        loss=float(count - index),
        costs={"size": 1e6 * (1 + index)},
    )


def points(count: int) -> list[Assignment]:
    return [point(index, count) for index in range(count)]


class Metric:
    """Scores that drop by a given mean at each point, with noise by sample; counts its calls."""

    def __init__(self, drops: list[float], *, noise: float = 0.01) -> None:
        self.drops = drops
        self.calls: list[int] = []
        self.noise = noise

    def __call__(self, assignment: Assignment) -> np.ndarray:
        index = assignment.formats.count("float")
        self.calls.append(index)
        return FLOATS - self.drops[index] + np.random.default_rng(index).normal(0, self.noise, SAMPLES)


def test_the_cheapest_point_that_surely_passes_is_found_in_log2_evaluations() -> None:
    front = points(16)
    metric = Metric([0.1 / 1.6**i for i in range(16)], noise=0.002)
    outcome = control(front, metric, floats=FLOATS, floor=Floor(max_drop=0.01))
    assert outcome.best is not None
    chosen = front.index(outcome.best.assignment)
    verdicts = [upper_drop(FLOATS - metric(p)) <= 0.01 for p in front]
    assert chosen == verdicts.index(True)
    assert outcome.evaluations <= 5
    assert outcome.complete
    assert outcome.notes == ()


@given(st.lists(st.floats(-0.02, 0.2), min_size=1, max_size=12), st.floats(0, 0.1), st.floats(0, 0.2))
@settings(max_examples=60, deadline=None)
def test_what_is_chosen_was_measured_and_never_breaks_the_floor(
    drops: list[float], max_drop: float, noise: float
) -> None:
    """Whatever the metric does, monotone or not."""
    metric = Metric(drops, noise=noise)
    floor = Floor(max_drop=max_drop, resamples=500)
    outcome = control(points(len(drops)), metric, floats=FLOATS, floor=floor)
    assert outcome.evaluations == len(metric.calls) == len(set(metric.calls)) <= 1 + math.ceil(math.log2(len(drops)))
    if outcome.best is None:
        assert not any(verdict.passes for verdict in outcome.tried)
        return
    index = outcome.best.assignment.formats.count("float")
    assert index in metric.calls
    lost = FLOATS - metric(outcome.best.assignment)
    assert lost.mean() <= max_drop
    assert upper_drop(lost, resamples=500) <= max_drop
    passed = [v.assignment.costs["size"] for v in outcome.tried if v.passes]
    assert outcome.best.assignment.costs["size"] == min(passed)


def test_no_change_in_few_samples_proves_little() -> None:
    z = 1.6448536269514722
    assert upper_share(0, 0, 200, 0.95) == pytest.approx(z * z / (200 + z * z))
    right = np.arange(200) % 10 > 0
    front, floor = points(2), Floor(max_drop=0.005)
    assert control(front, lambda a: right, floats=right, floor=floor).best is None
    many = np.tile(right, 10)
    assert control(front, lambda a: many, floats=many, floor=floor).best is not None


@pytest.mark.parametrize("wrong", [8, 12, 16])
def test_bisection_breaks_the_floor_no_more_often_than_one_test_would(wrong: int) -> None:
    """Points that miss the floor by a hair, each with noise of its own: plain bisection chose one in 18 % of 16."""
    front, broken, searches = points(16), 0, 400
    for seed in range(searches):
        rng = np.random.default_rng(seed)
        drops = np.where(np.arange(16) < wrong, 0.0100001, 0.0)
        noise = rng.normal(0, 0.01, (16, SAMPLES))
        outcome = control(
            front,
            lambda a, lost=drops[:, None] + noise: FLOATS - lost[a.formats.count("float")],  # type: ignore[misc]
            floats=FLOATS,
            floor=Floor(max_drop=0.01, resamples=600, seed=seed),
        )
        broken += outcome.best is not None and outcome.best.assignment.formats.count("float") < wrong
    assert broken / searches <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / searches)


def test_a_cheapest_point_that_passes_is_all_that_is_measured() -> None:
    metric = Metric([0.001] * 16, noise=0.001)
    outcome = control(points(16), metric, floats=FLOATS, floor=Floor(max_drop=0.01))
    assert outcome.best is not None
    assert metric.calls == [0]
    assert outcome.complete


def test_when_no_point_passes_the_network_stays_float() -> None:
    outcome = control(points(4), Metric([0.5] * 4), floats=FLOATS, floor=Floor(max_drop=0.01))
    assert outcome.best is None
    assert outcome.complete
    assert any("no point keeps the floor" in note for note in outcome.notes)


def test_measurements_that_contradict_the_prediction_are_noted() -> None:
    front, floor = points(8), Floor(max_drop=0.01)
    falling = [0.05, 0.04, 0.03, 0.025, 0.02, 0.015, 0.013, 0.0]
    assert control(front, Metric(falling, noise=0.0001), floats=FLOATS, floor=floor).notes == ()
    metric = Metric([0.05, 0.04, 0.03, 0.025, 0.02, 0.015, 0.04, 0.0], noise=0.0001)
    outcome = control(front, metric, floats=FLOATS, floor=floor)
    assert outcome.best is not None
    assert metric.calls == [0, 4, 6, 7]
    assert outcome.notes == (
        "6 x float, 2 x int8, size 7MB loses 0.03998, surely more than 4 x float, 4 x int8, size 5MB with 0.02, "
        "although less was predicted: a cheaper point than the chosen one may pass too",
    )


def test_differences_within_the_noise_contradict_nothing() -> None:
    metric = Metric([0.2, *[0.001] * 7], noise=0.01)
    outcome = control(points(8), metric, floats=FLOATS, floor=Floor(max_drop=0.05))
    assert outcome.evaluations == 4
    assert outcome.notes == ()


def test_a_single_sample_is_compared_as_it_is_and_says_so() -> None:
    outcome = control(points(2), lambda a: np.array([0.9]), floats=np.array([0.905]), floor=Floor(max_drop=0.01))
    assert outcome.best is not None
    assert outcome.best.upper == outcome.best.drop == pytest.approx(0.005)
    assert "a single sample: the drop is compared as it is, without any confidence" in outcome.notes


def test_samples_that_all_lose_the_same_are_noted() -> None:
    outcome = control(points(2), lambda a: FLOATS.copy(), floats=FLOATS, floor=Floor(max_drop=0.01))
    assert outcome.notes == ("all 64 samples lose the same: the bootstrap cannot say how others would differ",)
    few = control(points(2), Metric([0, 0]), floats=FLOATS, floor=Floor(max_drop=0.1))
    assert few.notes == ()


def test_known_scores_are_not_measured_again() -> None:
    front = points(8)
    metric = Metric([0.1 / 2**i for i in range(8)])
    first = control(front, metric, floats=FLOATS, floor=Floor(max_drop=0.01))
    known = {verdict.assignment: metric(verdict.assignment) for verdict in first.tried}
    again = control(front, metric, floats=FLOATS, floor=Floor(max_drop=0.01), known=known)
    assert (again.best, again.evaluations) == (first.best, 0)


def test_equal_points_are_measured_once() -> None:
    metric = Metric([0.5] * 4)
    same = point(1, 4)
    outcome = control([same, same, same, same], metric, floats=FLOATS, floor=Floor(max_drop=0.01))
    assert outcome.evaluations == len(metric.calls) == 1


class Clock:
    """A clock that a metric can advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("seconds", "evaluations"), [(5.0, 1), (19.0, 1), (25.0, 2), (1000.0, 4)])
def test_the_time_budget_ends_the_search_with_the_best_so_far(seconds: float, evaluations: int) -> None:
    """Each evaluation takes 10 s: one that would not end in time is not begun; the first one always is."""
    clock, metric = Clock(), Metric([0.5, *[0.0] * 7])

    def slow(assignment: Assignment) -> np.ndarray:
        clock.now += 10
        return metric(assignment)

    floor = Floor(max_drop=0.01, seconds=seconds, clock=clock)
    outcome = control(points(8), slow, floats=FLOATS, floor=floor)
    assert outcome.evaluations == evaluations
    assert outcome.complete == (evaluations == 4)
    assert (outcome.best is None) == (evaluations == 1)
    stopped, kept = (
        f"stopped by the time budget of {seconds:g} s",
        ": the best so" if outcome.best else " before a point",
    )
    assert outcome.complete or outcome.notes[0].startswith(stopped + kept)


def test_an_interrupt_keeps_the_best_so_far() -> None:
    metric = Metric([0.5, *[0.0] * 7])

    def interrupted(assignment: Assignment) -> np.ndarray:
        if len(metric.calls) == 3:
            raise KeyboardInterrupt
        return metric(assignment)

    outcome = control(points(8), interrupted, floats=FLOATS, floor=Floor(max_drop=0.01))
    assert outcome.best is not None
    assert outcome.best.assignment == point(2, 8)
    assert outcome.notes == ("stopped by an interrupt: the best so far is kept, a cheaper point may pass too",)


def broken(result: Callable[[], object]) -> str:
    with pytest.raises(MetricError) as error:
        control(points(2), lambda a: result(), floats=FLOATS, floor=Floor(max_drop=0.01))  # type: ignore[arg-type, return-value]
    return str(error.value)


def test_a_metric_that_raises_is_named_with_the_point() -> None:
    message = broken(lambda: 1 // 0)
    assert message == (
        "the metric raised ZeroDivisionError for layer0 as int8, layer1 as int8: integer division or modulo by zero. "
        "See the traceback with --debug."
    )


def test_scores_that_are_no_numbers_are_named_with_the_point() -> None:
    where = "for layer0 as int8, layer1 as int8"
    assert f"the metric returned nan {where}, sample 3" in broken(
        lambda: np.where(np.arange(SAMPLES) == 3, np.nan, FLOATS)
    )
    assert f"the metric returned 5 scores {where}. the float network has 64" in broken(lambda: FLOATS[:5])
    assert f"the metric returned the shape (64, 2) {where}" in broken(lambda: np.zeros((SAMPLES, 2)))
    assert f"the metric returned a builtins.dict {where}" in broken(lambda: {"dice": 0.9})
    assert f"the metric returned a builtins.NoneType {where}" in broken(lambda: None)


def test_float_scores_must_be_numbers_too() -> None:
    with pytest.raises(MetricError, match="the metric returned nan for the float network, sample 0"):
        control(points(2), Metric([0, 0]), floats=np.array([np.nan, 1.0]), floor=Floor(max_drop=0.01))


def test_an_engine_that_fails_is_not_blamed_on_the_metric() -> None:
    def failing(assignment: Assignment) -> np.ndarray:
        raise EngineError("out of memory")

    with pytest.raises(EngineError) as error:
        control(points(2), failing, floats=FLOATS, floor=Floor(max_drop=0.01))
    assert error.value.__notes__ == ["while measuring layer0 as int8, layer1 as int8"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -1.0}, "max_drop = -1.0 is out of range"),
        ({"max_drop": math.nan}, "max_drop = nan is out of range"),
        ({"max_drop": 0.1, "confidence": 0.5}, "confidence = 0.5 is out of range"),
    ],
)
def test_floors_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Floor(**options)  # type: ignore[arg-type]


def test_an_empty_front_is_refused() -> None:
    with pytest.raises(ConfigError, match="the front is empty"):
        control([], Metric([]), floats=FLOATS, floor=Floor(max_drop=0.01))
