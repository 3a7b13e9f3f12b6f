"""What every task gives: scores with their cases, and whether a difference between two is real."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fptq.types import Runner


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one network.

    Attributes:
        name: Such as "dice" or "hd95".
        value: The number to quote; NaN where no case defines it.
        unit: "mm", "voxel", or empty for a pure number.
        higher_is_better: Which way is better.
        cases: The value of each case, for paired statistics; NaN where undefined. Empty where the metric has none.
    """

    name: str
    value: float
    unit: str = ""
    higher_is_better: bool = True
    cases: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metrics of one network on one set of cases; the first is the one that decides.

    Attributes:
        entries: The metrics.
        cases: Names of the cases, in the order of `Score.cases`.
        notes: What a reader must know: definitions, cases left out.
    """

    entries: tuple[Score, ...]
    cases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Score]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return any(entry.name == name for entry in self.entries)

    def __getitem__(self, name: str) -> Score:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(f"no score {name!r}; there are {', '.join(entry.name for entry in self.entries)}")

    @property
    def primary(self) -> Score | None:
        """The metric that decides; None where nothing could be measured."""
        return self.entries[0] if self.entries else None


class Task(Protocol):
    """A way to score a network."""

    def evaluate(self, runner: Runner) -> Scores:
        """The network's scores."""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How much worse one score is than another, case by case.

    Attributes:
        value: Mean loss over the cases, in the metric's unit: positive is worse.
        low: Lower end of the confidence interval; NaN for fewer than two cases.
        high: Its upper end.
        confidence: Coverage of the interval.
        cases: Number of cases that both networks define.
    """

    value: float
    low: float
    high: float
    confidence: float
    cases: int


def paired_drop(before: Score, after: Score, *, confidence: float = 0.95, seed: int = 0, resamples: int = 2000) -> Drop:
    """The loss from one score to another with a paired bootstrap interval (percentile method, Efron 1979).

    Cases are resampled together, so what makes a case hard for both networks cancels. An interval that contains 0
    says that the cases do not show a difference.

    Args:
        before: Score of the reference network.
        after: Score of the other network on the same cases.
        confidence: Coverage, in (0, 1).
        seed: Seed of the resampling.
        resamples: Number of bootstrap samples.

    Raises:
        ValueError: The scores are of different metrics or cases.
    """
    if before.name != after.name or len(before.cases) != len(after.cases):
        raise ValueError(
            f"{before.name} of {len(before.cases)} cases and {after.name} of {len(after.cases)} do not pair"
        )
    sign = 1.0 if before.higher_is_better else -1.0
    losses = sign * (np.asarray(before.cases) - np.asarray(after.cases))
    losses = losses[np.isfinite(losses)]
    if losses.size < 2:
        value = float(losses[0]) if losses.size else sign * (before.value - after.value)
        return Drop(value=value, low=math.nan, high=math.nan, confidence=confidence, cases=losses.size)
    draws = np.random.default_rng(seed).integers(losses.size, size=(resamples, losses.size))
    tail = (1 - confidence) / 2
    low, high = np.quantile(losses[draws].mean(1), (tail, 1 - tail))
    return Drop(
        value=float(losses.mean()), low=float(low), high=float(high), confidence=confidence, cases=int(losses.size)
    )


def mean_defined(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
