"""What the user asks of a placement, beside what an engine can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from fptq.numerics import QuantizerSpec


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the user asks for, beside what the engine can do.

    Attributes:
        precision: Glob over node names and module paths -> "int8" or "float"; the last match decides.
        per_channel: One scale per output channel of a weight; otherwise one per weight.
        weight_bits: Width of weight codes.
        activation_bits: Width of activation codes.
        symmetric: Force symmetric signed (True) or asymmetric unsigned (False) activations; None: the variant's.
    """

    precision: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    per_channel: bool = True
    weight_bits: int = 8
    activation_bits: int = 8
    symmetric: bool | None = None

    def wants(self, names: Iterable[str]) -> str | None:
        """The precision asked for a node of these names, with the glob that says so; None when nothing does."""
        names = tuple(names)
        verdict: str | None = None
        for pattern, precision in self.precision.items():
            if any(fnmatchcase(name, pattern) for name in names):
                verdict = f"{precision} by {pattern!r}"
        return verdict

    def activation(self, spec: QuantizerSpec) -> QuantizerSpec:
        """The quantizer of an activation under this policy."""
        spec = spec.with_bits(self.activation_bits)
        if self.symmetric is None:
            return spec
        return replace(spec, signed=self.symmetric, symmetric=self.symmetric)
