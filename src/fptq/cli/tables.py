"""Tables and sentences for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from fptq.recipes.sensitivity import predicted_db
from fptq.report import verdict, view
from fptq.report.policies import conclusion
from fptq.report.report import Report
from fptq.report.text import number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fptq.doctor import Check
    from fptq.recipes import BenchRow, Inspection, Result, SearchResult, SensitivityTable

_COLOURS = {"ok": "green", "missing": "yellow", "warning": "red", "int8": "green", "float": "yellow"}
_TONES = {"good": "green", "neutral": "default", "bad": "red"}


def result(report: Report, folder: Path) -> Iterator[RenderableType]:
    """The numbers a person reads first, one sentence, and where the rest is."""
    default = report.float_default
    heads = [report.float.precision, *([default.precision] if default else []), report.quantized.precision]
    table = _table("", *heads, "change", numeric=len(heads) + 1)
    for row in view.comparisons(report):
        values = [row.float, *([row.default] if default else []), row.quantized, row.change]
        _add(table, row.label, *values)
    yield table
    yield Text(verdict.verdict(report), style=_TONES[verdict.tone(report)])
    if report.gate is not None and report.gate.conclusion:
        yield report.gate.conclusion
    if report.policies is not None:
        yield Text(conclusion(report.policies))
    integer, told = view.realized_share(report)
    if told:
        yield f"{integer} of {told} quantized tensors ran on integers; {len(report.refusals)} nodes were kept float."
    for warning in report.warnings:
        yield Text(f"warning: {warning}", style="yellow")
    yield f"report: {folder / 'report.html'}"


def folds(found: Mapping[str, Result], folder: Path) -> Iterator[RenderableType]:
    """The numbers of each fold of an nnU-Net, and how to use them."""
    for fold, made in found.items():
        yield f"fold {fold}"
        yield from result(made.report, folder / f"fold_{fold}")
    yield f"label maps: fptq predict {folder} imagesTs/ -o segmentations/"


def inspection(found: Inspection) -> Iterator[RenderableType]:
    """One row for each node, then how many there are of each decision."""
    table = _table("node", "operation", "module", "decision", "reason")
    for row in found.rows:
        _add(table, row.node, row.op, row.module, row.decision, row.reason)
    yield table
    quantized = sum(row.decision == "int8" for row in found.rows)
    yield f"{quantized} of {len(found.rows)} nodes would be int8 on {found.engine}."


def sensitivity(found: SensitivityTable) -> Iterator[RenderableType]:
    """The layers that hurt most come first; output SQNR for squared errors, nats for KL."""
    squared = found.objective == "squared"
    unit = "output SQNR [dB]" if squared else "KL [nats]"
    heads = [f"{name} {unit}" for name in found.formats]
    errors = (f"{found.compared} local [dB]", f"{found.compared} accumulated [dB]")
    table = _table("layer", "module", "weights", *heads, *errors, numeric=len(heads) + 3)
    worst = found.formats[-1]
    for row in sorted(found.rows, key=lambda row: -row.loss[worst]):
        losses = [number(predicted_db(row.loss[name]) if squared else row.loss[name]) for name in found.formats]
        _add(
            table,
            row.layer,
            row.module,
            f"{row.parameters:,}",
            *losses,
            number(row.local_db),
            number(row.accumulated_db),
        )
    yield table
    yield (
        f"Each layer alone in that format, by {found.method} from {found.samples} samples. The layers are those that "
        f"{found.engine} runs in integers; widths other than 8 bits are emulated."
    )


def search(found: SearchResult, path: Path) -> Iterator[RenderableType]:
    """The precision of every layer, the front, and how to use the plan."""
    squared = found.objective == "squared"
    table = _table("layer", "module", "precision", "predicted loss", numeric=1)
    for row in found.rows:
        _add(table, row.layer, row.module, row.precision, number(row.loss))
    yield table
    names = list(found.costs)
    unit = "SQNR [dB]" if squared else "KL [nats]"
    drop = (f"drop of {found.metric}", "surely below") if found.metric else ()
    heads = (*names, f"predicted {unit}", f"verified {unit}", *drop)
    table = _table("", "layers", *heads, numeric=len(heads))
    for point in found.front:
        layers = ", ".join(f"{count} {name}" for name, count in point.layers.items() if count)
        costs = [f"{point.costs[name] / found.float_costs[name]:.3g}x" for name in names]
        losses = [_loss(loss, squared=squared) for loss in (point.predicted, point.verified)]
        drops = [number(value) for value in (point.drop, point.upper)] if found.metric else []
        _add(table, "chosen" if point.chosen else "", layers, *costs, *losses, *drops)
    yield table
    yield from (f"note: {note}" for note in found.notes)
    yield f"plan for {found.engine}: {path}; use it with fptq quantize --plan {path}"


def _loss(loss: float | None, *, squared: bool) -> str:
    return number(predicted_db(loss) if squared and loss is not None else loss)


def bench(rows: Sequence[BenchRow]) -> Iterator[RenderableType]:
    """One row for each file on each engine, with the factor over the first row."""
    heads = ("median [ms]", "p95 [ms]", "against the first", "memory [MB]", "size [MB]", "load [s]")
    table = _table("model", "engine", "precision", *heads, numeric=len(heads))
    for row in rows:
        factor = f"{rows[0].median_ms / row.median_ms:.2f}×" if row.median_ms else ""
        costs = (number(row.peak_memory_mb), number(row.size_mb), number(row.load_s))
        _add(table, str(row.path), row.engine, row.precision, number(row.median_ms), number(row.p95_ms), factor, *costs)
    yield table


def checks(found: Sequence[Check]) -> Iterator[RenderableType]:
    """One row for each finding, then what to do about those that are not as they should be."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    topic = ""
    for check in found:
        _add(table, check.topic if check.topic != topic else "", check.name, check.state.value, check.found)
        topic = check.topic
    yield table
    for check in found:
        if check.remedy:
            yield f"{check.name}: {check.remedy}"


def _table(*heads: str, numeric: int = 0) -> Table:
    """A plain table; the last `numeric` columns are aligned to the right."""
    from rich import box

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(heads):
        right = index >= len(heads) - numeric
        table.add_column(head, justify="right" if right else "left", overflow="fold")
    return table


def _add(table: Table, *cells: Any) -> None:
    # As Text: a name such as conv[0] is no markup.
    table.add_row(*(Text(str(cell), style=_COLOURS.get(str(cell), "")) for cell in cells))
