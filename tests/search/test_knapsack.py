from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.errors import BudgetError, ConfigError
from fptq.search.baselines import greedy, uniform
from fptq.search.knapsack import solve
from fptq.search.table import Choice, Options, monotone

FORMATS = ("float", "int8", "int4", "int2")


def table(loss: object, **costs: object) -> Options:
    array = np.asarray(loss, float)
    items = tuple(f"layer{i}" for i in range(len(array)))
    made = {name: np.asarray(cost, float) for name, cost in costs.items()}
    return Options(items=items, formats=FORMATS[: array.shape[1]], loss=array, costs=made)


def random_table(seed: int, items: int, *, formats: int = 4, decades: float = 8.0) -> Options:
    """Losses and costs over many decades, some formats missing, some lower precisions dearer."""
    rng = np.random.default_rng(seed)
    shape = (items, formats)
    loss = 10 ** rng.uniform(-decades / 2, decades / 2, (items, 1)) * np.sort(rng.uniform(0, 1, shape) ** 3, axis=1)
    size = np.round(10 ** rng.uniform(1, 6, (items, 1)) * np.array([32, 8, 4, 2][:formats]))
    latency = 10 ** rng.uniform(-3, 1, (items, 1)) * rng.uniform(0.3, 1, shape)
    missing = rng.uniform(size=shape) < 0.15
    missing[np.arange(items), rng.integers(formats, size=items)] = False
    loss[missing] = rng.choice([math.nan, math.inf])
    return table(loss, size=size, latency=latency)


def random_limits(options: Options, fractions: tuple[float, ...]) -> dict[str, float]:
    limits = {}
    for (name, cost), fraction in zip(options.costs.items(), fractions, strict=False):
        low = np.where(options.allowed, cost, math.inf).min(1).sum()
        high = np.where(options.allowed, cost, -math.inf).max(1).sum()
        limits[name] = float(low + fraction * (high - low))
    return limits


def brute_force(options: Options, limits: Mapping[str, float]) -> float:
    best = math.inf
    columns = [np.flatnonzero(row) for row in options.allowed]
    rows = np.arange(len(options.items))
    for choice in itertools.product(*columns):
        costs = {name: math.fsum(cost[rows, list(choice)]) for name, cost in options.costs.items()}
        if all(costs[name] <= limit * (1 + 1e-12) for name, limit in limits.items()):
            best = min(best, math.fsum(options.loss[rows, list(choice)]))
    return best


fractions = st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(st.integers(0, 2**32), st.integers(1, 6), fractions)
@settings(max_examples=60, deadline=None)
def test_small_programs_are_solved_as_by_trying_everything(
    seed: int, items: int, fractions: tuple[float, float]
) -> None:
    options = random_table(seed, items)
    limits = random_limits(options, fractions)
    best = brute_force(options, limits)
    if best == math.inf:
        with pytest.raises(BudgetError) as error:
            solve(options, limits)
        assert solve(options, error.value.nearest).meets(error.value.nearest)
        return
    found = solve(options, limits)
    assert found.meets(limits)
    assert found.loss == pytest.approx(best, rel=2e-6)


@given(st.integers(0, 2**32), st.integers(1, 60), fractions)
@settings(max_examples=30, deadline=None)
def test_never_worse_than_greedy_and_uniform(seed: int, items: int, fractions: tuple[float, float]) -> None:
    options = random_table(seed, items)
    limits = random_limits(options, fractions)
    baselines = [one for one in (greedy(options, limits), uniform(options, limits)) if one]
    assert all(one.meets(limits) for one in baselines)
    try:
        found = solve(options, limits)
    except BudgetError:
        assert not baselines
        return
    assert found.meets(limits)
    assert all(found.loss <= one.loss for one in baselines)
    assert found.costs == pytest.approx(
        {name: sum(cost[i, FORMATS.index(found[item])] for i, item in enumerate(options.items))
         for name, cost in options.costs.items()}
    )  # fmt: skip


