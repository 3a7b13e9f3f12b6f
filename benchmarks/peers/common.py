"""What every quantization script shares: the command line, the samples, the stopwatch and the record it leaves.

The peers' scripts run inside their own environment, where fptq is not installed; this file needs numpy alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Sample = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One quantization that a tool is asked for.

    Attributes:
        model: The float ONNX file.
        samples: Calibration files, one `.npz` each, arrays named as the model's inputs.
        output: Where the quantized model goes.
        preset: The tool's setting; every script lists its own.
        loads: Each time a sample was read: its number, the clock [s], the process's wait for a core so far [s].
    """

    model: Path
    samples: tuple[Path, ...]
    output: Path
    preset: str
    loads: list[tuple[int, float, float]] = field(default_factory=list)

    def load(self, path: Path) -> Sample:
        """A sample from disk. What lies between two of these calls is the tool's cost of a sample."""
        self.loads.append((self.samples.index(path), time.perf_counter(), waited_s()))
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def read(self) -> Iterator[Sample]:
        """The samples, one in memory at a time."""
        return map(self.load, self.samples)


class Reader:
    """The samples behind the `get_next` protocol of ONNX Runtime's calibration."""

    def __init__(self, job: Job, /) -> None:
        self._job = job
        self.rewind()

    def get_next(self) -> Sample | None:
        return next(self._walk, None)

    def get_first(self) -> Sample:
        return next(self._job.read())

    def rewind(self) -> None:
        self._walk = self._job.read()


def parse_job(description: str | None, presets: Sequence[str]) -> Job:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path, help="folder of .npz files")
    parser.add_argument("output", type=Path)
    parser.add_argument("--preset", choices=presets, default=presets[0])
    parser.add_argument("--samples", type=int, default=0, help="use the first N files; 0 uses all")
    arguments = parser.parse_args()
    files = sorted(arguments.calibration.glob("*.npz"))
    return Job(
        model=arguments.model,
        samples=tuple(files[: arguments.samples or len(files)]),
        output=arguments.output,
        preset=arguments.preset,
    )


def run(job: Job, work: Callable[[Job], None], *, version: str, peaks_mb: Sequence[float] = ()) -> None:
    """Do the work, and write its time and memory beside the result.

    Args:
        job: What to do.
        work: Does it; everything heavy is imported before it is called.
        version: The tool's version.
        peaks_mb: Filled by the work with the peak memory of calibration alone, where that is known; without it the
            whole work's peak counts.
    """
    job.output.parent.mkdir(parents=True, exist_ok=True)
    before_mb = memory_mb("VmRSS")
    start = time.perf_counter()
    work(job)
    record = {
        "version": version,
        "preset": job.preset,
        "samples": len(job.samples),
        "seconds": time.perf_counter() - start,
        "before_mb": before_mb,
        "peak_mb": max(peaks_mb, default=memory_mb("VmHWM")),
        "loads": [(index, at - start, waited) for index, at, waited in job.loads],
    }
    Path(f"{job.output}.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def memory_mb(name: str) -> float:
    """`VmRSS` (resident now) or `VmHWM` (its peak) of this process [MB].

    Not the resource module's maximum: a child process inherits its parent's.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def forget_peak() -> None:
    """Let `VmHWM` start again from what is resident now (man 5 proc_pid_clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def waited_s() -> float:
    """How long this process's threads have waited for a core that others held, all together [s].

    Source: field 2 of /proc/PID/task/TID/schedstat, https://docs.kernel.org/scheduler/sched-stats.html. Zero where
    the kernel does not tell.
    """
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):  # the thread has ended
            continue
    return total / 1e9
