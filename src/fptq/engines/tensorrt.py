"""TensorRT on an NVIDIA GPU: an engine built from the ONNX file, in the types that the file gives.

int8 where Q/DQ pairs say so; half precision where fptq writes it into the graph. Tensors live in torch's GPU memory.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fptq.cache import cache_key
from fptq.engines.base import CompileOptions, NodeRun
from fptq.engines.container import runnable
from fptq.engines.tensorrt_build import BuildOptions, Extent, plan_of
from fptq.engines.tensorrt_context import Context, io_names, new_buffers, new_context, new_profiler
from fptq.engines.tensorrt_file import inputs_of, typed
from fptq.engines.tensorrt_layers import node_runs
from fptq.engines.tensorrt_package import api, installed, log, refusal
from fptq.errors import DataError, EngineError, MissingExtra
from fptq.types import Feeds


class TensorRT:
    """TensorRT, or TensorRT-RTX where only that is installed."""

    name = "tensorrt"
    extra = "tensorrt"
    computes_in_f32 = False

    def version(self) -> str | None:
        """The installed version, without importing the package."""
        package = installed()
        return None if package is None else str(package)

    def warm_up(self) -> None:
        """Import the package and start CUDA."""
        api()
        device_name()

    def compile(self, model: Path, options: CompileOptions) -> TensorRTSession:
        """A session for an ONNX file.

        `float_precision` is "f32", "tf32", or "f16" (also "default"): types are written into the graph.
        """
        return TensorRTSession(model, options)


def device_name() -> str:
    """The GPU, its compute capability and its driver's CUDA version.

    Raises:
        MissingExtra: torch is not installed.
        EngineError: There is no GPU.
    """
    torch = _torch()
    if not torch.cuda.is_available():
        raise EngineError(
            "torch finds no CUDA GPU",
            rule="TensorRT runs on NVIDIA GPUs, in memory that torch allocates",
            remedy="Choose --engine openvino or onnxruntime, or install a CUDA build of torch",
        )
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} ({major}.{minor}), CUDA {torch.version.cuda}"


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="torch", purpose="The TensorRT engine") from error
    return torch


class TensorRTSession:
    """An engine with one execution context, its GPU buffers, and a CUDA graph of a run where that is faster.

    Inputs of dynamic shape: the engine is built when the first shapes are known, and again, for the whole range, when
    others come that lie outside.

    Attributes:
        load_s: Seconds of building, or reading from the cache, and loading.
        engine_bytes: Size of the serialized engine.
    """

    def __init__(self, model: Path, options: CompileOptions, *, workspace_bytes: int | None = None) -> None:
        self._path, self._options, self._workspace = model, options, workspace_bytes
        self._torch, self._device = _torch(), device_name()
        api()
        self._inputs, self._dynamic = inputs_of(model)
        self.input_names = list(self._inputs)
        self._extents: dict[str, Extent] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._stream = self._torch.cuda.Stream()
        self._graph: Any = None
        self._context: Any = None
        self._buffers: dict[str, Any] = {}
        self.load_s, self.engine_bytes = 0.0, 0
        if not self._dynamic:
            self._load()

    @property
    def graphed(self) -> bool:
        """Whether runs are replayed from a CUDA graph."""
        return self._graph is not None

    @property
    def memory_bytes(self) -> int:
        """GPU memory of weights and intermediate tensors, as the engine states them, and of inputs and outputs."""
        statistic = getattr(api(), "EngineStat", None)
        weights = self._engine.get_engine_stat(statistic.TOTAL_WEIGHTS_SIZE) if statistic is not None else 0
        buffers = sum(buffer.nbytes for buffer in self._buffers.values())
        return int(weights + self._engine.device_memory_size_v2 + buffers)

    def _load(self) -> None:
        start = time.perf_counter()
        self._graph = self._context = None  # before the engine that they belong to
        options = BuildOptions(
            device=self._device,
            tf32=self._options.float_precision != "f32",
            workspace_bytes=self._workspace,
            extents=self._extents,
        )
        with runnable(self._path) as file, typed(file, self._options.float_precision) as written:
            plan = plan_of(written, options)
        self._runtime = api().Runtime(log())
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise refusal(f"TensorRT cannot load the engine of {self._path.name} on {self._device}")
        self._kernel_key = cache_key(str(installed()), self._device, hashlib.sha256(plan).hexdigest())
        self._context = new_context(self._engine, self._torch, self._kernel_key)
        self.output_names = [name for name in io_names(self._engine) if name not in self._inputs]
        self._shapes = {}
        self.engine_bytes = len(plan)
        self.load_s = time.perf_counter() - start

    def __call__(self, feeds: Feeds) -> Feeds:
        """Outputs by name, copied to the host."""
        self._bind(feeds)
        self._launch()
        self._stream.synchronize()
        return {name: self._buffers[name].cpu().numpy() for name in self.output_names}

    def time(self, feeds: Feeds) -> float:
        """Seconds of one run between two CUDA events, inputs and outputs in GPU memory."""
        self._bind(feeds)
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(self._stream)
        self._launch()
        end.record(self._stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def profile(self, feeds: Feeds, *, runs: int = 3) -> tuple[NodeRun, ...]:
        """Per layer of the engine: what it reads, its kernel and mean time, from the inspector and the profiler."""
        self._bind(feeds)
        context = new_context(self._engine, self._torch, self._kernel_key)  # one that reports times cannot be captured
        context.connect(self._buffers, self._inputs)
        context.handle.profiler = profiler = new_profiler()
        for _ in range(runs):
            context.enqueue(self._stream)
            self._stream.synchronize()
        return self._layers(context, {name: spent / runs for name, spent in profiler.spent_ms.items()})

    def layers(self) -> tuple[NodeRun, ...]:
        """Per layer of the engine: what it reads and its kernel, without a run."""
        return self._layers(self._context, {})

    def _layers(self, context: Context, times_ms: Mapping[str, float]) -> tuple[NodeRun, ...]:
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = context.handle
        return node_runs(inspector.get_engine_information(api().LayerInformationFormat.JSON), times_ms)

    def _bind(self, feeds: Feeds) -> None:
        """Bring inputs to the GPU; build, allocate and capture where their shapes are new."""
        missing = [name for name in self.input_names if name not in feeds]
        if missing:
            raise DataError(f"input {missing[0]!r} is missing", rule=f"the model takes {self.input_names}")
        arrays = {name: np.ascontiguousarray(feeds[name]) for name in self.input_names}
        shapes = {name: array.shape for name, array in arrays.items()}
        self._fit(shapes)
        fresh = shapes != self._shapes
        if fresh:
            self._allocate(arrays)
        with self._torch.cuda.stream(self._stream):
            for name, array in arrays.items():
                self._buffers[name].copy_(self._torch.from_numpy(array))
        self._stream.synchronize()
        if fresh:
            self._capture()
            self._shapes = shapes

    def _fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Build the engine anew where a dynamic input has a shape outside of what it was built for."""
        outside = {n for n in self._dynamic if n not in self._extents or not self._extents[n].holds(shapes[n])}
        for name in outside:
            known = self._extents.get(name)
            shape = shapes[name]
            self._extents[name] = known.widened(shape) if known else Extent(least=shape, usual=shape, most=shape)
        if outside:
            self._load()

    def _allocate(self, arrays: Feeds) -> None:
        self._graph, self._shapes = None, {}
        for name, array in arrays.items():
            if not self._context.handle.set_input_shape(name, array.shape):
                raise DataError(f"{name!r} has shape {list(array.shape)}", rule=f"the model takes {self._inputs[name]}")
        self._buffers = new_buffers(self._engine, self._context, self._torch)
        self._context.connect(self._buffers, self._inputs)

    def _launch(self) -> None:
        if self._graph is None:
            self._context.enqueue(self._stream)
            return
        with self._torch.cuda.stream(self._stream):
            self._graph.replay()

    def _capture(self) -> None:
        """Replay runs from a CUDA graph where the network can be captured and that is faster."""
        for _ in range(2):  # kernels are loaded, and compiled, by the first run
            self._context.enqueue(self._stream)
        self._stream.synchronize()
        self._context.keep_kernels(self._kernel_key)
        plain = self._spent()
        if not self._context.capturable(self._stream):
            return
        graph = self._torch.cuda.CUDAGraph()
        try:
            with self._torch.cuda.graph(graph, stream=self._stream):
                self._context.enqueue(self._stream)
        except (EngineError, RuntimeError):  # synchronizations inside: the network runs, but not from a graph
            self._torch.cuda.synchronize()
            return
        self._graph = graph
        if self._spent() >= plain:
            self._graph = None

    def _spent(self, runs: int = 5) -> float:
        """Milliseconds of a few runs in a row."""
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._launch()
        start.record(self._stream)
        for _ in range(runs):
            self._launch()
        end.record(self._stream)
        end.synchronize()
        return float(start.elapsed_time(end))
