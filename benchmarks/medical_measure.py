"""One network of the medical table: quantized, scored and timed; what is kept is not made again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

import fptq
from fptq.config import Recipe
from fptq.engines import ENGINES, CompileOptions, Session
from fptq.engines.node_times import slowest_runs
from fptq.graph import query
from fptq.graph.load import load
from fptq.graph.model import TensorInfo
from fptq.graph.write import file_bytes, save
from fptq.plan.profile import STORED_WEIGHTS
from fptq.recipes.lowbit import low_bit
from fptq.recipes.prepare import Prepared
from fptq.recipes.problem import open_problem
from fptq.recipes.result import MODEL_FILE, PACKED_FILE
from fptq.tasks import Scores, SegmentationTask, VolumeInput
from medical_subjects import CLASSES, SIDE, TESTED_ON, calibration, volumes
from medical_training import ROOT, trained
from turns import in_turns

CPU_ENGINES = ("openvino", "onnxruntime")
FEW_BITS_ON = "openvino"
FLOAT, BF16, INT8, INT8_DEFAULT = "float32", "bf16", "int8", "int8 and bf16"


@dataclass(frozen=True, kw_only=True)
class FewBits:
    """A network of few bits.

    Attributes:
        bits: The format of all layers but the ends.
        says: How its codes were found, for the table.
        options: Of the recipe.
    """

    bits: str
    says: str
    options: Mapping[str, object]

    @property
    def name(self) -> str:
        return f"{self.bits} {self.says}"

    @property
    def learned(self) -> bool:
        """Whether its codes are learned in iterations."""
        return "iterations" in self.options


MIN_MAX: Mapping[str, object] = {"method": "nearest", "recipe": "fast", "observer": "minmax", "symmetric": True}
"""As in the published table: symmetric ranges up to the extremes, a scale for each output channel of a weight."""


def few_bits(iterations: int) -> tuple[FewBits, ...]:
    """The formats and methods of the table; learned ones for so many iterations a block."""
    closed: Mapping[str, object] = {"method": "auto"}
    qdrop: Mapping[str, object] = {"method": "qdrop", "iterations": iterations}
    adaround: Mapping[str, object] = {"method": "adaround", "iterations": iterations}
    return (
        FewBits(bits="w4a8", says="min-max", options=MIN_MAX),
        FewBits(bits="w4a8", says="closed form", options=closed),
        FewBits(bits="w4a8", says="AdaRound", options=adaround),
        FewBits(bits="w4a4", says="min-max", options=MIN_MAX),
        FewBits(bits="w4a4", says="closed form", options=closed),
        FewBits(bits="w4a4", says="QDrop", options=qdrop),
    )


@dataclass(frozen=True)
class Subject:
    """A trained network and the files that are made of it.

    Attributes:
        name: A key of `NETWORKS`.
        threads: Of every run.
    """

    name: str
    threads: int

    @property
    def root(self) -> Path:
        return ROOT / self.name

    @property
    def float_model(self) -> Path:
        """Its ONNX file, exported where it is not there."""
        path = self.root / "float.onnx"
        if not path.exists():
            save(load(trained(self.name), example=(self.example,)), path)
        return path

    @cached_property
    def example(self) -> Any:
        import torch

        return torch.from_numpy(calibration()[0]["image"])

    @cached_property
    def input_name(self) -> str:
        return load(self.float_model).inputs[0].name

    def feeds(self) -> list[dict[str, Any]]:
        """Calibration windows under the network's own input name."""
        return [{self.input_name: sample["image"]} for sample in calibration()]

    def task(self) -> SegmentationTask:
        """Dice on the test copies: windows with a quarter of overlap, Gaussian weights."""
        info = TensorInfo(name=self.input_name, dtype=np.dtype(np.float32), shape=(1, 1, SIDE, SIDE, SIDE))
        return SegmentationTask(
            cases=volumes(TESTED_ON),
            network=VolumeInput(info=info, overlap=0.25),
            classes=CLASSES,
            metrics=("dice",),
        )

    def compiled(self, path: Path, engine: str, *, float_precision: str = "f32") -> Session:
        options = CompileOptions(threads=self.threads, float_precision=float_precision)
        return ENGINES[engine].compile(path, options)


