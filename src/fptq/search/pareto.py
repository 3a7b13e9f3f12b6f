"""The least loss at every price: assignments of which none is better in both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fptq.errors import ConfigError
from fptq.search.knapsack import SECONDS, solve
from fptq.search.table import Assignment, Options

_FLOOR = 1e-6
"""Losses below this fraction of the largest are nothing: gaps among them are not divided."""
_NARROW = 1e-3
"""Neighbours that differ by less than this fraction of the cost are next to each other."""
_TRIES = 3
"""Programs that are solved, at most so many for each point that is wanted."""


def front(
    table: Options, cost: str, *, points: int = 16, limits: Mapping[str, float] | None = None, seconds: float = SECONDS
) -> tuple[Assignment, ...]:
    """Assignments from the cheapest to the most accurate one: each costs more than the one before and loses less.

    Both ends are on the front. In between, the widest gap in predicted loss, on a logarithmic scale, is divided again
    and again: most of a range of cost often changes nothing, and a small part of it decides between right and wrong.

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
    # At the least cost there may be several: the one that loses least.
    cheapest = solve(table, {**limits, cost: cheapest.costs[cost]}, seconds=seconds)
    found = [cheapest, solve(table, limits, seconds=seconds)]
    floor = max(found[-1].loss, _FLOOR * cheapest.loss) or 1.0
    searched: dict[float, float] = {}  # by the cost of a point: up to here nothing loses less
    for _ in range(_TRIES * points):
        gap = _widest(undominated(found, cost), cost, searched, floor)
        if len(found) >= points or gap is None:
            break
        low, high = gap
        made = solve(table, {**limits, cost: high}, seconds=seconds)
        if any(made.costs[cost] == one.costs[cost] for one in found):
            searched[low] = high
        else:
            found.append(made)
    return undominated(found, cost)


def _widest(
    points: Sequence[Assignment], cost: str, searched: Mapping[float, float], floor: float
) -> tuple[float, float] | None:
    """The cost of the point before the widest gap, and the middle of what is not yet searched there; None without."""
    gaps = []
    for cheap, dear in itertools.pairwise(points):
        low, high = cheap.costs[cost], dear.costs[cost]
        start = searched.get(low, low)
        if high - start > _NARROW * high:
            gaps.append((math.log((cheap.loss + floor) / (dear.loss + floor)), low, (start + high) / 2))
    return max(gaps)[1:] if gaps else None


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
