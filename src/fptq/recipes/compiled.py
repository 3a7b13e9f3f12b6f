"""Networks in folders that `quantize` wrote, compiled for what calls them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fptq.engines import CompileOptions, engine_named
from fptq.engines.cpu import made_elsewhere
from fptq.errors import ConfigError
from fptq.graph.load import read_onnx
from fptq.recipes.result import MODEL_FILE, PACKED_FILE
from fptq.types import Runner

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CompiledFolds:
    """The folds of a network, each on an engine; a network without folds is one.

    Attributes:
        runners: The sessions.
        input_name: Of their one input.
        output_name: Of their one output, or of the first.
    """

    runners: tuple[Runner, ...]
    input_name: str
    output_name: str


def compiled_folds(paths: Sequence[Path], options: CompileOptions, *, engine: str | None = None) -> CompiledFolds:
    """Networks in files, compiled; on the engine that each was made for, unless another is named."""
    runners: list[Runner] = []
    names = ("", "")
    for path in paths:
        graph_model = read_onnx(path)
        metadata = graph_model.metadata_props
        if (warning := made_elsewhere(metadata)) is not None:
            _LOG.warning("%s: %s", path, warning)
        names = str(graph_model.graph.inputs[0].name), str(graph_model.graph.outputs[0].name)
        runners.append(engine_named(engine or metadata.get("fptq.engine", "")).compile(path, options))
    return CompiledFolds(runners=tuple(runners), input_name=names[0], output_name=names[1])


def network_path(folder: Path) -> Path:
    """The network in a folder that `quantize` wrote.

    Raises:
        ConfigError: There is none.
    """
    path = next((folder / name for name in (MODEL_FILE, PACKED_FILE) if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(f"{folder} has no {MODEL_FILE}", remedy="Give the folder that fptq quantize wrote")
    return path