def engines() -> tuple[str, ...]:
    return tuple(name for name in CPU_ENGINES if ENGINES[name].version() is not None)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds, made where it is not there."""
    if not path.exists():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = path.with_suffix(".partial")
        partial_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        partial_file.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def quantized(subject: Subject, engine: str) -> dict[str, Any]:
    """`fptq quantize` with its default recipe: sizes, layers in integers, seconds; the network is in the folder."""
    folder = subject.root / engine

    def make() -> dict[str, Any]:
        begun = time.monotonic()
        result = fptq.quantize(
            str(subject.float_model),
            calibration=subject.feeds(),
            task="segmentation",
            engine=engine,
            threads=subject.threads,
        )
        seconds = time.monotonic() - begun
        result.save(folder)
        return _facts(subject, result.prepared, folder / MODEL_FILE) | {"seconds": seconds}

    return dict(kept(folder / "facts.json", make))


def in_few_bits(subject: Subject, given: FewBits) -> dict[str, Any]:
    """A network of few bits: sizes, layers in integers, seconds and scores; it is in a folder of its name."""
    folder = subject.root / given.name.replace(" ", "-")

    def make() -> dict[str, Any]:
        recipe = Recipe.of({"bits": given.bits, "task": "segmentation", "threads": subject.threads, **given.options})
        begun = time.monotonic()
        prepared = low_bit(open_problem(str(subject.float_model), subject.feeds(), recipe), ENGINES[FEW_BITS_ON])
        seconds = time.monotonic() - begun
        save(prepared.model, folder / MODEL_FILE)
        if prepared.packed is not None:
            save(prepared.packed, folder / PACKED_FILE)
        return _facts(subject, prepared, folder / MODEL_FILE) | {"seconds": seconds}

    made = kept(folder / "facts.json", make)
    paths = {FLOAT: subject.float_model, given.name: folder / MODEL_FILE}
    sessions = {name: partial(subject.compiled, path, FEW_BITS_ON) for name, path in paths.items()}
    return made | {"scores": kept(folder / "scores.json", lambda: _scores(subject, sessions))[given.name]}


def _facts(subject: Subject, prepared: Prepared, path: Path) -> dict[str, Any]:
    packed = path.with_name(PACKED_FILE)
    ran, layers = _in_integers(subject, prepared, path)
    return {
        "bytes": file_bytes(path),
        "packed_bytes": file_bytes(packed) if packed.exists() else None,
        "layers": layers,
        "in_integers": ran,
    }


def _in_integers(subject: Subject, prepared: Prepared, path: Path) -> tuple[int, int]:
    """How many of the layers with stored weights the engine computes in int8, and how many there are."""
    session = subject.compiled(path, prepared.engine.name)
    ran = slowest_runs(session.profile(subject.feeds()[0]))
    model = prepared.float_model.graph_model
    weights = [value for value in query.values(model).values() if value.is_initializer() and len(value.shape or ()) > 1]
    readers = {str(node.name): node.op_type for value in weights for node, _ in query.readers(value)}
    products = [name for name, op in readers.items() if op in STORED_WEIGHTS]
    return sum(1 for name in products if name in ran and ran[name].precision == "int8"), len(products)


def scored(subject: Subject, engine: str) -> dict[str, Any]:
    """Scores of every test copy by network and metric: float32, int8, and int8 whose other layers are in bf16."""
    quantized(subject, engine)
    path = subject.root / engine / MODEL_FILE
    sessions = {
        FLOAT: partial(subject.compiled, subject.float_model, engine),
        INT8: partial(subject.compiled, path, engine),
    }
    if not ENGINES[engine].computes_in_f32:
        sessions[INT8_DEFAULT] = partial(subject.compiled, path, engine, float_precision="default")
    return dict(kept(subject.root / engine / "scores.json", lambda: _scores(subject, sessions)))


def _scores(subject: Subject, sessions: Mapping[str, Callable[[], Session]]) -> dict[str, Any]:
    found = subject.task().evaluate_all({name: make() for name, make in sessions.items()})
    return {name: _by_metric(scores) for name, scores in found.items()}


def _by_metric(scores: Scores) -> dict[str, list[float]]:
    return {entry.name: list(entry.cases) for entry in scores}


def timed(subject: Subject, *, turns: int, seconds: float) -> dict[str, Any]:
    """Latency of a window in turns: median [ms], and how many times faster than float32 on the same engine."""

    def make() -> dict[str, Any]:
        feeds = subject.feeds()[0]
        sessions = {
            f"{engine}: {label}": session
            for engine in engines()
            for label, session in _contest(subject, engine).items()
        }
        work = {name: partial(session.time, feeds) for name, session in sessions.items()}
        found = in_turns(work, turns=turns, seconds=seconds)
        return {
            name: {
                "ms": 1e3 * found.seconds(name),
                "speedup": 1 / found.ratio(name, f"{name.partition(':')[0]}: {FLOAT}").wall,
                "turns": len(found.wall[name]),
            }
            for name in sessions
        }

    return dict(kept(subject.root / "latency.json", make))


def _contest(subject: Subject, engine: str) -> dict[str, Session]:
    quantized(subject, engine)
    made = subject.root / engine / MODEL_FILE
    found = {FLOAT: subject.compiled(subject.float_model, engine), INT8: subject.compiled(made, engine)}
    if not ENGINES[engine].computes_in_f32:
        found[BF16] = subject.compiled(subject.float_model, engine, float_precision="default")
        found[INT8_DEFAULT] = subject.compiled(made, engine, float_precision="default")
    return found
