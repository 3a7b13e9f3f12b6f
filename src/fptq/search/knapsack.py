"""Which format for which layer: the integer program of mixed precision.

    minimise  sum_i loss[i, f_i]   over one format f_i for each item i,
    subject to  sum_i cost[i, f_i] <= limit  for every limited cost

is a multiple-choice knapsack (as in HAWQ-V3, Yao et al. 2021, arXiv 2011.10680, equation 5), solved by branch and
bound. Losses and costs span many decades, and a solver works with absolute tolerances: before it sees the program,
cells that cannot be in the best assignment are closed and what remains is measured from each item's least value in
units of the slack, so that all coefficients lie in [0, 1].
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fptq.errors import BudgetError
from fptq.search.baselines import greedy, uniform
from fptq.search.budget import shown
from fptq.search.program import GAP, Program, scipy_part, silenced
from fptq.search.table import Assignment, Options, assigned, checked_limits, least_cost, within

SECONDS = 3.0
"""Time limit of one program [s]; what is found by then is kept."""
_POOR = 0.01
"""A solution with less than this fraction of the loss that coefficients were scaled by is scaled by its own again."""


def solve(table: Options, limits: Mapping[str, float], *, seconds: float = SECONDS) -> Assignment:
    """The assignment with the least loss within the limits; the same every time, unless time runs out.

    Args:
        table: The choices.
        limits: Upper limits by the name of the cost, in its unit.
        seconds: Time limit [s]; the best one found by then is returned, with its gap.

    Raises:
        BudgetError: There is none; says which limits could be met.
        ConfigError: The table does not know a cost that is limited.
        MissingExtra: scipy is not installed.
    """
    limits, until = checked_limits(table, limits), time.monotonic() + seconds
    if not all(within(least_cost(table, name), limit) for name, limit in limits.items()):
        raise _unmet(table, limits, _nearest(table, limits))
    known = [one for one in (greedy(table, limits), uniform(table, limits)) if one is not None]
    best = min(known, key=lambda one: one.loss, default=None)
    while True:
        program = Program.of(table, limits, best)
        found = program.solved(until) if program.is_open else program.only()
        if found is None:
            break
        again = best is None or found.loss - program.floor < _POOR * (best.loss - program.floor)
        best = found if best is None or found.loss <= best.loss else replace(best, gap=found.gap)
        if not again or not program.is_open or best.loss <= program.floor:
            break
    if best is None:
        best = _nearest(table, limits)
        if not best.meets(limits):
            raise _unmet(table, limits, best)
    return best


def _unmet(table: Options, limits: Mapping[str, float], near: Assignment) -> BudgetError:
    """Why there is no assignment within the limits, and what the nearest limits are."""
    minimum = {name: least_cost(table, name) for name in limits}
    nearest = {name: limit if near.meets({name: limit}) else near.costs[name] for name, limit in limits.items()}
    asked = " and ".join(f"{name} <= {shown(name, limit)}" for name, limit in limits.items())
    alone = " and ".join(f"{name} to {shown(name, value)}" for name, value in minimum.items())
    together = " and ".join(f"{name} {shown(name, value)}" for name, value in nearest.items())
    return BudgetError(
        f"no choice of formats meets {asked}",
        rule=f"what can be chosen here brings {alone}{' when the others do not matter' if len(limits) > 1 else ''}",
        remedy=f"The nearest budget that can be met is {together}; or allow lower precisions",
        minimum=minimum,
        nearest=nearest,
    )


def _nearest(table: Options, limits: Mapping[str, float]) -> Assignment:
    """The assignment with the least t for which every cost is at most its limit times 1 + t."""
    allowed = table.allowed
    units = np.array([limit if limit > 0 else abs(least_cost(table, name)) or 1.0 for name, limit in limits.items()])
    values = np.stack([table.costs[name] for name in limits])
    least = np.where(allowed, values, math.inf).min(2)
    scaled = (values - least[..., None]) / units[:, None, None]
    simple = assigned(table, np.where(allowed, scaled.max(0), math.inf).argmin(1))
    if len(limits) == 1:
        return simple
    optimize = scipy_part("optimize")
    items, columns = np.nonzero(allowed)
    one = np.zeros((len(table.items), len(items) + 1))
    one[items, np.arange(len(items))] = 1
    rows = np.column_stack([scaled[:, items, columns], -np.ones(len(limits))])
    right = (np.array([*limits.values()]) - least.sum(1)) / units
    with silenced():
        result = optimize.milp(
            np.append(np.zeros(len(items)), 1.0),
            integrality=np.append(np.ones(len(items)), 0),
            bounds=optimize.Bounds(0, np.append(np.ones(len(items)), math.inf)),
            constraints=[
                optimize.LinearConstraint(one, 1, 1),
                optimize.LinearConstraint(rows, -math.inf, right),
            ],
            options={"mip_rel_gap": GAP, "time_limit": SECONDS},
        )
    if result.x is None:
        return simple
    weight = np.zeros(allowed.shape)
    weight[allowed] = result.x[:-1]
    return assigned(table, weight.argmax(1))
