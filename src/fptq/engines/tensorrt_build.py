"""From an ONNX file to a TensorRT engine: types as the file gives them, shapes within a profile, kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fptq.cache import Cache, CacheEntry, cache_key
from fptq.engines.tensorrt_package import api, installed, log, refusal
from fptq.errors import EngineError

PLANS, TIMINGS, KERNELS = "tensorrt-engines", "tensorrt-timings", "tensorrt-kernels"
"""Kinds of cache entries. An engine holds machine code: none is loaded that does not come from there."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The shapes of one input that an engine is built for.

    Attributes:
        least: The smallest.
        usual: The one that kernels are chosen for.
        most: The largest.
    """

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape lies within."""
        bounds = zip(self.least, shape, self.most, strict=True)
        return len(shape) == len(self.usual) and all(low <= size <= high for low, size, high in bounds)

    def widened(self, shape: tuple[int, ...]) -> Extent:
        """The extent that holds a shape too, with kernels for that one."""
        return Extent(least=tuple(map(min, self.least, shape)), usual=shape, most=tuple(map(max, self.most, shape)))


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        device: The GPU and its driver, in words: engines belong to one.
        tf32: Whether products of float32 numbers may round them to 10 bits.
        workspace_bytes: Most GPU memory that a kernel may use besides its tensors; None: all there is.
        extents: Shapes by input, for inputs of dynamic shape.
    """

    device: str
    tf32: bool
    workspace_bytes: int | None = None
    extents: Mapping[str, Extent] = field(default_factory=lambda: MappingProxyType({}))


def plan_of(file: Path, options: BuildOptions, *, store: Cache | None = None) -> bytes:
    """The serialized engine of a file: from the cache, or built and kept there.

    Raises:
        EngineError: TensorRT refuses the file.
    """
    store = store or Cache()
    key = cache_key("1", str(installed()), options, fingerprint(file))
    entry = store.get(PLANS, key)
    if entry is not None:
        return entry.arrays["bytes"].tobytes()
    plan = built(file, options, store=store)
    store.put(PLANS, key, stored(plan))
    return plan


def stored(content: bytes) -> CacheEntry:
    """Bytes as a cache entry."""
    return CacheEntry(arrays={"bytes": np.frombuffer(content, np.uint8)}, meta={})


def fingerprint(file: Path) -> str:
    """The SHA-256 of a file and of the files of external data that it names."""
    import onnx

    digest = hashlib.sha256(file.read_bytes())
    tensors = onnx.load(file, load_external_data=False).graph.initializer
    beside = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    for name in sorted(beside):
        digest.update((file.parent / name).read_bytes())
    return digest.hexdigest()


def built(file: Path, options: BuildOptions, *, store: Cache) -> bytes:
    """The serialized engine of a file, built now.

    Raises:
        EngineError: TensorRT refuses the file.
    """
    builder = api().Builder(log())
    if builder is None:
        raise refusal("TensorRT cannot start a builder on this machine")
    network = parsed(builder, file)
    for flags in _flag_sets(options):
        config = _config(builder, network, options, flags)
        timings = _timings(config, options, store)
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            _keep_timings(config, timings, store)
            log().clear()
            return bytes(plan)
    raise refusal(f"TensorRT cannot build an engine of {file.name}")


def parsed(builder: Any, file: Path) -> Any:
    """The strongly typed network of a file.

    Raises:
        EngineError: TensorRT cannot read it.
    """
    trt = api()
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    # Since version 11 there are no other networks, and the flag may go.
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log())
    log().clear()
    if not parser.parse_from_file(str(file)):
        said = parser.get_error(0) if parser.num_errors else None
        log().clear()
        where = (
            f"node {said.node_name()!r} ({said.node_operator()}): {said.desc()}" if said is not None else "no reason"
        )
        raise EngineError(f"TensorRT refuses {file.name}: {where}")
    if network.num_outputs == 0:
        raise EngineError(f"TensorRT finds no outputs in {file.name}", remedy="Check that it is an ONNX file")
    return network


def _flag_sets(options: BuildOptions) -> list[list[str]]:
    """Builder flags to try in turn: memory from the caller lets RTX's runs be captured, where the network allows it."""
    flags = ["TF32"] if options.tf32 else []
    captured = hasattr(api().BuilderFlag, "REQUIRE_USER_ALLOCATION") and not options.extents
    return [[*flags, "REQUIRE_USER_ALLOCATION"], flags] if captured else [flags]


def _config(builder: Any, network: Any, options: BuildOptions, flags: list[str]) -> Any:
    trt = api()
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.extents:
        profile = builder.create_optimization_profile()
        for name, extent in options.extents.items():
            profile.set_shape(name, extent.least, extent.usual, extent.most)
        if config.add_optimization_profile(profile) < 0:
            raise refusal(f"TensorRT refuses the shapes of {', '.join(options.extents)}")
    return config


def _timings(config: Any, options: BuildOptions, store: Cache) -> str | None:
    """Give the builder the kernel timings of earlier builds; RTX times nothing. Returns their key."""
    package = installed()
    if package is None or package.is_rtx:
        return None
    key = cache_key(str(package), options.device)
    entry = store.get(TIMINGS, key)
    known = entry.arrays["bytes"].tobytes() if entry is not None else b""
    config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    return key


def _keep_timings(config: Any, key: str | None, store: Cache) -> None:
    cache = config.get_timing_cache() if key is not None else None
    if key is not None and cache is not None:
        store.put(TIMINGS, key, stored(bytes(cache.serialize())))
