"""Every tool's quantized files, made once and kept as long as nothing that they were made from changes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import venv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from layout import HERE, Folder

FPTQ = "fptq"
TRANSFORMERS = frozenset({"encoder", "antiberty", "swinunetr", "transunet"})
DISTURBED = 0.05
"""Share of its time that a sample's run may have waited for a core before its timing does not count."""
ENOUGH = 3
"""Undisturbed samples that a timing needs."""
ATTEMPTS = 3
REPEATED = frozenset({"calibration", "forward"})
"""Settings that are run `ATTEMPTS` times in any case: the peak memory of equal runs differs by a tenth."""

Loads = Sequence[tuple[int, float, float]]


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A quantization tool.

    Attributes:
        name: As shown.
        script: What runs it, beside this file.
        convolutional: Its settings for convolutional networks.
        transformer: Its settings for transformers.
        suffix: Of the file it writes.
        calibrates_in: The engine of its float runs.
        untimed: Settings whose samples need no undisturbed timing.
    """

    name: str
    script: str
    convolutional: tuple[str, ...]
    transformer: tuple[str, ...]
    suffix: str = ".onnx"
    calibrates_in: str = "onnxruntime"
    untimed: tuple[str, ...] = ()

    @property
    def is_peer(self) -> bool:
        return self.script != "ours.py"

    def presets(self, network: str) -> tuple[str, ...]:
        return self.transformer if network in TRANSFORMERS else self.convolutional

    def output(self, folder: Folder, preset: str) -> Path:
        name = f"{self.name}_{preset}".replace(" ", "_").lower()
        return folder.quantized / name / f"model{self.suffix}"


ENGINES = ("openvino", "onnxruntime")
NNCF_PRESETS = (("performance", "mixed"), ("transformer",))
TOOLS = (
    Tool(name=FPTQ, script="ours.py", convolutional=ENGINES, transformer=ENGINES, untimed=ENGINES),
    Tool(
        name="ONNX Runtime",
        script="peers/ort_static.py",
        convolutional=("s8s8", "u8s8"),
        transformer=("s8s8", "u8s8", "dynamic"),
        untimed=("dynamic",),
    ),
    Tool(name="NNCF (ONNX)", script="peers/nncf_onnx.py", convolutional=NNCF_PRESETS[0], transformer=NNCF_PRESETS[1]),
    Tool(
        name="NNCF (OpenVINO)",
        script="peers/nncf_openvino.py",
        convolutional=NNCF_PRESETS[0],
        transformer=NNCF_PRESETS[1],
        suffix=".xml",
        calibrates_in="openvino",
    ),
    Tool(name="ModelOpt", script="peers/modelopt_onnx.py", convolutional=("max",), transformer=("max",)),
)
FORWARD = Tool(name="float", script="ours.py", convolutional=("forward",), transformer=("forward",))


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a tool made of a network, and what that took.

    Attributes:
        tool: The tool's name.
        preset: Its setting.
        path: The quantized model.
        version: The tool's version.
        samples: Calibration samples given.
        seconds: The whole work [s].
        per_sample_s: From one sample to the next: median over the samples but the last, all passes together [s].
        peak_mb: Peak memory beyond what the process held after its imports, median of its runs [MB].
        error: Why there is no model; empty where there is one.
    """

    tool: str
    preset: str
    path: Path
    version: str = ""
    samples: int = 0
    seconds: float = 0.0
    per_sample_s: float = float("nan")
    peak_mb: float = float("nan")
    error: str = ""

    @property
    def label(self) -> str:
        return f"{self.tool}, {self.preset}" if self.preset else self.tool

    @property
    def size_mb(self) -> float:
        """With the weights of an OpenVINO IR [MB]."""
        files = [self.path, self.path.with_suffix(".bin")]
        return sum(file.stat().st_size for file in files if file.exists()) / 1e6


def peers_python(folder: Path, *, requirements: Path = HERE / "peers" / "requirements.txt") -> Path:
    """The Python of the peers' environment, which is built where it is missing or out of date.

    Args:
        folder: The environment.
        requirements: What it must hold.
    """
    python, stamp = folder / "bin" / "python", folder / "made_from"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing the peers in {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, "--no-deps", "-r", str(requirements)], check=True)
    stamp.write_text(wanted)
    return python