@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
@settings(max_examples=15, deadline=None)
def test_units_of_loss_and_cost_do_not_matter(seed: int, fraction: float) -> None:
    options = random_table(seed, 12)
    limits = random_limits(options, (fraction,))
    scaled = table(options.loss * 1e-12, size=options.costs["size"] * 1e9, latency=options.costs["latency"])
    found = solve(options, limits).loss
    assert solve(scaled, {"size": limits["size"] * 1e9}).loss == pytest.approx(found * 1e-12, rel=2e-6)


def test_the_same_table_gives_the_same_assignment_with_its_gap() -> None:
    options = random_table(3, 200)
    limits = random_limits(options, (0.2, 0.6))
    first, second = solve(options, limits), solve(options, limits)
    assert first == second
    assert hash(first) == hash(second)
    assert 0 <= first.gap <= 1e-5


def test_what_is_found_when_time_runs_out_is_kept() -> None:
    options = random_table(3, 200)
    limits = random_limits(options, (0.2, 0.6))
    found, start = solve(options, limits, seconds=0.0), greedy(options, limits)
    assert start is not None
    assert found.meets(limits)
    assert found.loss <= start.loss


def test_the_solver_writes_nothing_to_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(4):
        options = random_table(seed, 300)
        solve(options, random_limits(options, (0.3, 0.5)))
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"


def test_without_a_limit_every_item_takes_its_least_loss_and_of_equals_the_highest_precision() -> None:
    options = table([[0, 0, 2, 3], [4, 1, 1, 5], [math.nan, 3, math.inf, 2]], size=np.ones((3, 4)))
    assert solve(options, {}).formats == ("float", "int8", "int2")
    assert solve(options, {"size": math.inf}) == solve(options, {})


def test_a_limit_that_is_met_exactly_is_met() -> None:
    options = table([[0, 1], [0, 1], [0, 1]], size=[[0.3, 0.1]] * 3)
    found = solve(options, {"size": 0.1 + 0.1 + 0.3})
    assert sorted(found.formats) == ["float", "int8", "int8"]
    assert solve(options, {"size": 0.3}).formats == ("int8",) * 3


def test_items_may_have_different_formats() -> None:
    choices = {
        "conv": {"float": Choice(loss=0, costs={"size": 4}), "int8": Choice(loss=1, costs={"size": 1})},
        "head": {"float": Choice(loss=0, costs={"size": 4}), "int4": Choice(loss=1.5, costs={"size": 0.5})},
        "norm": {"float": Choice(loss=0, costs={"size": 1})},
    }
    options = Options.of(choices, formats=FORMATS)
    found = solve(options, {"size": 6})
    assert found.as_dict() == {"conv": "int8", "head": "float", "norm": "float"}
    assert (found.loss, found.costs, str(found)) == (1, {"size": 6}, "conv as int8, head as float, norm as float")
    everywhere = uniform(options, {"size": 2.5})
    assert everywhere is not None
    assert everywhere.as_dict() == {"conv": "int8", "head": "int4", "norm": "float"}


def test_a_budget_that_nothing_meets_names_the_nearest() -> None:
    size = [[4e6, 1e6, 0.5e6]] * 2
    options = table([[0, 1, 2]] * 2, size=size, latency=[[8, 4, 6]] * 2)
    with pytest.raises(BudgetError) as error:
        solve(options, {"size": 0.8e6})
    assert str(error.value) == (
        "no choice of formats meets size <= 800kB. what can be chosen here brings size to 1MB. "
        "The nearest budget that can be met is size 1MB; or allow lower precisions."
    )
    assert isinstance(error.value, ConfigError)
    with pytest.raises(BudgetError) as error:
        solve(options, {"size": 1e6, "latency": 8.0})
    assert error.value.minimum == {"size": 1e6, "latency": 8}
    assert error.value.nearest == {"size": 1e6, "latency": 12} or error.value.nearest == {"size": 1.5e6, "latency": 10}
    excess = [max(v / limit for v, limit in zip(error.value.nearest.values(), (1e6, 8), strict=True))]
    assert excess == [1.5]
    assert "when the others do not matter" in str(error.value)


