"""Things timed in turns, so that what slows the machine down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One thing over another.

    Attributes:
        wall: Median over the turns of the quotient of elapsed times.
        cpu: The same of processor time: with one thread it does not count what other processes take.
        turns: How many.
    """

    wall: float
    cpu: float
    turns: int


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Elapsed and processor time of every turn [s], by name."""

    wall: Mapping[str, list[float]] = field(default_factory=dict)
    cpu: Mapping[str, list[float]] = field(default_factory=dict)

    def ratio(self, name: str, base: str) -> Ratio:
        return Ratio(
            wall=_median(self.wall[name], self.wall[base]),
            cpu=_median(self.cpu[name], self.cpu[base]),
            turns=len(self.wall[name]),
        )

    def seconds(self, name: str) -> float:
        """Median elapsed time."""
        return float(np.median(self.wall[name]))


def in_turns(work: Mapping[str, Callable[[], object]], *, turns: int, seconds: float) -> Turns:
    """Time all contenders in turns, after one run of each that does not count.

    Args:
        work: The contenders.
        turns: At most.
        seconds: Stop after this long, but not before three turns.
    """
    for run in work.values():
        run()
    wall, cpu = ({name: [] for name in work} for _ in range(2))
    start = time.monotonic()
    for turn in range(turns):
        for name, run in work.items():
            clock, used = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - clock)
            cpu[name].append(time.process_time() - used)
        if turn >= 2 and time.monotonic() - start > seconds:
            break
    return Turns(wall=wall, cpu=cpu)


def _median(values: Sequence[float], base: Sequence[float]) -> float:
    return float(np.median(np.divide(values, base)))
