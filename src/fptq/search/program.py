"""The multiple-choice knapsack as scipy's HiGHS takes it."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fptq.feeds.optional import optional
from fptq.search.table import ROUNDING, Assignment, Floats, Options, assigned

GAP = 1e-6
"""A better assignment may have this fraction less loss (above the sum of each item's least)."""
_SCALE = 1e3
"""Coefficients are scaled to [0, this]: the solver's tolerances, 1e-6, are then 1e-9 of the slack."""
_LEAST_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is left of the integer program after closing cells that cannot be chosen.

    Attributes:
        table: The choices.
        limits: Of the costs.
        allowed: bool[items, formats]: cells that may be chosen.
        excess: f64[items, formats]: loss above the item's least, 0 to 1 in units of `unit`.
        spent: f64[limits, items, formats]: costs above the item's least, 0 to 1 in units of what is left to spend.
        floor: Sum of the items' least losses.
        unit: Most that the loss may exceed the floor by, without being worse than what is known.
    """

    table: Options
    limits: Mapping[str, float]
    allowed: NDArray[np.bool_]
    excess: Floats
    spent: Floats
    floor: float
    unit: float

    @classmethod
    def of(cls, table: Options, limits: Mapping[str, float], known: Assignment | None) -> Program:
        """The program of these limits.

        Args:
            table: The choices.
            limits: Each can be met alone.
            known: An assignment within the limits; only what may be better is left.
        """
        allowed = undominated_choices(table, limits)
        most = known.loss if known else float(np.where(allowed, table.loss, -math.inf).max(1).sum())
        values = np.stack([*(table.costs[name] for name in limits), table.loss])
        values = np.where(table.allowed, values, 0.0)
        bounds = np.array([*limits.values(), most])
        while True:
            least = np.where(allowed, values, math.inf).min(2)
            slack = bounds - least.sum(1)
            above = values - least[..., None]
            tolerance = ROUNDING * np.maximum(np.abs(bounds), np.abs(least).sum(1))
            # One cell alone may not use up more than what is left when all others take their least.
            closed = allowed & (above > (slack + tolerance)[:, None, None]).any(0)
            still = allowed & ~closed
            if not closed.any() or not still.any(1).all():
                break
            allowed = still
        units = np.where(slack > tolerance, slack, math.inf)
        scaled = np.where(allowed, above / units[:, None, None], 0.0)
        return cls(
            table=table,
            limits=limits,
            allowed=allowed,
            excess=scaled[-1],
            spent=scaled[:-1],
            floor=float(least[-1].sum()),
            unit=float(max(slack[-1], 0.0)),
        )

    @property
    def is_open(self) -> bool:
        """Whether there is anything left to decide."""
        return bool((self.allowed.sum(1) > 1).any())

    def only(self) -> Assignment | None:
        """The one assignment that is left; None where it exceeds a limit."""
        made = assigned(self.table, self.allowed.argmax(1), gap=0.0)
        return made if made.meets(self.limits) else None

    def solved(self, until: float) -> Assignment | None:
        """The best assignment; None where there is none, or none was found in time.

        Args:
            until: When to stop, on the monotonic clock [s].
        """
        for right in (1.0, 1 - 2e-9):
            # The solver may exceed a limit by its tolerance; then it is asked to stay below by twice as much.
            result = self._milp(right, max(until - time.monotonic(), _LEAST_SECONDS))
            if result.x is None:
                return None
            found = self._assignment(result)
            if found.meets(self.limits):
                return found
        return None

    def _milp(self, right: float, seconds: float) -> Any:
        optimize, sparse = scipy_part("optimize"), scipy_part("sparse")
        items, columns = np.nonzero(self.allowed)
        count = len(items)
        one = sparse.csr_array((np.ones(count), (items, np.arange(count))), (len(self.table.items), count))
        constraints = [optimize.LinearConstraint(one, 1, 1)]
        if len(self.spent):
            spent = self.spent[:, items, columns] * _SCALE
            constraints.append(optimize.LinearConstraint(sparse.csr_array(spent), -math.inf, right * _SCALE))
        with silenced():
            return optimize.milp(
                self.excess[items, columns] * _SCALE,
                integrality=np.ones(count),
                bounds=optimize.Bounds(0, 1),
                constraints=constraints,
                options={"mip_rel_gap": GAP, "time_limit": seconds},
            )

    def _assignment(self, result: Any) -> Assignment:
        weight = np.zeros(self.allowed.shape)
        weight[self.allowed] = result.x
        made = assigned(self.table, weight.argmax(1))
        lower = self.floor + (result.mip_dual_bound or 0.0) / _SCALE * self.unit
        gap = max(made.loss - lower, 0.0) / abs(made.loss) if made.loss else 0.0
        return replace(made, gap=gap)


def scipy_part(part: str) -> Any:
    """A part of scipy, which is an extra.

    Raises:
        MissingExtra: It is not installed.
    """
    return optional(f"scipy.{part}", extra="search", purpose="The search for mixed precision")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Nothing written to the process's standard output.

    HiGHS as in scipy 1.17 prints a line for every solution that it repairs, whatever its options say; it would end
    up in the middle of a JSON document.
    """
    try:
        saved = os.dup(1)
    except OSError:  # closed: there is nothing to keep clean
        yield
        return
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, TypeError, AttributeError):  # Windows has no library of the process
            ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)


def undominated_choices(table: Options, limits: Mapping[str, float]) -> NDArray[np.bool_]:
    """bool[items, formats]: choices that no other choice of the item matches in loss and every limited cost.

    Of choices that are equal in all of them the first is kept: the highest precision.
    """
    allowed = table.allowed
    values = np.stack([table.loss, *(table.costs[name] for name in limits)])
    values = np.where(allowed, values, math.inf)
    mine, other = values[..., None], values[..., None, :]
    no_worse = (other <= mine).all(0)
    better = no_worse & (other < mine).any(0)
    earlier = np.tri(len(table.formats), k=-1, dtype=bool)
    beaten = (better | (no_worse & earlier)) & allowed[:, None, :]
    return allowed & ~beaten.any(2)
