"""OpenVINO on the CPU. Reads Q/DQ ONNX files directly and fuses Q/DQ pairs into int8 kernels."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fptq.engines.base import CompileOptions, NodeRun
from fptq.engines.container import runnable
from fptq.engines.installed import installed_version
from fptq.errors import DataError, EngineError, MissingExtra
from fptq.types import Feeds

_PRECISIONS = {"i8": "int8", "u8": "int8", "f16": "f16", "bf16": "bf16", "f32": "f32"}
_RUNTIME_INFO = ("originalLayersNames", "runtimePrecision", "layerType", "primitiveType")


class OpenVINO:
    """The OpenVINO CPU plugin."""

    name = "openvino"
    extra = "openvino"
    computes_in_f32 = False

    def version(self) -> str | None:
        """The installed version, without importing the package."""
        return installed_version("openvino")

    def warm_up(self) -> None:
        """Import the package and start its core."""
        _core()

    def compile(self, model: Path, options: CompileOptions) -> OpenVINOSession:
        """A session for an ONNX (or OpenVINO IR) file."""
        return OpenVINOSession(model, options)


@functools.cache
def _core() -> Any:
    # `import openvino` reports itself to the vendor through this package, and no environment variable but CI stops it;
    # without the package it takes a stub.
    blocked = "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("openvino", extra="openvino", purpose="The OpenVINO engine") from error
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
    return openvino.Core()


class OpenVINOSession:
    """A compiled OpenVINO model with one infer request."""

    def __init__(self, model: Path, options: CompileOptions) -> None:
        self._path, self._options = model, options
        _core()
        start = time.perf_counter()
        try:
            self._compiled = self._compile({})
        except RuntimeError as error:
            raise EngineError(f"OpenVINO refuses {model.name}: {_first_line(error)}") from error
        self.load_s = time.perf_counter() - start
        self._request = self._compiled.create_infer_request()
        # A stripped pair of Q and DQ merges its names into the input's: only the parameter keeps the model's own.
        self.input_names = [port.node.friendly_name for port in self._compiled.inputs]
        self.output_names = [port.any_name for port in self._compiled.outputs]

    def _compile(self, extra: Mapping[str, Any]) -> Any:
        with runnable(self._path) as file:
            return _core().compile_model(str(file), "CPU", self._config(extra))

    def _config(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._options.threads,
            **extra,
        }
        if self._options.float_precision != "default":
            config["INFERENCE_PRECISION_HINT"] = self._options.float_precision
        return config

    def __call__(self, feeds: Feeds) -> Feeds:
        """Outputs by name, copied out of the engine's buffers."""
        results = self._infer(self._request, feeds)
        return {
            name: results[port].copy() for name, port in zip(self.output_names, self._compiled.outputs, strict=True)
        }

    def time(self, feeds: Feeds) -> float:
        """Seconds of one run on bound input buffers."""
        self._bind(self._request, feeds)
        start = time.perf_counter()
        self._request.infer()
        return time.perf_counter() - start

    def profile(self, feeds: Feeds, *, runs: int = 3) -> tuple[NodeRun, ...]:
        """Per node: executed precision, kernel and mean time, from the plugin's own counters."""
        compiled = self._compile({"PERF_COUNT": True})
        request = compiled.create_infer_request()
        self._bind(request, feeds)
        request.infer()  # warm-up
        best: dict[str, float] = {}
        for _ in range(runs):
            request.infer()
            for entry in request.profiling_info:
                spent = entry.real_time.total_seconds() * 1e3
                best[entry.node_name] = min(spent, best.get(entry.node_name, spent))
        return tuple(_node_run(node, best) for node in compiled.get_runtime_model().get_ordered_ops())

    def _bind(self, request: Any, feeds: Feeds) -> None:
        import openvino

        for name in self.input_names:
            request.set_tensor(name, openvino.Tensor(feeds[name]))

    def _infer(self, request: Any, feeds: Feeds) -> Any:
        try:
            return request.infer({name: feeds[name] for name in self.input_names}, share_inputs=True)
        except KeyError as error:
            raise DataError(f"input {error} is missing", rule=f"the model takes {self.input_names}") from error
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on {self._path.name}: {_first_line(error)}") from error


def _node_run(node: Any, times: Mapping[str, float]) -> NodeRun:
    info = {key: _text(node.rt_info[key]) for key in _RUNTIME_INFO if key in node.rt_info}
    precision = info.get("runtimePrecision", "").lower()
    return NodeRun(
        nodes=tuple(
            name.removesuffix("/WithoutBiases") for name in info.get("originalLayersNames", "").split(",") if name
        ),
        op=info.get("layerType", node.get_type_name()),
        precision=_PRECISIONS.get(precision, precision),
        kernel=info.get("primitiveType", ""),
        time_ms=times.get(node.get_friendly_name(), 0.0),
    )


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
