"""Accuracy control: the cheapest point of a Pareto front that keeps the user's own metric, with confidence.

A predicted loss ranks assignments; only the metric knows what they cost. The cheapest point is tried first: int8
everywhere is often good enough, and then nothing else need be measured. Otherwise bisection needs log2 of the front's
length in full evaluations. A point is taken when the drop of its score is surely small enough: the one-sided upper
limit of the mean over the samples, not the mean alone.

Every test that a point which breaks the floor could pass by luck takes its part of the risk, 1 - confidence. A point
that passes ends the search among dearer ones, so that only those that fail come again and again: a test gets what is
left of the risk divided by the number of tests that may still come, and gives it back when its point passes. If
points lose less the more they cost, the floor is then broken no more often than stated. For once a point that keeps
it has failed, only points that keep it follow; before that, all of these have passed and all others have failed, so
that the others are always met in the same order, and their parts of the risk sum up to no more than all of it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fptq.errors import ConfigError, FptqError, MetricError
from fptq.search.limits import upper_drop, upper_share
from fptq.search.table import Assignment

_FEW = 20
"""With fewer samples the limit rests on assumptions more than on data, and a note says so."""

_Floats = NDArray[np.float64]
Evaluate = Callable[[Assignment], _Floats]
"""Scores of an assignment, f64[samples], higher is better, always of the same samples."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """How far the metric may fall, and how sure that must be.

    Attributes:
        max_drop: Largest mean loss against the float network, in the metric's unit, >= 0.
        confidence: Of the searches, in (0.5, 1): at most the rest of them choose a network that truly loses more.
        resamples: Number of bootstrap samples.
        seed: Of the resampling.
        seconds: Time budget; an evaluation that would not end in it, as long as the longest so far, is not begun.
        clock: Time [s]; monotonic.
    """

    max_drop: float
    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0
    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < math.inf:
            raise ConfigError(f"max_drop = {self.max_drop} is out of range", rule="a drop is finite and at least 0")
        if not 0.5 < self.confidence < 1:
            raise ConfigError(f"confidence = {self.confidence} is out of range", rule="it lies between 0.5 and 1")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One point, measured.

    Attributes:
        assignment: The point.
        drop: Mean loss of score against the float network; negative where it gained.
        upper: One-sided upper limit of the drop, at the confidence that this test had; the drop itself for a single
            sample.
        passes: Whether the limit is within the floor.
    """

    assignment: Assignment
    drop: float
    upper: float
    passes: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What accuracy control found.

    Attributes:
        best: The cheapest point that was measured and passed; None where none did: the network stays float.
        tried: Every point that was measured, in order.
        evaluations: Full evaluations of the metric that this took.
        complete: Whether the bisection came to its end.
        notes: What a reader must know.
    """

    best: Verdict | None
    tried: tuple[Verdict, ...]
    evaluations: int
    complete: bool
    notes: tuple[str, ...]


def control(
    front: Sequence[Assignment],
    evaluate: Evaluate,
    *,
    floats: _Floats,
    floor: Floor,
    known: Mapping[Assignment, _Floats] = MappingProxyType({}),
) -> Outcome:
    """Bisect a front for the cheapest point that keeps the metric.

    Points are assumed to lose less the more they cost. Where the measurements contradict that, a note says so; what
    is returned was itself measured and passed in any case. Ctrl-C and the end of the time budget return the best
    point so far.

    Args:
        front: From the cheapest to the most accurate point.
        evaluate: Measures a point; called once for each at most.
        floats: Scores of the float network on the same samples, f64[samples].
        floor: What a point must keep.
        known: Scores from earlier runs; these are not measured again.

    Raises:
        MetricError: The metric raised, or returned no finite number for each sample.
        ConfigError: The front is empty.
    """
    if not front:
        raise ConfigError("the front is empty", rule="accuracy control needs a point to measure")
    reference = _scores(floats, "the float network", None)
    run = _Run(evaluate=evaluate, floats=reference, floor=floor, scores=dict(known))
    stopped = run.bisect(front)
    return run.outcome(stopped)


@dataclass(kw_only=True)
class _Run:
    """One bisection.

    Attributes:
        evaluate: The metric.
        floats: f64[samples].
        floor: What a point must keep.
        scores: By assignment, measured or known.
        tried: Verdicts, in order.
        evaluations: Calls of the metric.
        longest: The longest of them [s].
    """

    evaluate: Evaluate
    floats: _Floats
    floor: Floor
    scores: dict[Assignment, _Floats]
    tried: list[Verdict] = field(default_factory=list)
    evaluations: int = 0
    longest: float = 0.0

    def bisect(self, front: Sequence[Assignment]) -> str:
        """Measure until the cheapest point is found; returns why it stopped before, or nothing."""
        start = self.floor.clock()
        low, high = 0, len(front)
        try:
            risk = 1 - self.floor.confidence
            while low < high:
                middle = (low + high) // 2 if self.tried else 0
                # As many tests may still come: this one, and those that halve what a failure leaves.
                part = risk / (1 + (high - middle - 1).bit_length())
                left = self.floor.seconds - (self.floor.clock() - start)
                if front[middle] not in self.scores and left <= self.longest:
                    return f"the time budget of {self.floor.seconds:g} s"
                if self._judge(front[middle], 1 - part).passes:
                    high = middle
                else:
                    low, risk = middle + 1, risk - part
        except KeyboardInterrupt:
            return "an interrupt"
        return ""

    def outcome(self, stopped: str) -> Outcome:
        """What was found, with notes."""
        # Bisection only ever moves to cheaper points after one that passed.
        best = next((verdict for verdict in reversed(self.tried) if verdict.passes), None)
        return Outcome(
            best=best,
            tried=tuple(self.tried),
            evaluations=self.evaluations,
            complete=not stopped,
            notes=(
                *_about_search(self.tried, best, stopped),
                *_contradictions(self),
                *_about_samples(self.floats, self.scores, best),
            ),
        )

    def _judge(self, assignment: Assignment, confidence: float) -> Verdict:
        if assignment in self.scores:
            scores = _scores(self.scores[assignment], str(assignment), self.floats)
        else:
            scores = self._measure(assignment)
        self.scores[assignment] = scores
        drops = self.floats - scores
        drop, upper = float(drops.mean()), self._upper(scores, confidence)
        # The limit may fall below a skewed sample's own mean; neither may break the floor.
        verdict = Verdict(assignment=assignment, drop=drop, upper=upper, passes=max(drop, upper) <= self.floor.max_drop)
        self.tried.append(verdict)
        return verdict

    def _upper(self, scores: _Floats, confidence: float) -> float:
        drops, found = self.floats - scores, np.union1d(self.floats, scores)
        if self.floats.size == 1 or found.size != 2 or found[0] != 0:
            floor = self.floor
            return upper_drop(drops, confidence=confidence, resamples=floor.resamples, seed=floor.seed)
        lost, gained = int((drops > 0).sum()), int((drops < 0).sum())
        return float(found[1]) * upper_share(lost, gained, drops.size, confidence)

    def _measure(self, assignment: Assignment) -> _Floats:
        start = self.floor.clock()
        self.evaluations += 1
        try:
            scores = self.evaluate(assignment)
        except FptqError as error:
            error.add_note(f"while measuring {assignment}")
            raise
        except Exception as error:
            raise MetricError(
                f"the metric raised {type(error).__name__} for {assignment}: {error}",
                remedy="See the traceback with --debug",
            ) from error
        self.longest = max(self.longest, self.floor.clock() - start)
        return _scores(scores, str(assignment), self.floats)


def _scores(given: object, whose: str, like: _Floats | None) -> _Floats:
    """Finite scores f64[samples], as many as the float network has."""
    try:
        # numpy takes None for NaN and text for the number that it spells.
        if np.asarray(given).dtype.kind not in "biuf":
            raise TypeError("not numbers")
        scores = np.atleast_1d(np.asarray(given, np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"{type(given).__module__}.{type(given).__name__}"
        raise MetricError(
            f"the metric returned a {kind} for {whose}",
            rule="it returns one number for each sample",
            remedy="Return a list of floats or a numpy array",
        ) from error
    if scores.ndim != 1 or not scores.size:
        raise MetricError(
            f"the metric returned the shape {scores.shape} for {whose}", rule="it returns one number for each sample"
        )
    if like is not None and scores.size != like.size:
        raise MetricError(
            f"the metric returned {scores.size} scores for {whose}",
            rule=f"the float network has {like.size}, and scores are compared sample by sample",
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise MetricError(
            f"the metric returned {scores[bad[0]]} for {whose}, sample {bad[0]}",
            rule="a score is a finite number",
            remedy="Leave samples out for which the metric is not defined",
        )
    return scores


def _about_search(tried: Sequence[Verdict], best: Verdict | None, stopped: str) -> list[str]:
    if stopped and best:
        return [f"stopped by {stopped}: the best so far is kept, a cheaper point may pass too"]
    if stopped:
        return [f"stopped by {stopped} before a point passed"]
    if best is None:
        least = min(tried, key=lambda verdict: verdict.upper)
        return [f"no point keeps the floor: the best of them loses {least.drop:.4g}, surely below {least.upper:.4g}"]
    return []


def _contradictions(run: _Run) -> list[str]:
    """Neighbours in predicted loss of which the one with less surely measured the larger drop."""
    ordered = sorted(run.tried, key=lambda verdict: -verdict.assignment.loss)
    return [
        f"{dear.assignment} loses {dear.drop:.4g}, surely more than {cheap.assignment} with {cheap.drop:.4g}, "
        "although less was predicted: a cheaper point than the chosen one may pass too"
        for cheap, dear in itertools.pairwise(ordered)
        if _difference(run, dear, cheap) < 0
    ]


def _difference(run: _Run, dear: Verdict, cheap: Verdict) -> float:
    """The upper limit of how much less the dearer one loses."""
    difference, floor = run.scores[dear.assignment] - run.scores[cheap.assignment], run.floor
    return upper_drop(difference, confidence=floor.confidence, resamples=floor.resamples, seed=floor.seed)


def _about_samples(floats: _Floats, scores: Mapping[Assignment, _Floats], best: Verdict | None) -> list[str]:
    if floats.size == 1:
        return ["a single sample: the drop is compared as it is, without any confidence"]
    notes = []
    if floats.size < _FEW:
        notes.append(f"{floats.size} samples: the confidence limit of the drop is rough")
    if best and np.ptp(floats - scores[best.assignment]) == 0:
        notes.append(f"all {floats.size} samples lose the same: the bootstrap cannot say how others would differ")
    return notes
