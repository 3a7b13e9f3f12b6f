"""Latency on a shared machine: all contenders take turns, ratios are taken round by round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fptq.engines.base import Session
from fptq.types import Feeds, Progress, silent


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latencies of one contender, in the order of the rounds [ms]."""

    samples: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median latency [ms]."""
        return float(np.median(self.samples))

    @property
    def p95_ms(self) -> float:
        """The latency that 95 % of the runs stay under [ms]."""
        return float(np.percentile(self.samples, 95))

    @property
    def runs(self) -> int:
        """Number of timed runs."""
        return len(self.samples)

    def speedup_over(self, other: Timing) -> float:
        """How many times faster than `other`: the median of the ratios of runs that were neighbours in time."""
        pairs = zip(other.samples, self.samples, strict=True)
        return float(np.median([theirs / ours for theirs, ours in pairs]))


def interleaved(
    sessions: Mapping[str, Session],
    feeds: Feeds,
    *,
    rounds: int = 15,
    seconds: float = 60.0,
    progress: Progress = silent,
) -> dict[str, Timing]:
    """Time every session once per round, after one warm-up round.

    Args:
        sessions: The contenders, all taking the same feeds.
        feeds: One run's inputs.
        rounds: Timed rounds.
        seconds: Stop after this long, but not before three rounds.
        progress: Told after every round.
    """
    for session in sessions.values():
        session.time(feeds)
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    start = time.monotonic()
    for done in range(rounds):
        for name, session in sessions.items():
            samples[name].append(session.time(feeds) * 1e3)
        progress(done + 1, rounds, "timing")
        if done >= 2 and time.monotonic() - start > seconds:
            break
    return {name: Timing(samples=tuple(spent)) for name, spent in samples.items()}
