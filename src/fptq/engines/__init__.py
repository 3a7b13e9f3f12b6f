"""Inference engines behind one small protocol: one file for each, one line each in the table."""

from __future__ import annotations

from types import MappingProxyType

from fptq.engines.base import CompileOptions, Engine, NodeRun, Session
from fptq.engines.onnxruntime import OnnxRuntime, Simulation
from fptq.engines.openvino import OpenVINO
from fptq.engines.tensorrt import TensorRT
from fptq.errors import ConfigError, MissingExtra

ENGINES: MappingProxyType[str, Engine] = MappingProxyType(
    {engine.name: engine for engine in (OnnxRuntime(), OpenVINO(), TensorRT(), Simulation())}
)
"""Engines by name."""

DEPLOYABLE = ("openvino", "onnxruntime")
"""Engines that `engine="auto"` chooses from: those of the processor that every machine has."""

INSTALLABLE = (*DEPLOYABLE, "tensorrt")
"""Engines that a user can install."""


def engine_named(name: str) -> Engine:
    """The engine of that name, installed.

    Raises:
        ConfigError: No engine has that name.
        MissingExtra: It is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine {name!r} is not known", remedy=f"Choose one of {', '.join(ENGINES)}")
    engine = ENGINES[name]
    if engine.version() is None:
        raise MissingExtra(engine.name, extra=engine.extra, purpose=f"The {engine.name} engine")
    return engine


__all__ = ["DEPLOYABLE", "ENGINES", "INSTALLABLE", "CompileOptions", "Engine", "NodeRun", "Session", "engine_named"]
