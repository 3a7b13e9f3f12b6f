"""The machine, the tables, and what can be checked without a GPU."""

from __future__ import annotations

import importlib.metadata
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "torch", "onnx", "onnx-ir", "onnxruntime")
COLUMNS = {
    "median_ms": "median [ms]",
    "p95_ms": "p95 [ms]",
    "engine_mb": "engine [MB]",
    "gpu_memory_mb": "GPU memory [MB]",
    "sqnr_db": "SQNR [dB]",
    "labels": "labels",
    "products_by_precision": "products ran as",
    "cuda_graph": "graph",
}


def head() -> dict[str, Any]:
    """GPU, driver and versions, and whether TensorRT starts here."""
    from fptq.engines.tensorrt_package import api, log

    def started() -> str:
        return "yes" if api().Builder(log()) is not None else f"no: {log().errors}"

    def runtime() -> str:
        return "yes" if api().Runtime(log()) is not None else f"no: {log().errors}"

    return {
        "gpu": _attempt(_gpu),
        "torch": _attempt(_torch),
        "packages": {name: _attempt(lambda name=name: importlib.metadata.version(name)) for name in PACKAGES},
        "tensorrt": _attempt(lambda: f"{api().__name__} {api().__version__}"),
        "builder": _attempt(started),
        "runtime": _attempt(runtime),
        "capabilities": _attempt(lambda: list(api().ComputeCapability.__members__)),
    }


def _attempt(asked: Callable[[], Any]) -> Any:
    try:
        return asked()
    except Exception as error:  # a missing part is a finding
        return f"{type(error).__name__}: {error}"


def _gpu() -> str:
    fields = "--query-gpu=name,driver_version,memory.total,compute_cap"
    command = ["nvidia-smi", fields, "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


def _torch() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"{torch.__version__}, no CUDA GPU"
    return f"{torch.__version__}, {torch.cuda.get_device_name()}, {torch.cuda.get_device_capability()}"


def markdown(results: dict[str, Any]) -> str:
    """One table for each network."""
    lines = ["# TensorRT on a GPU", "", *(f"- {name}: {value}" for name, value in results["machine"].items())]
    for name, found in results["networks"].items():
        lines += ["", f"## {name}", ""]
        if "stopped" in found:
            lines += [f"Stopped: {found['stopped']}", ""]
        lines += ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        for cell, values in found.get("cells", {}).items():
            if "error" in values:
                lines.append(
                    f"| {cell} | failed: {values['error'].replace('|', '/')[:200]} |" + " |" * (len(COLUMNS) - 1)
                )
            else:
                lines.append(f"| {cell} | " + " | ".join(_shown(values.get(column)) for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{count} {name}" for name, count in value.items())
    return str(value)


def selftest(prepared: Path, out: Path) -> None:
    """Grow the files, write half precision into them, and build them where TensorRT-RTX can without a GPU."""
    from fptq.cache import Cache
    from fptq.engines.tensorrt_build import BuildOptions, built
    from fptq.engines.tensorrt_file import inputs_of, typed
    from gpu_cells import CELLS
    from gpu_facts import fact_files
    from gpu_files import unpack

    with tempfile.TemporaryDirectory(prefix="fptq-gpu-") as folder:
        work = Path(folder)
        files = [(work / f"{name}.onnx", name.split(",")[-1]) for name in fact_files(work)]
        for packed in sorted(prepared.glob("*/*.json")):
            path = work / f"{packed.parent.name}-{packed.stem}.onnx"
            unpack(packed.with_suffix(""), path)
            precisions = dict.fromkeys(cell.float_precision for cell in CELLS.values() if cell.file == packed.stem)
            files += [(path, precision) for precision in precisions]
        for path, precision in files:
            inputs_of(path)
            with typed(path, precision) as written:
                options = BuildOptions(device="none", tf32=precision != "f32")
                size = _attempt(
                    lambda w=written, o=options: f"{len(built(w, o, store=Cache(work / 'cache'))) / 1e6:.1f} MB"
                )
            print(f"{path.stem} {precision}: {size}", flush=True)
    sample = {"machine": head(), "networks": {"none": {"cells": {"a": {"error": "x"}, "b": {"median_ms": 1.0}}}}}
    (out / "selftest.md").write_text(markdown(sample), encoding="utf-8")
