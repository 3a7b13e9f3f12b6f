"""The cells of the GPU benchmark: one network in one precision on one engine."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fptq.engines import CompileOptions, engine_named
from fptq.engines.benchmark import interleaved
from fptq.graph.half import halved
from fptq.graph.load import read_onnx
from fptq.graph.model import Model
from fptq.graph.parity import sqnr
from fptq.graph.write import save
from fptq.types import Array, Feeds
from gpu_facts import fact_files
from gpu_files import unpack
from gpu_peer import PRECISIONS, TorchPeer

EVALUATED = 2
"""Volumes on which outputs are compared."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured.

    Attributes:
        file: The ONNX file.
        float_precision: What float operations run in.
        norms_in_half: Normalisations in half precision too.
    """

    file: str
    float_precision: str
    norms_in_half: bool = False


CELLS: Mapping[str, Cell] = {
    "TensorRT fp32": Cell(file="float", float_precision="f32"),
    "TensorRT tf32": Cell(file="float", float_precision="tf32"),
    "TensorRT fp16": Cell(file="float", float_precision="f16"),
    "TensorRT fp16, norms too": Cell(file="float", float_precision="f16", norms_in_half=True),
    "TensorRT int8 + fp32": Cell(file="int8-products", float_precision="f32"),
    "TensorRT int8 + fp16": Cell(file="int8-products", float_precision="f16"),
    "TensorRT int8 + fp16, norms too": Cell(file="int8-products", float_precision="f16", norms_in_half=True),
    "TensorRT int8 + fp16, skips and concats too": Cell(file="int8-all", float_precision="f16", norms_in_half=True),
}


def worker(name: str, prepared: Path, out: Path, *, rounds: int) -> None:
    """All cells of one network, written to `<name>.json` as they are found."""
    with tempfile.TemporaryDirectory(prefix="fptq-gpu-") as folder:
        work = Path(folder)
        if name == "facts":
            files = fact_files(work)
            cells = {file: Cell(file=file, float_precision=p) for file, p in ((f, f.split(",")[-1]) for f in files)}
            Worker(name=name, work=work, out=out).compare_simulations(cells)
            return
        for packed in (prepared / name).glob("*.json"):
            unpack(packed.with_suffix(""), work / f"{packed.stem}.onnx")
        Worker(name=name, work=work, out=out).measure(rounds)


@dataclass(kw_only=True)
class Worker:
    """The measurements of one network."""

    name: str
    work: Path
    out: Path

    def measure(self, rounds: int) -> None:
        model = read_onnx(self.work / "float.onnx")
        samples = [{str(model.graph.inputs[0].name): sample} for sample in _samples(model.graph.inputs[0].shape)]
        exact = [_only(self._reference("float", feeds)) for feeds in samples]
        simulated = {file: _only(self._simulated(file, samples[0])) for file in ("int8-products", "int8-all")}
        sessions: dict[str, Any] = {}
        openers: dict[str, Callable[[], Any]] = {
            **{name: self._opener(cell) for name, cell in CELLS.items()},
            **{f"torch {p}": self._peer(p) for p in PRECISIONS},
        }
        for cell, opener in openers.items():
            session = self._cell(cell, opener, samples, exact)
            if session is not None:
                sessions[cell] = session
        for cell, file in ((name, cell.file) for name, cell in CELLS.items() if cell.file in simulated):
            if cell in sessions:
                found = self._found()
                found["cells"][cell]["sqnr_of_simulation_db"] = sqnr(simulated[file], exact[0])
                self._save(found)
        self._time(sessions, samples[0], rounds)

    def compare_simulations(self, cells: Mapping[str, Cell]) -> None:
        """Facts: small files whose engine's numbers are held to the simulation's."""
        for name, cell in cells.items():
            model = read_onnx(self.work / f"{cell.file}.onnx")
            feeds = {"x": np.random.default_rng(0).standard_normal(_fixed(model.graph.inputs[0].shape), np.float32)}
            exact = [_only(self._simulated(cell.file, feeds))]
            self._cell(name, self._opener(cell), [feeds], exact)

    def _cell(self, cell: str, opener: Callable[[], Any], samples: list[Feeds], exact: list[Array]) -> Any:
        """Open a session and compare it; its failure is its result."""
        found = self._found()
        if "error" in found["cells"].get(cell, {}):  # it took an earlier process down
            return None
        self._save({**found, "running": cell})
        torch.cuda.empty_cache()
        before, start = torch.cuda.mem_get_info()[0], time.perf_counter()
        try:
            session = opener()
            opened = time.perf_counter() - start
            outputs = [_only(session(feeds)) for feeds in samples]
            result = {
                "open_s": opened,
                "gpu_memory_mb": (before - torch.cuda.mem_get_info()[0]) / 1e6,
                "sqnr_db": min(sqnr(output, reference) for output, reference in zip(outputs, exact, strict=True)),
                "labels": float(np.mean([_labels(o, e) for o, e in zip(outputs, exact, strict=True)])),
                **_engine_facts(session, samples[0]),
            }
        except Exception as error:  # whatever goes wrong in one cell must not cost the others
            session, result = None, {"error": f"{type(error).__name__}: {error}"[:600]}
        print(self.name, "|", cell, "|", json.dumps({k: v for k, v in result.items() if k != "layers"}), flush=True)
        found["cells"][cell] = result
        self._save(found)
        return session

    def _time(self, sessions: Mapping[str, Any], feeds: Feeds, rounds: int) -> None:
        found = self._found()
        self._save({**found, "running": "timing"})
        for session in sessions.values():
            for _ in range(3):
                session.time(feeds)
        for cell, timing in interleaved(sessions, feeds, rounds=rounds, seconds=40.0).items():
            found["cells"][cell] |= {
                "median_ms": float(np.median(timing.samples)),
                "p5_ms": float(np.percentile(timing.samples, 5)),
                "p95_ms": float(np.percentile(timing.samples, 95)),
                "runs": len(timing.samples),
            }
        self._save(found)

    def _opener(self, cell: Cell) -> Callable[[], Any]:
        def opened() -> Any:
            path, precision = self.work / f"{cell.file}.onnx", cell.float_precision
            if cell.norms_in_half:  # the types are in the file then
                model, path, precision = read_onnx(path), self.work / f"{cell.file}-half.onnx", "tf32"
                save(halved(model, single=frozenset()), path)
            return engine_named("tensorrt").compile(path, CompileOptions(float_precision=precision))

        return opened

    def _peer(self, precision: str) -> Callable[[], TorchPeer]:
        return lambda: TorchPeer(Model(graph_model=read_onnx(self.work / "float.onnx")), precision)

    def _reference(self, file: str, feeds: Feeds) -> Feeds:
        return engine_named("onnxruntime").compile(self.work / f"{file}.onnx", CompileOptions(threads=16))(feeds)

    def _simulated(self, file: str, feeds: Feeds) -> Feeds:
        return engine_named("simulation").compile(self.work / f"{file}.onnx", CompileOptions(threads=16))(feeds)

    def _found(self) -> dict[str, Any]:
        file = self.out / f"{self.name}.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return {"cells": found.get("cells", {})}

    def _save(self, found: dict[str, Any]) -> None:
        (self.out / f"{self.name}.json").write_text(json.dumps(found), encoding="utf-8")


def _engine_facts(session: Any, feeds: Feeds) -> dict[str, Any]:
    """What a TensorRT session says about itself."""
    if not hasattr(session, "engine_bytes"):
        return {}
    facts: dict[str, Any] = {
        "engine_mb": session.engine_bytes / 1e6,
        "stated_memory_mb": session.memory_bytes / 1e6,
        "load_s": session.load_s,
        "cuda_graph": session.graphed,
    }
    try:
        runs = session.profile(feeds)
    except Exception as error:  # neither profiler nor inspector is promised on every GPU
        facts["profiler_error"] = f"{type(error).__name__}: {error}"[:300]
        try:
            runs = session.layers()
        except Exception as inspected:
            return {**facts, "inspector_error": f"{type(inspected).__name__}: {inspected}"[:300]}
    spent: Counter[str] = Counter()
    for run in runs:
        spent[run.precision or "?"] += run.time_ms
    return {
        **facts,
        "layers_by_precision": dict(Counter(run.precision or "?" for run in runs)),
        "ms_by_precision": {name: round(ms, 4) for name, ms in spent.items()},
        "products_by_precision": dict(Counter(run.precision or "?" for run in runs if _is_product(run.op, run.kernel))),
        "layers": [[run.op, run.precision, run.kernel[:80], round(run.time_ms, 4), run.nodes[:3]] for run in runs],
    }


def _is_product(op: str, kernel: str) -> bool:
    words = f"{op} {kernel}".lower()
    return any(word in words for word in ("conv", "gemm", "matmul", "matrix"))


def _samples(shape: Any) -> list[Array]:
    from gpu_networks import volumes

    side = _fixed(shape)[-1]
    return [feeds["x"] for feeds in volumes(EVALUATED, seed=3, side=side)]


def _fixed(shape: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)


def _only(outputs: Feeds) -> Array:
    return next(iter(outputs.values()))


def _labels(found: Array, exact: Array) -> float:
    return float(np.mean(found.argmax(1) == exact.argmax(1)))
