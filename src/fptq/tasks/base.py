"""What every task gives: scores with their cases, and whether a difference between two is real."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fptq.feeds.optional import optional
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
        average: How the value comes from the cases; of perplexities, which are positive, the geometric mean.
    """

    name: str
    value: float
    unit: str = ""
    higher_is_better: bool = True
    cases: tuple[float, ...] = ()
    average: Literal["mean", "geometric mean"] = "mean"


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
        value: Loss of the average over the cases, in the metric's unit: positive is worse.
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
    _check_pair(before, after)
    sign = 1.0 if before.higher_is_better else -1.0
    pairs = np.array([before.cases, after.cases])
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    geometric = before.average == "geometric mean"
    terms = np.log(pairs) if geometric else pairs[:1] - pairs[1:]

    def loss(means: np.ndarray) -> np.ndarray:
        difference: np.ndarray = np.exp(means[0]) - np.exp(means[1]) if geometric else means[0]
        return sign * difference

    count = terms.shape[1]
    value = float(loss(terms.mean(1))) if count else sign * (before.value - after.value)
    if count < 2:
        return Drop(value=value, low=math.nan, high=math.nan, confidence=confidence, cases=count)
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    low, high = np.quantile(loss(terms[:, draws].mean(2)), _tails(confidence))
    return Drop(value=value, low=float(low), high=float(high), confidence=confidence, cases=count)


def signed_rank(before: Score, after: Score) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test (1945) that a score is the same on the same cases.

    Cases without a difference are left out (Wilcoxon's own treatment); up to 50 without ties it is exact. Where no case
    differs it is 1; of fewer than two cases it is NaN.

    Args:
        before: Score of the reference network.
        after: Score of the other network on the same cases.

    Raises:
        MissingExtra: scipy is not installed.
        ValueError: The scores are of different metrics or cases.
    """
    _check_pair(before, after)
    pairs = np.array([before.cases, after.cases]).reshape(2, -1)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    difference = pairs[1] - pairs[0]
    if difference.size < 2:
        return math.nan
    if not difference.any():
        return 1.0
    stats = optional("scipy.stats", extra="medical", purpose="Wilcoxon's test")
    return float(stats.wilcoxon(difference).pvalue)


def interval(score: Score, *, confidence: float = 0.95, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """The ends of the bootstrap interval of a score's average over its cases; NaN for fewer than two cases.

    It says how far other cases could be from these. Whether two networks differ says `paired_drop`.

    Args:
        score: The score.
        confidence: Coverage, in (0, 1).
        seed: Seed of the resampling.
        resamples: Number of bootstrap samples.
    """
    cases = np.asarray(score.cases)
    cases = cases[np.isfinite(cases)]
    if cases.size < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(cases.size, size=(resamples, cases.size))
    geometric = score.average == "geometric mean"
    means = np.log(cases)[draws].mean(1) if geometric else cases[draws].mean(1)
    low, high = np.quantile(np.exp(means) if geometric else means, _tails(confidence))
    return float(low), float(high)


def _check_pair(before: Score, after: Score) -> None:
    if before.name != after.name or len(before.cases) != len(after.cases):
        raise ValueError(
            f"{before.name} of {len(before.cases)} cases and {after.name} of {len(after.cases)} do not pair"
        )


def _tails(confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    return tail, 1 - tail


def mean_defined(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