@given(st.integers(0, 2**32), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_no_budget_is_nearer_than_the_one_that_is_named(seed: int, items: int) -> None:
    options = random_table(seed, items)
    limits = {name: value * 0.9 for name, value in random_limits(options, (0.0, 0.0)).items()}
    with pytest.raises(BudgetError) as error:
        solve(options, limits)
    nearest = error.value.nearest
    excess = max(nearest[name] / limit for name, limit in limits.items())
    closer = {name: limit * excess * (1 - 1e-5) for name, limit in limits.items()}
    assert brute_force(options, closer) == math.inf
    assert solve(options, nearest).meets(nearest)


def test_greedy_takes_the_step_that_adds_the_least_for_what_it_saves() -> None:
    options = table([[0, 3], [0, 2], [0, 4]], size=[[4, 1], [2, 1], [9, 1]])
    found = greedy(options, {"size": 10})
    assert found is not None
    assert found.formats == ("float", "float", "int8")
    assert greedy(options, {"size": 2}) is None
    assert uniform(options, {"size": 2}) is None


def test_losses_are_made_monotone_without_promising_more_than_was_estimated() -> None:
    nan, inf = math.nan, math.inf
    loss = np.array([[0.0, 2.0, 1.0, 3.0], [nan, 5.0, inf, 4.0], [0.0, 1.0, 2.0, 3.0]])
    expected = [[0, 2, 2, 3], [nan, 5, inf, 5], [0, 1, 2, 3]]
    np.testing.assert_array_equal(monotone(loss), expected)


@given(st.lists(st.lists(st.floats(-1e9, 1e9), min_size=4, max_size=4), min_size=1, max_size=5))
def test_monotone_losses_never_rise_with_precision(rows: list[list[float]]) -> None:
    made = monotone(np.array(rows))
    assert (np.diff(made, axis=1) >= 0).all()
    assert (made >= np.array(rows)).all()
    np.testing.assert_array_equal(monotone(made), made)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table([[math.nan, math.inf]], size=[[1, 1]]), "layer0 has no format"),
        (lambda: table([[0, 1]], size=[[1, math.nan]]), "size of layer0 as int8 is nan. costs are finite"),
        (lambda: table([[0, 1]], size=[[1, 1, 1]]), "size has the shape (1, 3). 1 items and 2 formats need"),
        (lambda: Options(items=(), formats=("float",), loss=np.zeros((0, 1)), costs={}), "nothing to choose"),
        (lambda: Options(items=("a", "a"), formats=("f",), loss=np.zeros((2, 1)), costs={}), "'a' appears twice"),
        (lambda: Options.of({"a": {"int3": Choice(loss=0, costs={})}}, FORMATS), "a has the format 'int3'"),
        (
            lambda: Options.of(
                {"a": {"float": Choice(loss=0, costs={"size": 1}), "int8": Choice(loss=0, costs={})}}, FORMATS
            ),
            "size of a as int8 is nan",
        ),
        (lambda: solve(table([[0, 1]], size=[[2, 1]]), {"latency": 3}), "latency is limited to 3 but has no costs"),
        (lambda: solve(table([[0, 1]], size=[[2, 1]]), {"size": math.nan}), "the limit of size is nan"),
    ],
)
def test_tables_that_make_no_sense_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()  # type: ignore[operator]
    assert message in str(error.value)


def test_a_table_cannot_be_changed_from_outside() -> None:
    loss = np.zeros((1, 2))
    options = table(loss, size=[[2, 1]])
    loss[:] = math.nan
    assert options.allowed.all()
    with pytest.raises(ValueError, match="read-only"):
        options.loss[0, 0] = 1
