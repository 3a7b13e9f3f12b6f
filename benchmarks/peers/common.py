"""What every peer script shares: the command line, the samples, the stopwatch and the record it leaves.

These scripts run inside the peers' own environment, where fptq is not installed.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Sample = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One quantization that a peer is asked for.

    Attributes:
        model: The float ONNX file.
        samples: Calibration files, one `.npz` each, arrays named as the model's inputs.
        output: Where the quantized model goes.
        preset: The peer's setting; every script lists its own.
    """

    model: Path
    samples: tuple[Path, ...]
    output: Path
    preset: str

    def read(self) -> Iterator[Sample]:
        """The samples, read from disk one at a time."""
        return map(load_sample, self.samples)


def load_sample(path: Path) -> Sample:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


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


def parse_job(description: str, presets: Sequence[str]) -> Job:
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


def peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(job: Job, quantize: Callable[[Job], None], *, version: str) -> None:
    """Quantizes, and writes time and memory beside the result.

    Args:
        job: What to quantize.
        quantize: Writes `job.output`; everything heavy is imported before it is called.
        version: The peer's version.
    """
    job.output.parent.mkdir(parents=True, exist_ok=True)
    before = peak_rss_mb()
    started = time.perf_counter()
    quantize(job)
    seconds = time.perf_counter() - started
    record = {
        "version": version,
        "preset": job.preset,
        "samples": len(job.samples),
        "seconds": seconds,
        "peak_rss_mb": peak_rss_mb(),
        "rss_before_mb": before,
    }
    Path(f"{job.output}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
