"""The TensorRT that is installed: the package of either name, and what it says while it works.

TensorRT and TensorRT-RTX share one API; RTX compiles kernels when the engine is loaded instead of timing them before.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fptq.engines.installed import installed_version
from fptq.errors import EngineError, MissingExtra

_LEAST = 10
"""The first TensorRT whose networks are strongly typed and whose contexts take tensors by name only."""

_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        "tensorrt_bindings": ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
        "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
    }
)
"""Modules that hold the API, the preferred first, and the distributions that bring them."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """An installed TensorRT.

    Attributes:
        module: Name of the Python module.
        version: Of the distribution; empty where the module has none (a vendor's container).
    """

    module: str
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return "rtx" in self.module

    def __str__(self) -> str:
        return f"RTX {self.version}".strip() if self.is_rtx else self.version or "unknown version"


@functools.cache
def installed() -> Package | None:
    """The package that is installed, without importing it."""
    for module, distributions in _DISTRIBUTIONS.items():
        if importlib.util.find_spec(module) is not None:
            return Package(module=module, version=next(filter(None, map(installed_version, distributions)), ""))
    return None


@functools.cache
def api() -> Any:
    """The module.

    Raises:
        MissingExtra: None is installed.
        EngineError: It does not start, or is too old.
    """
    package = installed()
    if package is None:
        raise MissingExtra("tensorrt", extra="tensorrt", purpose="The TensorRT engine")
    try:
        module = importlib.import_module(package.module)
    except (ImportError, OSError) as error:
        raise EngineError(f"TensorRT {package} does not start: {error}", remedy="Reinstall it") from error
    if not package.is_rtx and int(module.__version__.split(".")[0]) < _LEAST:
        raise EngineError(
            f"TensorRT {module.__version__} is too old",
            rule=f"types written into the graph need version {_LEAST}",
            remedy="pip install --upgrade tensorrt",
        )
    return module


@functools.cache
def log() -> Any:
    """The logger of this process: keeps errors and warnings, prints nothing."""
    trt = api()

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)

        def clear(self) -> None:
            self.errors.clear()
            self.warnings.clear()

    return Log()


def refusal(what: str) -> EngineError:
    """An error with the first thing that TensorRT said about it; forgets what was said."""
    said = next((line.strip() for message in log().errors for line in message.splitlines() if line.strip()), "")
    log().clear()
    return EngineError(f"{what}: {said}" if said else f"{what}, without a reason")
