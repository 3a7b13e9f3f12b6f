"""Peak memory and load time of a model on an engine, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fptq.engines.base import CompileOptions
from fptq.errors import EngineError
from fptq.types import Feeds


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a fresh process needs to load a model and run it twice.

    Attributes:
        peak_memory_mb: Highest resident memory of the process beyond what it held before loading [MB].
        load_s: Compile time [s].
    """

    peak_memory_mb: float
    load_s: float


def footprint(model: Path, engine: str, feeds: Feeds, options: CompileOptions) -> Footprint:
    """Measure in a fresh Python process.

    Raises:
        EngineError: The process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "feeds.npz"
        # Arrays are stored by position: names may hold characters that a zip entry does not take.
        np.savez(inputs, *feeds.values())
        job = {
            "model": str(model),
            "engine": engine,
            "feeds": str(inputs),
            "names": list(feeds),
            "threads": options.threads,
            "float_precision": options.float_precision,
        }
        command = [sys.executable, "-m", "fptq.engines.footprint", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"measuring the memory of {model.name} on {engine} failed: {last}")
    return Footprint(**json.loads(done.stdout.strip().splitlines()[-1]))


def _resident_mb(field: str) -> float:
    """A field of /proc/self/status [MB]; elsewhere the peak that the resource module knows."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return float(line.split()[1]) / 1024
    import resource

    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit if field == "VmHWM" else 0.0


def _measure(job: dict[str, str]) -> Footprint:
    from fptq.engines import engine_named

    with np.load(job["feeds"]) as stored:
        feeds = {name: stored[f"arr_{index}"] for index, name in enumerate(job["names"])}
    options = CompileOptions(threads=int(job["threads"]), float_precision=job["float_precision"])
    engine = engine_named(job["engine"])
    engine.warm_up()
    before = _resident_mb("VmRSS")
    session = engine.compile(Path(job["model"]), options)
    for _ in range(2):
        session.time(feeds)
    return Footprint(peak_memory_mb=round(_resident_mb("VmHWM") - before, 2), load_s=round(session.load_s, 4))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(vars(_measure(json.loads(sys.argv[1])))) + "\n")
