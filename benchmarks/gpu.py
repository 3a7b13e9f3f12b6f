"""TensorRT and torch on one GPU: size, memory, latency and agreement of the same networks in every precision.

python benchmarks/gpu_prepare.py DIR             where MONAI is (einops too, for SwinUNETR)
python benchmarks/gpu.py DIR OUT                 where the GPU is; needs neither
python benchmarks/gpu.py DIR OUT --selftest      anywhere: all but the runs

One process for each network; what fails is recorded with its message, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_cells import worker
from gpu_report import head, markdown, selftest

NETWORKS = ("facts", "basicunet", "dynunet", "swinunetr")


def main() -> None:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        worker(arguments.worker, arguments.prepared, arguments.out, rounds=arguments.rounds)
        return
    machine = head()
    print(json.dumps(machine, indent=1), flush=True)
    if arguments.selftest:
        selftest(arguments.prepared, arguments.out)
        return
    end = time.monotonic() + arguments.seconds
    for at, name in enumerate(arguments.networks):
        fair = (end - time.monotonic()) / (len(arguments.networks) - at)
        _run(name, arguments, min(end, time.monotonic() + 1.6 * fair))
        found = {n: _read(arguments.out / f"{n}.json") for n in arguments.networks}
        _write(arguments.out, {"machine": machine, "networks": found})
    print(markdown({"machine": machine, "networks": found}))


def _run(name: str, arguments: argparse.Namespace, deadline: float) -> None:
    """A network in a process of its own, again where a cell takes the process down: without that cell."""
    file = arguments.out / f"{name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, str(arguments.prepared), str(arguments.out), "--worker", name]
    for _ in range(4):
        left = deadline - time.monotonic()
        if left < 20:
            _note(file, "stopped", "the time was over")
            return
        try:
            subprocess.run([*command, "--rounds", str(arguments.rounds)], check=True, timeout=left)
        except subprocess.TimeoutExpired:
            _note(file, "stopped", "the time was over")
        except subprocess.CalledProcessError as error:
            if _blame(file, f"took its process down (status {error.returncode})"):
                continue
            _note(file, "stopped", f"the process ended with status {error.returncode}")
        return


def _blame(file: Path, message: str) -> bool:
    """Record a crash at the cell that was running; False where none was."""
    found = _read(file)
    running = found.pop("running", None)
    if running is None:
        return False
    found.setdefault("cells", {})[running] = {"error": message}
    file.write_text(json.dumps(found), encoding="utf-8")
    return True


def _note(file: Path, key: str, message: str) -> None:
    file.write_text(json.dumps({**_read(file), key: message}), encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _write(out: Path, results: dict[str, Any]) -> None:
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (out / "results.md").write_text(markdown(results), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=480.0, help="stop after this long")
    parser.add_argument("--selftest", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
