"""Time against accuracy: when a faster, less accurate placement is worth it.

Timings are noisy and accuracy is not, so that a loss of accuracy is only taken for a gain that is sure.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from fptq.engines.benchmark import Timings

LEAST_GAIN = 0.04
"""A less accurate contender must be faster by at least this fraction of the latency,"""
GAIN_PER_DB = 0.01
"""and by this fraction more for each dB of output SQNR that it loses: 6 % for a bit."""
AS_ACCURATE_DB = 0.5
"""Contenders whose output SQNR differs by less than this are equally accurate: the faster one is better."""
NOISE = 0.01
"""Differences below this fraction of the latency are noise."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A placement that was timed.

    Attributes:
        timings: Its latencies; contenders that are compared took turns.
        speedups: Over the faster float form, under each load.
        sqnr_db: Output SQNR against the float network [dB].
    """

    timings: Timings
    speedups: tuple[float, ...]
    sqnr_db: float

    @property
    def speedup(self) -> float:
        """Over the faster float form: the geometric mean over the loads."""
        return statistics.geometric_mean(self.speedups)


def preferred(contest: Mapping[str, Contender]) -> str:
    """The most accurate contender, unless a faster one is surely worth what it loses.

    Args:
        contest: At least one.
    """
    best, *others = sorted(contest, key=lambda name: -contest[name].sqnr_db)
    for name in others:
        entry, than = contest[name], contest[best]
        if entry.timings.sure_speedup_over(than.timings) > 1 + worth(than.sqnr_db - entry.sqnr_db):
            best = name
    return best


def is_better(entry: Contender, than: Contender) -> bool:
    """Whether a lighter form of `than` is as fast and more accurate, or faster by what it loses and by the noise."""
    speedup = entry.timings.speedup_over(than.timings)
    if entry.sqnr_db > than.sqnr_db + AS_ACCURATE_DB:
        return speedup > 1 - NOISE
    return speedup > 1 + max(NOISE, worth(than.sqnr_db - entry.sqnr_db))


def worth(decibels: float) -> float:
    """The fraction of the latency that so much output SQNR is worth: what a loss must bring, and a gain may take."""
    return 0.0 if decibels < AS_ACCURATE_DB else LEAST_GAIN + GAIN_PER_DB * decibels
