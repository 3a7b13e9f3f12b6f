"""Latency on a shared machine: contenders take turns, and runs that waited for a processor do not count."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptq.engines.base import Session
from fptq.types import Feeds, Progress, silent

_CALM = 0.03
_FEWEST = 3
_DOUBT = 0.1


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latencies of one contender, in the order of the rounds.

    Attributes:
        samples: Wall time of each run [ms].
        waited: Share of each run that its threads spent runnable but without a processor: what other
            programs took. Zeros where the system does not tell.
    """

    samples: tuple[float, ...]
    waited: tuple[float, ...]

    @cached_property
    def calm(self) -> tuple[bool, ...]:
        """Which runs count: those that did not wait; the calmer half, at least three, where most did."""
        limit = max(_CALM, sorted(self.waited)[max(min(_FEWEST, len(self.waited)), len(self.waited) // 2) - 1])
        return tuple(share <= limit for share in self.waited)

    @property
    def counted(self) -> tuple[float, ...]:
        """The runs that count [ms]."""
        return tuple(ms for ms, calm in zip(self.samples, self.calm, strict=True) if calm)

    @property
    def median_ms(self) -> float:
        """The median latency [ms]."""
        return float(np.median(self.counted))

    @property
    def p95_ms(self) -> float:
        """The latency that 95 % of the runs stay under [ms]."""
        return float(np.percentile(self.counted, 95))

    @property
    def runs(self) -> int:
        """Number of runs that count."""
        return len(self.counted)

    def speedup_over(self, other: Timing) -> float:
        """How many times faster than `other`: the median over the rounds, so that slow drifts cancel."""
        return float(np.median(self._speedups(other)))

    def sure_speedup_over(self, other: Timing) -> float:
        """How many times faster than `other`, at least: the sign test's lower limit of the median.

        It makes no assumption about the noise and comes closer to `speedup_over` with more and calmer rounds; of
        three rounds it is the slowest.
        """
        speedups = np.sort(self._speedups(other))
        # At most `rank` of n rounds lie below the median with a probability of the sum of C(n, k) / 2^n.
        below = np.cumsum([math.comb(len(speedups), k) for k in range(len(speedups))]) / 2.0 ** len(speedups)
        return float(speedups[max(0, int(np.searchsorted(below, _DOUBT, side="right")) - 1)])

    def _speedups(self, other: Timing) -> NDArray[np.float64]:
        """Round by round, over the rounds that count for both; over all where those are too few."""
        pairs = np.asarray(other.samples, float) / np.asarray(self.samples, float)
        both = np.logical_and(self.calm, other.calm)
        counted: NDArray[np.float64] = pairs[both] if both.sum() >= _FEWEST else pairs
        return counted


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Latencies of one contender under each of several loads.

    Attributes:
        by_load: In the order of the loads: the sample alone comes first.
    """

    by_load: tuple[Timing, ...]

    @property
    def median_ms(self) -> float:
        """The median latency of the sample alone [ms]."""
        return self.by_load[0].median_ms

    def speedups_over(self, other: Timings) -> tuple[float, ...]:
        """How many times faster than `other`, under each load."""
        return tuple(own.speedup_over(its) for own, its in zip(self.by_load, other.by_load, strict=True))

    def sure_speedups_over(self, other: Timings) -> tuple[float, ...]:
        """How many times faster than `other`, at least, under each load."""
        return tuple(own.sure_speedup_over(its) for own, its in zip(self.by_load, other.by_load, strict=True))

    def speedup_over(self, other: Timings) -> float:
        """How many times faster than `other`: the geometric mean over the loads."""
        return statistics.geometric_mean(self.speedups_over(other))

    def sure_speedup_over(self, other: Timings) -> float:
        """How many times faster than `other`, at least: the geometric mean of the lower limits."""
        return statistics.geometric_mean(self.sure_speedups_over(other))


def under_loads(
    sessions: Mapping[str, Session],
    loads: Sequence[Feeds],
    *,
    rounds: int = 15,
    seconds: float = 60.0,
    progress: Progress = silent,
) -> dict[str, Timings]:
    """`interleaved`, under one load after the other; half as many rounds of the larger ones, which vary less.

    Args:
        sessions: The contenders, all taking the same feeds.
        loads: One run's inputs each.
        rounds: Timed rounds of the first load.
        seconds: Stop after this long, but not before three rounds of each.
        progress: Told after every round.
    """
    counts = (rounds, *[(rounds + 1) // 2] * (len(loads) - 1))
    parts = [
        interleaved(sessions, feeds, rounds=count, seconds=seconds / len(loads), progress=progress)
        for feeds, count in zip(loads, counts, strict=True)
    ]
    return {name: Timings(by_load=tuple(part[name] for part in parts)) for name in sessions}


def interleaved(
    sessions: Mapping[str, Session],
    feeds: Feeds,
    *,
    rounds: int = 15,
    seconds: float = 60.0,
    progress: Progress = silent,
) -> dict[str, Timing]:
    """Time every session once per round, after one warm-up round; each round starts with another one.

    Args:
        sessions: The contenders, all taking the same feeds.
        feeds: One run's inputs.
        rounds: Timed rounds.
        seconds: Stop after this long, but not before three rounds.
        progress: Told after every round.
    """
    for session in sessions.values():
        session.time(feeds)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    start = time.monotonic()
    for done in range(rounds):
        for name in _turned(tuple(sessions), done):
            samples[name].append(_timed(sessions[name], feeds))
        progress(done + 1, rounds, "timing")
        if done + 1 >= _FEWEST and time.monotonic() - start > seconds:
            break
    return {
        name: Timing(samples=tuple(ms for ms, _ in spent), waited=tuple(share for _, share in spent))
        for name, spent in samples.items()
    }


def _turned(names: tuple[str, ...], by: int) -> tuple[str, ...]:
    """The names in turn: who runs behind a large neighbour finds colder caches, and shall not always be the same."""
    by %= len(names)
    return names[by:] + names[:by]


def _timed(session: Session, feeds: Feeds) -> tuple[float, float]:
    """Wall time of a run [ms] and the share of it spent waiting for a processor."""
    before = _waiting_ns()
    elapsed = session.time(feeds)
    return elapsed * 1e3, max(0, _waiting_ns() - before) / max(elapsed * 1e9, 1.0)


def _waiting_ns() -> int:
    """Time that this process's threads were runnable without running [ns] (Linux; 0 elsewhere)."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, IndexError):  # a thread that has just ended
            continue
    return total