def make(tool: Tool, preset: str, folder: Folder, *, python: Path, samples: int = 0) -> Artifact:
    """Run a tool, or read what an earlier run with the same inputs has left.

    A run is repeated, twice at most, when other processes disturbed the timing of its samples; fptq's whole runs are
    not: `calibration` times its samples.

    Args:
        tool: The tool.
        preset: Its setting.
        folder: The network.
        python: The peers' interpreter.
        samples: Calibration samples; 0 takes all.
    """
    output = tool.output(folder, f"{preset}_{samples}" if samples else preset)
    artifact = Artifact(tool=tool.name, preset=preset, path=output)
    stamp, key = output.parent / "made_from", _key(tool, folder)
    if not (stamp.exists() and stamp.read_text() == key):
        interpreter = python if tool.is_peer else Path(sys.executable)
        command = [str(interpreter), str(HERE / tool.script), str(folder.float_model), str(folder.calibration)]
        command += [str(output), "--preset", preset, "--samples", str(samples)]
        records: list[dict[str, Any]] = []
        for _ in range(ATTEMPTS):
            print(f"  {artifact.label}", flush=True)
            error = _run(command, output.parent)
            if error:
                return replace(artifact, error=error)
            records.append(_record(output))
            enough = preset in tool.untimed or samples or len(_calm(records[-1]["loads"])) >= ENOUGH
            if enough and preset not in REPEATED:
                break
        _write_record(output, records)
        stamp.write_text(key)
    return _read(artifact, _record(output))


def per_sample_s(loads: Loads) -> float:
    """The cost of one calibration sample, out of the times at which samples were read [s].

    What lies between two reads belongs to the first of the two samples; a tool that walks the samples several times
    pays for a sample in each walk. The last sample is left out: behind it come bias correction and writing.
    Samples during which other processes held the cores are left out too, where others remain.
    """
    times = [time for time, _ in _costs(loads)]
    return float(np.median(_calm(loads) or times)) if times else float("nan")


def _calm(loads: Loads) -> list[float]:
    return [time for time, waited in _costs(loads) if waited <= DISTURBED * time]


def _costs(loads: Loads) -> list[tuple[float, float]]:
    """Time and time waited for a core, of every sample but the last [s]."""
    spent: dict[int, float] = defaultdict(float)
    waited: dict[int, float] = defaultdict(float)
    for (index, at, wait), (_, next_at, next_wait) in itertools.pairwise(loads):
        spent[index] += next_at - at
        waited[index] += next_wait - wait
    last = max((index for index, _, _ in loads), default=0)
    return [(time, waited[index]) for index, time in spent.items() if index != last]


def _write_record(output: Path, records: Sequence[dict[str, Any]]) -> None:
    """Keep the run whose timing was disturbed least, with the peak memory of all."""
    calmest = max(records, key=lambda record: len(_calm(record["loads"])))
    kept = calmest | {"peaks_mb": [record["peak_mb"] - record["before_mb"] for record in records]}
    Path(f"{output}.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")


def _record(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(f"{output}.json").read_text(encoding="utf-8"))
    return record


def _read(artifact: Artifact, record: Mapping[str, Any]) -> Artifact:
    return replace(
        artifact,
        version=record["version"],
        samples=record["samples"],
        seconds=record["seconds"],
        per_sample_s=per_sample_s(record["loads"]),
        peak_mb=float(np.median(record["peaks_mb"])),
    )


def _run(command: list[str], folder: Path) -> str:
    """Run a tool in a process of its own; the last line it wrote if it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    # Neither NNCF nor OpenVINO shall report the use of this benchmark to their vendor.
    quiet = {"NNCF_CI": "1", "OPENVINO_TELEMETRY_DISABLED": "1"}
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | quiet,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=1800,
            )
        except subprocess.TimeoutExpired:
            return "took more than 30 minutes"
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"exit status {done.returncode}") if done.returncode else ""


def _key(tool: Tool, folder: Folder) -> str:
    """The hash of everything that a tool's file is made from."""
    sources = list(_fptq_sources()) if not tool.is_peer else [HERE / "peers" / "requirements.txt"]
    inputs = [folder.float_model, *sorted(folder.calibration.glob("*.npz"))]
    digest = hashlib.sha256()
    for path in [HERE / tool.script, HERE / "peers" / "common.py", *sources, *inputs]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _fptq_sources() -> Iterator[Path]:
    return iter(sorted((HERE.parent / "src").rglob("*.py")))
