"""The intention: which tensor becomes what, which share a scale, which stay float and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fptq.graph.placement import Placement
from fptq.numerics import QuantizerSpec


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A node kept in float, and why."""

    node: str
    op: str
    reason: str


def _frozen(mapping: Mapping[Placement, QuantizerSpec]) -> Mapping[Placement, QuantizerSpec]:
    return MappingProxyType(dict(mapping))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Quantizers by placement.

    Attributes:
        engine: Name of the profile the plan was made for.
        specs: What each placement becomes.
        weights: The placements whose value is a stored weight.
        ties: Groups of placements that share one scale and zero point.
        int32_bias: Nodes whose bias is stored as int32 codes, where the engine's kernel asks for it.
        refusals: Nodes kept in float.
    """

    engine: str
    specs: Mapping[Placement, QuantizerSpec]
    weights: frozenset[Placement] = frozenset()
    ties: tuple[frozenset[Placement], ...] = ()
    int32_bias: frozenset[str] = frozenset()
    refusals: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", _frozen(self.specs))

    @property
    def activations(self) -> tuple[Placement, ...]:
        """Placements that need calibration data, in the plan's order."""
        return tuple(p for p in self.specs if p not in self.weights)

    def tied(self, placement: Placement) -> frozenset[Placement]:
        """The placements that share a scale with this one, itself included."""
        return next((tie for tie in self.ties if placement in tie), frozenset({placement}))

    def only(self, *kept: Placement) -> Plan:
        """This plan with nothing but these placements quantized."""
        return self._restricted(set(kept))

    def without(self, *dropped: Placement) -> Plan:
        """This plan with these placements left in float."""
        return self._restricted(set(self.specs) - set(dropped))

    def with_bits(self, bits: Mapping[Placement, int]) -> Plan:
        """This plan with other widths at some placements."""
        return self.with_specs({p: self.specs[p].with_bits(width) for p, width in bits.items() if p in self.specs})

    def with_specs(self, specs: Mapping[Placement, QuantizerSpec]) -> Plan:
        """This plan with other quantizers at some of its placements."""
        return replace(self, specs={p: specs.get(p, spec) for p, spec in self.specs.items()})

    def refusing(self, refusals: Iterable[Refusal]) -> Plan:
        """This plan with more reasons added."""
        return replace(self, refusals=(*self.refusals, *refusals))

    def _restricted(self, kept: set[Placement]) -> Plan:
        ties = (tie & kept for tie in self.ties)
        return replace(
            self,
            specs={p: s for p, s in self.specs.items() if p in kept},
            weights=self.weights & kept,
            ties=tuple(frozenset(tie) for tie in ties if len(tie) > 1),
        )
