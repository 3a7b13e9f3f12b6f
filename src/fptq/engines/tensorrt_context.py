"""One execution of a TensorRT engine at a time: its scratch memory, its buffers, its compiled kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fptq.cache import Cache
from fptq.engines.tensorrt_build import KERNELS, stored
from fptq.engines.tensorrt_package import api, refusal
from fptq.errors import EngineError

TORCH_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""torch's names of TensorRT's types."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """An execution context.

    Attributes:
        handle: TensorRT's `IExecutionContext`.
        kernels: RTX's cache of compiled kernels; None elsewhere.
        scratch: GPU memory for intermediate tensors. Ours, so that runs can be captured in a CUDA graph.
    """

    handle: Any
    kernels: Any
    scratch: Any

    def connect(self, buffers: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        """Have runs read and write these buffers."""
        for name, buffer in buffers.items():
            if name in inputs:
                self.handle.set_input_shape(name, tuple(buffer.shape))
            self.handle.set_tensor_address(name, buffer.data_ptr())

    def enqueue(self, stream: Any) -> None:
        """Queue a run.

        Raises:
            EngineError: TensorRT refuses.
        """
        if not self.handle.execute_async_v3(stream.cuda_stream):
            raise refusal("TensorRT cannot run the network")

    def capturable(self, stream: Any) -> bool:
        """Whether runs on a stream can be captured; where TensorRT does not say, they may be."""
        asked = getattr(self.handle, "is_stream_capturable", None)
        return asked is None or bool(asked(stream.cuda_stream))

    def keep_kernels(self, key: str) -> None:
        """Store what RTX compiled for later sessions."""
        if self.kernels is not None:
            Cache().put(KERNELS, key, stored(bytes(self.kernels.serialize())))


def new_context(engine: Any, torch: Any, key: str) -> Context:
    """An execution context of an engine.

    Args:
        engine: TensorRT's `ICudaEngine`.
        torch: The module.
        key: Of the kernels that RTX compiled earlier.

    Raises:
        EngineError: TensorRT cannot run the engine on this GPU.
    """
    mine = api().ExecutionContextAllocationStrategy.USER_MANAGED
    config: Any = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
    kernels = config.create_runtime_cache() if hasattr(config, "create_runtime_cache") else None
    if config is not None:
        config.set_execution_context_allocation_strategy(mine)
    if kernels is not None:
        entry = Cache().get(KERNELS, key)
        if entry is not None:
            kernels.deserialize(entry.arrays["bytes"].tobytes())
        config.set_runtime_cache(kernels)
    handle = engine.create_execution_context(mine if config is None else config)
    if handle is None:
        raise refusal("TensorRT cannot run the engine on this GPU")
    size = int(engine.device_memory_size_v2)
    scratch = torch.empty((max(size, 1),), dtype=torch.uint8, device="cuda")
    handle.set_device_memory(scratch.data_ptr(), size)
    return Context(handle=handle, kernels=kernels, scratch=scratch)


def new_buffers(engine: Any, context: Context, torch: Any) -> dict[str, Any]:
    """GPU tensors for every input and output of an engine whose input shapes are set.

    Raises:
        EngineError: A shape depends on the data.
    """
    buffers = {}
    for name in io_names(engine):
        shape = tuple(context.handle.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise EngineError(f"the shape of {name!r} depends on the data", rule="buffers are allocated before a run")
        dtype = getattr(torch, TORCH_TYPES[engine.get_tensor_dtype(name).name])
        buffers[name] = torch.empty(shape, dtype=dtype, device="cuda")
    return buffers


def io_names(engine: Any) -> list[str]:
    """Inputs and outputs."""
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]


def new_profiler() -> Any:
    """Collects the time of every layer [ms], summed over runs, in `spent_ms`."""
    trt = api()

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.spent_ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.spent_ms[layer_name] = self.spent_ms.get(layer_name, 0.0) + ms

    return Profiler()
