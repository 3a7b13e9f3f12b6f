"""The least loss at every price: assignments of which none is better in both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from fptq.errors import ConfigError
from fptq.search.knapsack import SECONDS, solve
from fptq.search.table import Assignment, Options


def front(
    table: Options, cost: str, *, points: int = 16, limits: Mapping[str, float] | None = None, seconds: float = SECONDS
) -> tuple[Assignment, ...]:
    """Assignments from the cheapest to the most accurate one: each costs more than the one before and loses less.

    The limit of one cost is swept in even steps from the least that it can be to what the most accurate assignment
    costs; both ends are on the front.

    Args:
        table: The choices.
        cost: Name of the cost to sweep.
        points: Most assignments to return, at least 2.
        limits: Of all costs, the swept one too where it has one.
        seconds: Time limit for each point [s].

    Raises:
        BudgetError: Nothing meets the limits.
        ConfigError: There is no such cost, or fewer than two points are wanted.
    """
    if cost not in table.costs:
        raise ConfigError(f"there is no cost {cost!r}", rule=f"known here: {', '.join(table.costs) or 'none'}")
    if points < 2:
        raise ConfigError(f"points = {points} is out of range", rule="a front has two ends")
    limits = dict(limits or {})
    cheapest = solve(replace(table, loss=_only_where_allowed(table, cost)), limits, seconds=seconds)
    best = solve(table, limits, seconds=seconds)
    swept = np.linspace(cheapest.costs[cost], best.costs[cost], points)[:-1]
    found = [solve(table, {**limits, cost: float(limit)}, seconds=seconds) for limit in swept]
    return undominated([*found, best], cost)


def undominated(assignments: Iterable[Assignment], cost: str) -> tuple[Assignment, ...]:
    """Those that no other one matches in both loss and cost, from the cheapest to the most accurate.

    Args:
        assignments: Of one table.
        cost: Name of the cost.
    """
    kept: list[Assignment] = []
    for one in sorted(assignments, key=lambda a: (a.costs[cost], a.loss)):
        if not kept or one.loss < kept[-1].loss:
            kept.append(one)
    return tuple(kept)


def _only_where_allowed(table: Options, cost: str) -> np.ndarray:
    return np.where(table.allowed, table.costs[cost], np.nan)
