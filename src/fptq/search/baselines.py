"""How formats are assigned without a solver: a start for the integer program, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fptq.search.table import Assignment, Options, assigned, checked_limits, within


def greedy(table: Options, limits: Mapping[str, float]) -> Assignment | None:
    """From the highest precision down: always the step that adds the least loss for what it saves.

    What is saved counts relative to its limit, and only costs that still exceed theirs count. The usual heuristic,
    here as a start and to compare with.

    Returns:
        None where no step helps any more.
    """
    limits = checked_limits(table, limits)
    allowed, rows = table.allowed, np.arange(len(table.items))
    at = allowed.argmax(1)
    later = np.arange(len(table.formats))
    while True:
        totals = {name: float(table.costs[name][rows, at].sum()) for name in limits}
        exceeded = [name for name, limit in limits.items() if not within(totals[name], limit)]
        if not exceeded:
            return assigned(table, at)
        saved = np.zeros(table.loss.shape)
        for name in exceeded:
            cost = table.costs[name]
            saved += (cost[rows, at][:, None] - cost) / (abs(limits[name]) or 1.0)
        steps = allowed & (later > at[:, None]) & (saved > 0)
        if not steps.any():
            return None
        added = table.loss - table.loss[rows, at][:, None]
        rate = np.divide(added, saved, out=np.full_like(added, math.inf), where=steps)
        item, column = np.unravel_index(rate.argmin(), rate.shape)
        at[item] = column


def uniform(table: Options, limits: Mapping[str, float]) -> Assignment | None:
    """One format for all items, the one with the least loss within the limits.

    An item that has no such format takes the next higher precision that it has, else the next lower one.

    Returns:
        None where no format meets the limits.
    """
    limits = checked_limits(table, limits)
    allowed, columns = table.allowed, np.arange(len(table.formats))
    made = []
    for wanted in columns:
        # Higher precisions come first in the table: they are counted as nearer than any lower one.
        distance = np.where(columns <= wanted, wanted - columns, len(columns) + columns)
        made.append(assigned(table, np.where(allowed, distance, 3 * len(columns)).argmin(1)))
    return min((one for one in made if one.meets(limits)), key=lambda one: one.loss, default=None)
