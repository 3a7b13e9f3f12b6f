"""The parts of a report that describe a quantized tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Self

from pydantic import model_validator

from fptq.report.records import Count, Number, Record


class Scale(Record):
    """A summary of a quantizer's scales.

    Attributes:
        count: Number of scales: 1 per tensor, C per channel.
        low: The smallest.
        high: The largest.
        zero_point: The code of 0.0; null where the scales have different ones.
    """

    count: Count = 1
    low: Number
    high: Number
    zero_point: int | None = None


class Histogram(Record):
    """How often values of a tensor fell between neighbouring edges.

    Attributes:
        edges: Ascending, one more than there are counts.
        counts: Values in each bin.
    """

    edges: tuple[float, ...]
    counts: tuple[float, ...]

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.counts)} counts need {len(self.counts) + 1} edges, not {len(self.edges)}")
        if not all(math.isfinite(edge) for edge in self.edges) or any(b <= a for a, b in pairwise(self.edges)):
            raise ValueError("edges must be finite and ascend")
        if not all(math.isfinite(count) and count >= 0 for count in self.counts):
            raise ValueError("counts must be finite and not negative")
        return self

    @classmethod
    def of(cls, edges: Sequence[float], counts: Sequence[float], *, bins: int = 128) -> Self:
        """A histogram with at most `bins` bins, made by joining neighbours: the total stays exact.

        >>> Histogram.of([0, 1, 2, 3], [5, 1, 2], bins=2)
        Histogram(edges=(0.0, 2.0, 3.0), counts=(6.0, 2.0))
        """
        step = max(1, math.ceil(len(counts) / bins))
        kept = [*range(0, len(counts), step), len(counts)]
        joined = (sum(float(c) for c in counts[a:b]) for a, b in pairwise(kept))
        return cls(edges=tuple(float(edges[i]) for i in kept), counts=tuple(joined))

    def share_outside(self, low: float, high: float) -> float:
        """The share of values outside [low, high], in [0, 1]; inside a bin they count as spread evenly.

        >>> Histogram(edges=(0, 1, 2), counts=(1, 3)).share_outside(0.5, 2)
        0.125
        """
        total = sum(self.counts)
        if not total:
            return 0.0
        inside = 0.0
        for (left, right), count in zip(pairwise(self.edges), self.counts, strict=True):
            inside += count * max(0.0, min(right, high) - max(left, low)) / (right - left)
        return min(1.0, max(0.0, 1.0 - inside / total))


class PlacementRecord(Record):
    """One quantized tensor, or one reader's view of it.

    Attributes:
        placement: The plan's name for the place.
        tensor: Name of the tensor.
        consumers: The nodes that read it.
        op: The operation that reads it (a weight), or that makes it (an activation).
        module: Where that is in the user's model: a PyTorch module path or an ONNX name; empty where unknown.
        kind: A stored weight, or a tensor that depends on the input.
        requested: The quantizer asked for, for instance "s8/channel(0)".
        realized: What the engine ran the reader in; null where it does not say.
        kernel: The engine's kernel.
        scale: Its scales.
        range: Lowest and highest value seen.
        clipping: Lowest and highest value that a code stands for; what lies outside is clipped.
        sqnr_local_db: SQNR of this quantizer alone, on float input [dB].
        sqnr_accumulated_db: SQNR at this tensor in the quantized network [dB].
        histogram: How the values are spread.
    """

    placement: str
    tensor: str
    consumers: tuple[str, ...] = ()
    op: str = ""
    module: str = ""
    kind: Literal["weight", "activation"]
    requested: str
    realized: str | None = None
    kernel: str | None = None
    scale: Scale | None = None
    range: tuple[Number, Number] | None = None
    clipping: tuple[Number, Number] | None = None
    sqnr_local_db: Number = None
    sqnr_accumulated_db: Number = None
    histogram: Histogram | None = None
