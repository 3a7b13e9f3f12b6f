"""What TensorRT's engine inspector says about layers, read into one form for versions 10, 11 and RTX."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fptq.engines.base import NodeRun

_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_TYPES = {
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "fp8": re.compile(r"\bfp8\b", re.IGNORECASE),
    "f16": re.compile(r"\b(fp16|half)\b", re.IGNORECASE),
    "bf16": re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE),
    "f32": re.compile(r"\b(fp32|float|float32)\b", re.IGNORECASE),
}
"""Precisions as they are spelled in formats ("Thirty-two wide channel vectorized row major Int8 format")."""


def node_runs(information: str, times_ms: Mapping[str, float]) -> tuple[NodeRun, ...]:
    """The layers of an engine.

    Args:
        information: What `EngineInspector.get_engine_information` gives as JSON.
        times_ms: Mean time of each layer by its name.
    """
    layers = json.loads(information).get("Layers", [])
    return tuple(_node_run(layer if isinstance(layer, Mapping) else {"Name": layer}, times_ms) for layer in layers)


def _node_run(layer: Mapping[str, Any], times_ms: Mapping[str, float]) -> NodeRun:
    name = str(layer.get("Name", ""))
    kernel = str(layer.get("TacticName") or layer.get("LayerType", ""))
    return NodeRun(
        nodes=_nodes(layer, name),
        op=str(layer.get("ParameterType") or layer.get("LayerType", "")),
        precision=_precision(layer, kernel),
        kernel=kernel,
        time_ms=float(times_ms.get(name, 0.0)),
    )


def _nodes(layer: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """ONNX nodes of a layer, from its metadata; else the parts of its name."""
    found = _ONNX_LAYER.findall(str(layer.get("Metadata", "")))
    return tuple(dict.fromkeys(found)) or tuple(part.strip() for part in name.split(" + ") if part.strip())


def _precision(layer: Mapping[str, Any], kernel: str) -> str:
    """What a layer reads: the type of its first input that is a number with a known format, else of its first output.

    Products read codes even where their result is float. TF32 shows in the kernel's name only.
    """
    for side in ("Inputs", "Outputs"):
        tensors = layer.get(side) or ()
        found = next(_types(tensors), "")
        if found:
            return "tf32" if found == "f32" and "tf32" in kernel.lower() else found
    return ""


def _types(tensors: Iterable[Any]) -> Iterator[str]:
    for tensor in tensors:
        text = " ".join(_texts(tensor))
        yield from (name for name, spelled in _TYPES.items() if spelled.search(text))


def _texts(tensor: Any) -> Iterator[str]:
    """The words on a tensor's type, without its name."""
    if isinstance(tensor, Mapping):
        yield from (str(value) for key, value in tensor.items() if key not in ("Name", "Dimensions", "Location"))
