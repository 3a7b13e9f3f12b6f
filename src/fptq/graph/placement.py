"""A place in the graph where a tensor can be looked at, or quantized."""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering


@total_ordering
@dataclass(frozen=True)
class Placement:
    """A place for a quantizer: a value, or one reader's view of it.

    Placements are in the order of their values' names; the value itself comes before its readers' views.

    Attributes:
        value: Name of the tensor.
        consumer: Node that alone sees the quantized tensor; None: every reader does.
        index: Which input of the consumer (`a * a` needs both).
    """

    value: str
    consumer: str | None = None
    index: int | None = None

    def __lt__(self, other: object) -> bool:
        return self._order < other._order if isinstance(other, Placement) else NotImplemented

    @property
    def _order(self) -> tuple[str, bool, str, bool, int]:
        """What sorts: None compares with nothing."""
        return (self.value, self.consumer is not None, self.consumer or "", self.index is not None, self.index or 0)

    def __str__(self) -> str:
        return self.value if self.consumer is None else f"{self.value} -> {self.consumer}[{self.index}]"

    @classmethod
    def parse(cls, text: str) -> Placement:
        """The inverse of `str`.

        >>> Placement.parse(str(Placement("w", "conv_1", 1)))
        Placement(value='w', consumer='conv_1', index=1)
        """
        value, arrow, reader = text.partition(" -> ")
        if not arrow:
            return cls(value)
        consumer, _, index = reader.rpartition("[")
        return cls(value, consumer, int(index.rstrip("]")))
