"""What the page says below the summary: tensor by tensor, operation by operation."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fptq.report.decisions import NodeRecord, RefusalRecord
from fptq.report.report import Report
from fptq.report.tensors import PlacementRecord
from fptq.report.view import is_integer


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One quantized tensor of the table.

    Attributes:
        number: Its position in the order of execution, from 1.
        record: The tensor.
        time_ms: Time of the engine's nodes that read it [ms]; None where the engine does not say.
        fell_back: Whether the engine ran its reader in float although integers were asked for.
    """

    number: int
    record: PlacementRecord
    time_ms: float | None
    fell_back: bool


@dataclass(frozen=True, kw_only=True)
class OperationTime:
    """Time of all engine nodes of one operation [ms].

    Attributes:
        op: The engine's name.
        float_ms: In the float network.
        integer_ms: In the quantized network, on integers.
        rest_ms: In the quantized network, in float.
    """

    op: str
    float_ms: float
    integer_ms: float
    rest_ms: float

    @property
    def quantized_ms(self) -> float:
        """In the quantized network."""
        return self.integer_ms + self.rest_ms


def layer_rows(report: Report) -> tuple[LayerRow, ...]:
    """The table of tensors."""
    readers: dict[str, list[NodeRecord]] = defaultdict(list)
    for node in report.nodes:
        for name in node.nodes:
            readers[name].append(node)
    return tuple(
        LayerRow(number=number, record=record, time_ms=_time_of(record, readers), fell_back=_fell_back(record))
        for number, record in enumerate(report.placements, 1)
    )


def weakest(report: Report, count: int = 3) -> tuple[PlacementRecord, ...]:
    """The tensors whose own quantizer is the noisiest: where more bits, or float, would bring most."""
    measured = [p for p in report.placements if p.sqnr_local_db is not None]
    return tuple(sorted(measured, key=lambda p: p.sqnr_local_db or 0.0)[:count])


def refusal_groups(report: Report) -> tuple[tuple[str, str, tuple[RefusalRecord, ...]], ...]:
    """Refusals by operation and reason, the most frequent first."""
    groups: dict[tuple[str, str], list[RefusalRecord]] = defaultdict(list)
    for refusal in report.refusals:
        groups[refusal.op, refusal.reason].append(refusal)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple((op, reason, tuple(members)) for (op, reason), members in ordered)


def operation_times(report: Report, count: int = 12) -> tuple[OperationTime, ...]:
    """Where the time goes: the slowest operations, float beside quantized."""
    before, integer, rest = (defaultdict[str, float](float) for _ in range(3))
    for node in report.float_nodes:
        before[node.op] += node.time_ms or 0.0
    for node in report.nodes:
        part = integer if is_integer(node.precision) else rest
        part[node.op] += node.time_ms or 0.0
    rows = [
        OperationTime(op=op, float_ms=before[op], integer_ms=integer[op], rest_ms=rest[op])
        for op in dict.fromkeys([*before, *integer, *rest])
    ]
    slow = (row for row in rows if row.float_ms + row.quantized_ms > 0)
    return tuple(sorted(slow, key=lambda row: -max(row.float_ms, row.quantized_ms))[:count])


def _time_of(record: PlacementRecord, readers: dict[str, list[NodeRecord]]) -> float | None:
    nodes = {id(node): node for name in record.consumers for node in readers.get(name, ())}
    times = [node.time_ms for node in nodes.values() if node.time_ms is not None]
    return sum(times) if times else None


def _fell_back(record: PlacementRecord) -> bool:
    return record.realized is not None and not is_integer(record.realized)
