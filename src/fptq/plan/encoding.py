"""The intention with its numbers, and its files: `encoding.json` + `encoding.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fptq.errors import ConfigError
from fptq.graph.placement import Placement
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, UniformParams
from fptq.numerics.spec import Granularity
from fptq.plan.plan import Plan, Refusal
from fptq.types import Array

FORMAT = "fptq-encoding/1"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """A plan whose every placement has a scale and a zero point.

    Attributes:
        plan: Where and what.
        params: The numbers, one for each placement of the plan.
        model_sha256: Fingerprint of the float model that they belong to.
        codes: Integer codes of weights whose rounding was learned; the others are rounded to nearest.
        rewrites: What was changed in the model before (bias correction, ...), one line each.
    """

    plan: Plan
    params: Mapping[Placement, UniformParams]
    model_sha256: str
    codes: Mapping[Placement, Array] = field(default_factory=lambda: MappingProxyType({}))
    rewrites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        missing = [str(p) for p in self.plan.specs if p not in self.params]
        if missing:
            raise ValueError(f"placements without numbers: {missing}")

    def restricted(self, plan: Plan) -> Encoding:
        """The same numbers for a plan that quantizes fewer placements."""
        return Encoding(
            plan=plan,
            params={p: self.params[p] for p in plan.specs},
            model_sha256=self.model_sha256,
            codes={p: c for p, c in self.codes.items() if p in plan.specs},
            rewrites=self.rewrites,
        )


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    return {
        "engine": plan.engine,
        "placements": [
            {"placement": str(p), "weight": p in plan.weights, **_spec_to_json(s)} for p, s in plan.specs.items()
        ],
        "ties": [sorted(str(p) for p in tie) for tie in plan.ties],
        "int32_bias": sorted(plan.int32_bias),
        "refusals": [vars(refusal) for refusal in plan.refusals],
    }


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """The inverse of `plan_to_json`.

    Raises:
        ConfigError: The data are not a plan.
    """
    try:
        rows = [(Placement.parse(row["placement"]), row) for row in data["placements"]]
        return Plan(
            engine=data["engine"],
            specs={placement: _spec_from_json(row) for placement, row in rows},
            weights=frozenset(placement for placement, row in rows if row["weight"]),
            ties=tuple(frozenset(map(Placement.parse, tie)) for tie in data["ties"]),
            int32_bias=frozenset(data["int32_bias"]),
            refusals=tuple(Refusal(**row) for row in data["refusals"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"not a plan: {error!r}", remedy="Give a plan.json that fptq wrote") from error


def save_encoding(encoding: Encoding, folder: Path) -> None:
    """Write `encoding.json` and `encoding.safetensors` into an existing folder."""
    from safetensors.numpy import save_file

    tensors: dict[str, Array] = {}
    for placement, params in encoding.params.items():
        tensors[f"{placement}/scale"] = params.scale
        tensors[f"{placement}/zero_point"] = params.zero_point
    for placement, codes in encoding.codes.items():
        tensors[f"{placement}/codes"] = codes
    document = {
        "format": FORMAT,
        "model_sha256": encoding.model_sha256,
        "rewrites": list(encoding.rewrites),
        "plan": plan_to_json(encoding.plan),
    }
    (folder / "encoding.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    save_file(tensors, folder / "encoding.safetensors")


def load_encoding(folder: Path) -> Encoding:
    """Read back what `save_encoding` wrote.

    Raises:
        ConfigError: The folder holds no encoding, or one of another format.
    """
    from safetensors.numpy import load_file

    try:
        document = json.loads((folder / "encoding.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "encoding.safetensors")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} holds no readable encoding: {error}") from error
    if document.get("format") != FORMAT:
        raise ConfigError(f"{folder}/encoding.json has format {document.get('format')!r}", rule=f"expected {FORMAT}")
    plan = plan_from_json(document["plan"])
    return Encoding(
        plan=plan,
        params={
            p: UniformParams(scale=tensors[f"{p}/scale"], zero_point=tensors[f"{p}/zero_point"]) for p in plan.specs
        },
        model_sha256=document["model_sha256"],
        codes={p: tensors[f"{p}/codes"] for p in plan.specs if f"{p}/codes" in tensors},
        rewrites=tuple(document["rewrites"]),
    )


def _spec_to_json(spec: QuantizerSpec) -> dict[str, Any]:
    return {
        "bits": spec.bits,
        "signed": spec.signed,
        "symmetric": spec.symmetric,
        "narrow": spec.narrow,
        "granularity": _granularity_to_json(spec.granularity),
    }


def _spec_from_json(row: Mapping[str, Any]) -> QuantizerSpec:
    fields = {name: row[name] for name in ("bits", "signed", "symmetric", "narrow")}
    return QuantizerSpec(**fields, granularity=_granularity_from_json(row["granularity"]))


def _granularity_to_json(granularity: Granularity) -> dict[str, Any]:
    match granularity:
        case PerTensor():
            return {"per": "tensor"}
        case PerChannel(axis=axis):
            return {"per": "channel", "axis": axis}
        case PerBlock(axis=axis, size=size):
            return {"per": "block", "axis": axis, "size": size}


def _granularity_from_json(data: Mapping[str, Any]) -> Granularity:
    match data:
        case {"per": "tensor"}:
            return PerTensor()
        case {"per": "channel", "axis": int(axis)}:
            return PerChannel(axis=axis)
        case {"per": "block", "axis": int(axis), "size": int(size)}:
            return PerBlock(axis=axis, size=size)
    raise ValueError(f"granularity {data!r}")
