"""What a tensor becomes: bits, sign, symmetry and granularity. Knows no observer and no engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, kw_only=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class PerChannel:
    """One scale for each index of `axis`."""

    axis: int


@dataclass(frozen=True, kw_only=True)
class PerBlock:
    """One scale for each run of `size` consecutive elements along `axis` (ONNX opset 21)."""

    axis: int
    size: int


Granularity = PerTensor | PerChannel | PerBlock


@dataclass(frozen=True, kw_only=True)
class QuantizerSpec:
    """A uniform affine quantizer, without its numbers.

    Attributes:
        bits: Width of a code, 2 to 16.
        signed: Codes in [-2^(bits-1), 2^(bits-1) - 1]; otherwise in [0, 2^bits - 1].
        symmetric: The zero point is fixed: 0 when signed, the middle of the range when unsigned.
        narrow: Leave out the lowest signed code, so that the range is symmetric around 0.
        granularity: How many scales there are, and along which axis.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow: bool = False
    granularity: Granularity = PerTensor()

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits = {self.bits}: a quantizer has 2 to 16 bits")
        if self.narrow and not self.signed:
            raise ValueError("narrow range is defined for signed codes only")

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return int(self.narrow) - (1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The highest code."""
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def container_bits(self) -> int:
        """Width of the ONNX integer type that holds a code: 2, 4, 8 or 16."""
        return next(width for width in (2, 4, 8, 16) if self.bits <= width)

    @property
    def emulated(self) -> bool:
        """Whether the codes live in a wider container than they need."""
        return self.bits != self.container_bits

    def with_bits(self, bits: int) -> Self:
        """The same quantizer at another width."""
        return replace(self, bits=bits)

    def with_granularity(self, granularity: Granularity) -> Self:
        """The same quantizer with another granularity."""
        return replace(self, granularity=granularity)

    def __str__(self) -> str:
        sign = "s" if self.signed else "u"
        shape = "" if self.symmetric else "-asym"
        match self.granularity:
            case PerTensor():
                where = "tensor"
            case PerChannel(axis=axis):
                where = f"channel({axis})"
            case PerBlock(axis=axis, size=size):
                where = f"block({axis},{size})"
        return f"{sign}{self.bits}{shape}/{where}"
