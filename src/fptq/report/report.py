"""The evidence of one quantization, as one versioned record and its file `report.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import ValidationError

from fptq.errors import ConfigError
from fptq.report.decisions import Gate, NodeRecord, Picture, RefusalRecord
from fptq.report.files import write_text
from fptq.report.policies import Policies
from fptq.report.records import (
    Agreement,
    Calibration,
    Drop,
    EngineInfo,
    Environment,
    ModelInfo,
    Number,
    Record,
    Variant,
)
from fptq.report.repair import Repair
from fptq.report.search import Search, Sensitivity, Tried
from fptq.report.tensors import PlacementRecord

SCHEMA_VERSION: Final = 1
FILE_NAME = "report.json"


class Report(Record):
    """What a quantization cost and what it brought: renderable without torch, model or engine.

    Attributes:
        schema_version: Version of this schema.
        model: The network.
        environment: Where and when.
        engine: What ran it.
        float: The float network in fp32.
        float_default: The float network as the engine runs it by default, where that is not fp32.
        quantized: The quantized network.
        agreement: The quantized against the float outputs.
        drops: How much worse each score became.
        speedup: Median latency of `float` divided by that of `quantized`.
        speedup_default: Median latency of `float_default` divided by that of `quantized`.
        compression: Size of `float` divided by that of `quantized`.
        calibration: How the ranges were found.
        placements: The quantized tensors, in the order of execution.
        refusals: The nodes kept float.
        gate: What was measured before the placement was settled.
        nodes: The engine's nodes of the quantized network.
        float_nodes: The engine's nodes of the float network.
        rewrites: What was changed in the model before quantizing, one line each.
        warnings: What the user should know before trusting the numbers, one line each.
        pictures: Slices of volumes, side by side.
        sensitivity: Which layer hurts, and what each became; null where it was not analysed.
        search: The mixes of precisions that were searched; null where there was no search.
        repair: How codes of few bits were found; null where there are none.
        tried: What was tried to lower the error, in that order.
        policies: What was decided about the activations that lose most; null where nothing was.
        seed: Seed of everything random.
        command: The command, or the Python call, that reproduces it.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelInfo
    environment: Environment
    engine: EngineInfo
    float: Variant
    float_default: Variant | None = None
    quantized: Variant
    agreement: Agreement
    drops: tuple[Drop, ...] = ()
    speedup: Number = None
    speedup_default: Number = None
    compression: Number = None
    calibration: Calibration | None = None
    placements: tuple[PlacementRecord, ...] = ()
    refusals: tuple[RefusalRecord, ...] = ()
    gate: Gate | None = None
    nodes: tuple[NodeRecord, ...] = ()
    float_nodes: tuple[NodeRecord, ...] = ()
    rewrites: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    sensitivity: Sensitivity | None = None
    search: Search | None = None
    repair: Repair | None = None
    tried: tuple[Tried, ...] = ()
    policies: Policies | None = None
    seed: int
    command: str

    def save(self, folder: Path) -> Path:
        """Write `report.json` into a folder, which is made where it does not exist; an older one is replaced whole.

        Returns:
            The file.

        Raises:
            OutputError: It cannot be written; an older report is left as it was.
        """
        return write_text(folder / FILE_NAME, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote.

        Args:
            folder: The folder, or the JSON file itself.

        Raises:
            ConfigError: There is no report, it is damaged, or its schema is one that this version does not know.
        """
        path = folder / FILE_NAME if folder.is_dir() else folder
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            remedy = "Give the folder that fptq quantize wrote"
            raise ConfigError(f"no report at {path}: {error.strerror}", remedy=remedy) from error
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON: {error}", remedy="Run fptq quantize again") from error
        _check_version(data, path)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(_first_problem(error, path), remedy="Run fptq quantize again") from error


def _check_version(data: object, path: Path) -> None:
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version == SCHEMA_VERSION:
        return
    if version is None:
        raise ConfigError(f"{path} is not a report: it has no schema_version", remedy="Give a report.json")
    raise ConfigError(
        f"{path} has schema version {version!r}",
        rule=f"this fptq reads version {SCHEMA_VERSION}",
        remedy="Install the fptq named in its environment.fptq, or a newer one: pip install --upgrade fptq",
    )


def _first_problem(error: ValidationError, path: Path) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the document"
    more = error.error_count() - 1
    return f"{path}: {where}: {problem['msg']}" + (f" (and {more} more)" if more else "")
