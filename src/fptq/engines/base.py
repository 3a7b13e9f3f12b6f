"""What an inference engine is to fptq: compile a file, run it, time it, say what really ran."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fptq.types import Feeds


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How a session is compiled.

    Attributes:
        threads: CPU threads for one run.
        float_precision: What the unquantized remainder runs in: "f32", or "default" for the engine's
            own choice (bf16 in OpenVINO where the CPU has it; "f16" in TensorRT, which takes "tf32" too).
        weights: Where the engine's weights lie: "held" in memory, or "mapped" from a temporary file in the form that
            its kernels read, so that they can leave memory when it is short. Same kernels, same results; opening
            takes longer. OpenVINO holds them in either case.
    """

    threads: int = 2
    float_precision: str = "f32"
    weights: str = "held"


@dataclass(frozen=True, kw_only=True)
class NodeRun:
    """What one node of the engine's own graph ran as.

    Attributes:
        nodes: Names of the ONNX nodes it covers (fusion makes them several).
        op: The engine's name for the operation.
        precision: "int8", "f32", "bf16", "f16" or another name of the engine's.
        kernel: The engine's kernel name.
        time_ms: Mean time of one run; 0.0 where the engine does not say.
    """

    nodes: tuple[str, ...]
    op: str
    precision: str
    kernel: str
    time_ms: float


class Session(Protocol):
    """A compiled model. Calling it makes it a `Runner`."""

    load_s: float

    def __call__(self, feeds: Feeds) -> Feeds: ...

    def time(self, feeds: Feeds) -> float:
        """Seconds of one run on prepared buffers."""

    def profile(self, feeds: Feeds, *, runs: int = 3) -> tuple[NodeRun, ...]:
        """What each node ran as, and for how long."""


class Engine(Protocol):
    """An inference engine.

    Attributes:
        name: What it is called.
        extra: The extra that installs it.
        computes_in_f32: Whether its own choice of float is f32, on every processor.
    """

    name: str
    extra: str
    computes_in_f32: bool

    def version(self) -> str | None:
        """The installed version, or None when it is not installed."""

    def warm_up(self) -> None:
        """Import the engine, so that what follows is the model's own time and memory."""

    def compile(self, model: Path, options: CompileOptions) -> Session:
        """A session for an ONNX file.

        Raises:
            MissingExtra: The engine is not installed.
            EngineError: It refuses the model.
        """
