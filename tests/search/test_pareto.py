from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.errors import BudgetError, ConfigError
from fptq.search.knapsack import solve
from fptq.search.pareto import front, undominated
from fptq.search.table import Options


def random_table(seed: int, items: int) -> Options:
    rng = np.random.default_rng(seed)
    loss = 10 ** rng.uniform(-4, 2, (items, 1)) * np.array([0, 0.01, 0.3, 1]) * rng.uniform(0.5, 1.5, (items, 4))
    size = np.round(10 ** rng.uniform(2, 6, (items, 1)) * np.array([32, 8, 4, 2]))
    latency = 10 ** rng.uniform(-2, 1, (items, 1)) * rng.uniform(0.3, 1, (items, 4))
    loss[rng.uniform(size=loss.shape) < 0.1] = math.nan
    loss[:, 0] = 0
    names = tuple(f"layer{i}" for i in range(items))
    return Options(
        items=names, formats=("float", "int8", "int4", "int2"), loss=loss, costs={"size": size, "latency": latency}
    )


@given(st.integers(0, 2**32), st.integers(1, 25), st.booleans())
@settings(max_examples=15, deadline=None)
def test_each_point_costs_more_and_loses_less_than_the_one_before(seed: int, items: int, limited: bool) -> None:
    options = random_table(seed, items)
    least = np.where(options.allowed, options.costs["latency"], math.inf).min(1).sum()
    limits = {"latency": float(least * 1.2)} if limited else {}
    points = front(options, "size", points=6, limits=limits)
    assert 1 <= len(points) <= 6
    for cheap, dear in itertools.pairwise(points):
        assert cheap.costs["size"] < dear.costs["size"]
        assert cheap.loss > dear.loss
    assert all(point.meets(limits) for point in points)
    assert points[-1].loss == pytest.approx(solve(options, limits).loss, rel=1e-6)
    if not limited:
        lowest = np.where(options.allowed, options.costs["size"], math.inf).min(1).sum()
        assert points[0].costs["size"] == pytest.approx(lowest)


def test_no_assignment_is_better_than_a_point_in_both() -> None:
    options = random_table(1, 5)
    points = front(options, "size", points=5)
    rows = np.arange(5)
    for choice in itertools.product(*(np.flatnonzero(row) for row in options.allowed)):
        loss = options.loss[rows, list(choice)].sum()
        size = options.costs["size"][rows, list(choice)].sum()
        assert not any(loss < p.loss * (1 - 1e-5) and size <= p.costs["size"] for p in points)


def test_a_limit_of_the_swept_cost_ends_the_front() -> None:
    options = random_table(2, 10)
    whole = front(options, "size", points=8)
    limit = whole[len(whole) // 2].costs["size"]
    assert front(options, "size", points=4, limits={"size": limit})[-1].costs["size"] <= limit
    with pytest.raises(BudgetError):
        front(options, "size", limits={"size": whole[0].costs["size"] * 0.9})


def test_dominated_points_are_removed() -> None:
    points = front(random_table(3, 8), "size", points=5)
    assert undominated([*reversed(points), *points], "size") == points


def test_a_front_of_an_unknown_cost_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no cost 'memory'\. known here: size, latency"):
        front(random_table(0, 2), "memory")
    with pytest.raises(ConfigError, match="points = 1 is out of range"):
        front(random_table(0, 2), "size", points=1)


def test_points_lie_where_the_loss_changes() -> None:
    # Twenty layers that lose next to nothing, and three on which everything depends.
    loss = np.zeros((23, 2))
    loss[:20, 1], loss[20:, 1] = 1e-9, (0.01, 0.1, 1.0)
    size = np.tile([4.0, 1.0], (23, 1)) * np.where(np.arange(23) < 20, 1000, 10)[:, None]
    names = tuple(f"layer{i}" for i in range(23))
    points = front(Options(items=names, formats=("float", "int8"), loss=loss, costs={"size": size}), "size", points=8)
    assert sum(point.loss > 1e-3 for point in points) == 3
