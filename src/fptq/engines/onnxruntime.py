"""ONNX Runtime on the CPU, and the simulation: the same file with every optimisation off."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import weakref
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fptq.engines.base import CompileOptions, NodeRun
from fptq.engines.container import runnable
from fptq.engines.installed import installed_version
from fptq.errors import DataError, EngineError, MissingExtra
from fptq.types import Feeds

_SUFFIX = re.compile(r"(_token_\d+|_nchwc)+$")
"""What layout transformations append to the names of the nodes that they rewrite."""
_INTEGER_KERNELS = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger", "QAttention")


class OnnxRuntime:
    """The CPU execution provider with all graph optimisations on."""

    name = "onnxruntime"
    extra = "onnxruntime"
    computes_in_f32 = True

    def version(self) -> str | None:
        """The installed version, without importing the package."""
        return installed_version("onnxruntime")

    def warm_up(self) -> None:
        """Import the package."""
        _import()

    def compile(self, model: Path, options: CompileOptions) -> OnnxRuntimeSession:
        """A session for an ONNX file."""
        return OnnxRuntimeSession(model, options, optimised=_ALL)


class Simulation:
    """Q/DQ arithmetic node by node, nothing fused: what the file says, whatever an engine makes of it."""

    name = "simulation"
    extra = "onnxruntime"
    computes_in_f32 = True

    def version(self) -> str | None:
        """ONNX Runtime's version."""
        return OnnxRuntime().version()

    def warm_up(self) -> None:
        """Import the package."""
        _import()

    def compile(self, model: Path, options: CompileOptions) -> OnnxRuntimeSession:
        """A session for an ONNX file."""
        return OnnxRuntimeSession(model, options, optimised=_NONE)


_ALL, _NONE = "ORT_ENABLE_ALL", "ORT_DISABLE_ALL"
_WEIGHTS_BESIDE = {
    "optimized_model_external_initializers_file_name": "weights.bin",
    "optimized_model_external_initializers_min_size_in_bytes": "1024",
    "save_external_prepacked_constant_initializers": "1",
}


class OnnxRuntimeSession:
    """An inference session on the CPU."""

    def __init__(self, model: Path, options: CompileOptions, *, optimised: str) -> None:
        self._path, self._file, self._threads, self._optimised = model, model, options.threads, optimised
        self._only_stores = optimised == _ALL and _only_stores_integers(model)
        if options.weights == "mapped":
            self._file, self._optimised = self._written_as_it_runs(), _NONE
        start = time.perf_counter()
        self._opened = self._open(self._session_options())
        self.load_s = time.perf_counter() - start
        self.input_names = [i.name for i in self._opened.get_inputs()]
        self.output_names = [o.name for o in self._opened.get_outputs()]

    @property
    def _session(self) -> Any:
        if self._opened is None:
            self._opened = self._open(self._session_options())
        return self._opened

    def _close(self) -> None:
        """Give the weights' memory back, where that is much; the next run opens the session again."""
        self._opened = None
        if self._is_large:
            _give_back_memory()

    @cached_property
    def _is_large(self) -> bool:
        from fptq.graph.rest import LARGE  # the graph library takes a second to import
        from fptq.graph.write import file_bytes

        return file_bytes(self._file) >= LARGE

    def _session_options(self) -> Any:
        ort = _import()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, self._optimised)
        # Workers spin on after a run, and take the cores from the next session: between two of them an int8
        # network of 18 ms was timed at 50 (two cores, ONNX Runtime 1.32). They still spin within a run.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._only_stores:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options

    def _written_as_it_runs(self) -> Path:
        """A file of the optimised graph, with weights in the form that its kernels read: sessions of it map them.

        Source: `session.save_external_prepacked_constant_initializers` in onnxruntime_session_options_config_keys.h.
        """
        folder = Path(tempfile.mkdtemp(prefix="fptq-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        options = self._session_options()
        options.optimized_model_filepath = str(folder / self._path.name)
        for key, value in _WEIGHTS_BESIDE.items():
            options.add_session_config_entry(f"session.{key}", value)
        self._open(options)
        _give_back_memory()
        return folder / self._path.name

    def _open(self, options: Any) -> Any:
        with runnable(self._file) as file:
            try:
                return _import().InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime raises a family of unrelated pybind exceptions
                raise EngineError(f"ONNX Runtime refuses {self._path.name}: {_first_line(error)}") from error

    def __call__(self, feeds: Feeds) -> Feeds:
        """Outputs by name."""
        missing = [name for name in self.input_names if name not in feeds]
        if missing:
            raise DataError(f"input {missing[0]!r} is missing", rule=f"the model takes {self.input_names}")
        try:
            values = self._session.run(self.output_names, {name: feeds[name] for name in self.input_names})
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {self._path.name}: {_first_line(error)}") from error
        return {name: np.asarray(value) for name, value in zip(self.output_names, values, strict=True)}

    def time(self, feeds: Feeds) -> float:
        """Seconds of one run."""
        bound = {name: feeds[name] for name in self.input_names}
        start = time.perf_counter()
        self._session.run(self.output_names, bound)
        return time.perf_counter() - start

    def profile(self, feeds: Feeds, *, runs: int = 3) -> tuple[NodeRun, ...]:
        """Per node of the optimised graph: kernel and mean time, from ONNX Runtime's own profiler."""
        with tempfile.TemporaryDirectory() as folder:
            options = self._session_options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            self._close()  # a session that profiles, beside it, would hold the weights once more
            session = self._open(options)
            for _ in range(runs + 1):
                session.run(self.output_names, {name: feeds[name] for name in self.input_names})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            del session
            self._close()
        return _node_runs(events, runs + 1)


def _give_back_memory() -> None:
    from fptq.graph.rest import give_back_memory  # the graph library takes a second to import

    give_back_memory()


def _only_stores_integers(path: Path) -> bool:
    """Whether a file holds integer weights and computes in float.

    ONNX Runtime expands such weights in every run, in case an integer kernel wants them; told that there is none,
    it expands them once.
    """
    import onnx

    try:
        nodes = onnx.load(path, load_external_data=False).graph.node
    except Exception:  # whatever is wrong with the file, the session's own error says it better
        return False
    ops = {node.op_type for node in nodes}
    return "DequantizeLinear" in ops and not ops & {"QuantizeLinear", "DynamicQuantizeLinear"}


def _node_runs(events: Sequence[dict[str, Any]], runs: int) -> tuple[NodeRun, ...]:
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(event["dur"] / 1e3)
    return tuple(
        NodeRun(
            nodes=(_SUFFIX.sub("", name),),
            op=op,
            precision="int8" if op.startswith(_INTEGER_KERNELS) else "f32",
            kernel=op,
            time_ms=float(np.mean(spent[len(spent) // runs :] or spent)),
        )
        for (name, op), spent in times.items()
    )


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", extra="onnxruntime", purpose="The ONNX Runtime engine") from error
    return onnxruntime


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
