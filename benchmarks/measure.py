"""Latency, output error, size: what the quantized files bring on an engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fptq.engines import CompileOptions, Session, engine_named
from fptq.types import Feeds
from peers.common import waited_s

THREADS = 2
DISTURBED = 0.03
"""Share of its time that a run may have waited for a core before it does not count."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An engine and what its float operations run in.

    Attributes:
        name: As shown.
        engine: The engine.
        float_precision: As in `CompileOptions`.
    """

    name: str
    engine: str
    float_precision: str

    def compile(self, path: Path) -> Session:
        options = CompileOptions(threads=THREADS, float_precision=self.float_precision)
        return engine_named(self.engine).compile(path, options)

    def runs(self, path: Path) -> bool:
        """Whether it reads this kind of file."""
        return self.engine == "openvino" or path.suffix == ".onnx"


OPENVINO_F32 = Setting(name="OpenVINO f32", engine="openvino", float_precision="f32")
OPENVINO = Setting(name="OpenVINO", engine="openvino", float_precision="default")
ONNXRUNTIME = Setting(name="ONNX Runtime", engine="onnxruntime", float_precision="f32")
SIMULATION = Setting(name="simulation", engine="simulation", float_precision="f32")
TIMED = (OPENVINO_F32, OPENVINO, ONNXRUNTIME)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of one file in one setting.

    Attributes:
        median_ms: Of the runs that count [ms].
        p95_ms: Likewise.
        counted: Runs during which no other process held the cores.
        runs: All runs.
    """

    median_ms: float
    p95_ms: float
    counted: int
    runs: int


def latencies(sessions: Mapping[str, Session], feeds: Feeds, *, rounds: int, seconds: float) -> dict[str, Latency]:
    """Time all sessions in turns, so that what slows the machine down slows all of them.

    A run during which the process had to wait for a core is repeated, twice at most: on a shared machine such runs
    measure the neighbours. Where no run was calm, the fastest half counts.

    Args:
        sessions: The contenders, all taking the same feeds.
        feeds: One sample.
        rounds: Turns.
        seconds: Stop after this long, but not before three turns.
    """
    for session in sessions.values():
        session.time(feeds)
    calm: dict[str, list[float]] = {name: [] for name in sessions}
    every: dict[str, list[float]] = {name: [] for name in sessions}
    start = time.monotonic()
    for turn in range(rounds):
        for name, session in sessions.items():
            for _ in range(3):
                before = waited_s()
                spent = session.time(feeds)
                every[name].append(spent * 1e3)
                if waited_s() - before <= DISTURBED * spent:
                    calm[name].append(spent * 1e3)
                    break
        if turn >= 2 and time.monotonic() - start > seconds:
            break
    return {name: _latency(calm[name], every[name]) for name in sessions}


def _latency(calm: Sequence[float], every: Sequence[float]) -> Latency:
    counting = calm or sorted(every)[: (len(every) + 1) // 2]
    return Latency(
        median_ms=float(np.median(counting)),
        p95_ms=float(np.percentile(counting, 95)),
        counted=len(calm),
        runs=len(every),
    )


def read_samples(folder: Path) -> tuple[Feeds, ...]:
    def read(path: Path) -> Feeds:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    return tuple(read(path) for path in sorted(folder.glob("*.npz")))
