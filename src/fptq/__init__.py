"""Fine-grained post-training quantization for scientific deep learning.

    result = fptq.quantize(net, calibration=loader, engine="openvino")
    result.save("out/")

Names are imported when they are first used: `import fptq` itself costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from fptq.errors import (
    AssetError,
    ConfigError,
    DataError,
    EngineError,
    FptqError,
    MetricError,
    MissingExtra,
    ModelError,
    OutputError,
    ParityError,
)

if TYPE_CHECKING:
    from fptq.config import Recipe, load_recipe
    from fptq.feeds.lengths import bucket_by_length
    from fptq.feeds.record import record
    from fptq.graph.pretrained import load_pretrained
    from fptq.recipes.bundle_predict import bundle_predictor
    from fptq.recipes.nnunet import quantize_nnunet
    from fptq.recipes.nnunet_predict import nnunet_predictor
    from fptq.recipes.quantize import quantize
    from fptq.recipes.result import Result
    from fptq.recipes.sensitivity import sensitivity
    from fptq.recipes.survey import bench, inspect
    from fptq.report.report import Report

# ONNX Runtime sends usage data from version 1.29 on unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__all__ = [
    "AssetError",
    "ConfigError",
    "DataError",
    "EngineError",
    "FptqError",
    "MetricError",
    "MissingExtra",
    "ModelError",
    "OutputError",
    "ParityError",
    "Recipe",
    "Report",
    "Result",
    "__version__",
    "bench",
    "bucket_by_length",
    "bundle_predictor",
    "inspect",
    "load_pretrained",
    "load_recipe",
    "nnunet_predictor",
    "quantize",
    "quantize_nnunet",
    "record",
    "sensitivity",
]

_HOMES = {
    "Recipe": "fptq.config",
    "load_recipe": "fptq.config",
    "bucket_by_length": "fptq.feeds.lengths",
    "bundle_predictor": "fptq.recipes.bundle_predict",
    "load_pretrained": "fptq.graph.pretrained",
    "record": "fptq.feeds.record",
    "Result": "fptq.recipes.result",
    "bench": "fptq.recipes.survey",
    "inspect": "fptq.recipes.survey",
    "nnunet_predictor": "fptq.recipes.nnunet_predict",
    "quantize": "fptq.recipes.quantize",
    "quantize_nnunet": "fptq.recipes.nnunet",
    "sensitivity": "fptq.recipes.sensitivity",
    "Report": "fptq.report.report",
}


def __getattr__(name: str) -> Any:
    """A public name, imported now (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fptq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
