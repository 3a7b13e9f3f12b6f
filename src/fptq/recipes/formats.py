"""What a layer may become, as users write it: "w4a8", "w4a8/tensor", "w4a8/block32"."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from fptq.engines.cpu import safe_weight_bits
from fptq.errors import ConfigError
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec
from fptq.numerics.spec import Granularity
from fptq.plan import Plan

_AROUND_ZERO = 8
"""Narrower weights are stored around zero in 8 bits: a zero point of their own costs no kernel."""
_NAMED = 4
"""Layers that a sentence names."""
_FORMAT = re.compile(r"w(\d+)a(\d+)(?:/(tensor|channel|block(\d+)))?")


@dataclass(frozen=True, kw_only=True)
class Format:
    """Widths of a layer, and what shares a scale in its weights.

    Attributes:
        weights: Bits of weights, 2 to 16.
        activations: Bits of activations, 2 to 16.
        sharing: "", "tensor", "channel" or "block"; empty: as the recipe says.
        block: Weights in a row of input channels that share a scale, where `sharing` is "block".
    """

    weights: int
    activations: int
    sharing: str = ""
    block: int = 0

    @classmethod
    def parse(cls, name: str) -> Self:
        """A format from its name.

        >>> Format.parse("w4a8")
        Format(weights=4, activations=8, sharing='', block=0)
        >>> Format.parse("w4a8/block32").block
        32

        Raises:
            ConfigError: It is none.
        """
        match = _FORMAT.fullmatch(name)
        if match is None or not all(2 <= int(bits) <= 16 for bits in match.group(1, 2)) or match[4] in ("0", "1"):
            raise ConfigError(
                f"{name!r} is not a format",
                rule="w4a8 means 4-bit weights and 8-bit activations, 2 to 16 bits",
                remedy="Behind it may stand /tensor, /channel or /block32: weights that share a scale",
            )
        sharing = "block" if match[4] else match[3] or ""
        return cls(weights=int(match[1]), activations=int(match[2]), sharing=sharing, block=int(match[4] or 0))

    @property
    def width(self) -> int:
        """Bits of both, to sort by."""
        return self.weights + self.activations

    @property
    def emulated(self) -> bool:
        """Whether engines have no integer kernels for it: its codes live in a wider container, or it runs in float."""
        return (self.weights, self.activations) != (8, 8) or self.sharing == "block"

    @property
    def realized(self) -> str:
        """How an emulated format runs."""
        stored = f"codes live in {8 if max(self.weights, self.activations) <= 8 else 16} bits in model.onnx"
        return f"{stored}; layers with a scale per block run in float" if self.sharing == "block" else stored

    def plan(self, plan: Plan, model: Model) -> Plan:
        """A plan with these widths, on a processor whose products may saturate.

        Args:
            plan: Of eight bits.
            model: The network that it places quantizers in.
        """
        bits = safe_weight_bits(self.weights)
        widened = plan.with_bits({p: bits if p in plan.weights else self.activations for p in plan.specs})
        return widened.with_specs({p: self._weight(widened.specs[p], _shape(model, p)) for p in widened.weights})

    def exceptions(self, plan: Plan) -> str:
        """Where a plan in this format has no blocks although it says so; empty where it holds."""
        if self.sharing != "block":
            return ""
        weights = (p for p in plan.specs if p in plan.weights)
        whole = [str(p.consumer or p.value) for p in weights if not isinstance(plan.specs[p].granularity, PerBlock)]
        reason = f"have no scale per block: their input channels (of one group) are no multiple of {self.block}"
        more = f" and {len(whole) - _NAMED} more" if len(whole) > _NAMED else ""
        return f"{', '.join(whole[:_NAMED])}{more} {reason}" if whole else ""

    def _weight(self, spec: QuantizerSpec, shape: tuple[int, ...]) -> QuantizerSpec:
        if self.weights < _AROUND_ZERO:
            spec = replace(spec, signed=False, symmetric=False, narrow=False)
        match self.sharing, spec.granularity:
            case "tensor", _:
                return spec.with_granularity(PerTensor())
            case "block", PerChannel(axis=axis):
                return spec.with_granularity(_blocked(axis, shape, self.block) or spec.granularity)
        return spec


def _blocked(axis: int, shape: tuple[int, ...], size: int) -> Granularity | None:
    """Blocks of the input channels of a weight; None where they do not come out even.

    OpenVINO 2026.4.1 refuses a last block that is shorter. A depthwise convolution has one input channel: a scale for
    each weight would take more bytes than the float weight.

    Args:
        axis: Of the output channels.
        shape: The weight's.
        size: Of a block.
    """
    beside = 1 - axis if axis < 2 else axis - 1  # in every layout of a weight
    return None if shape[beside] % size else PerBlock(axis=beside, size=size)


def _shape(model: Model, weight: Placement) -> tuple[int, ...]:
    shape = query.static_shape(model.graph.initializers[weight.value])
    assert shape is not None  # it is stored
    return shape
