"""What the top of the page shows: the cards, the comparison and its bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fptq.report.cases import is_part
from fptq.report.records import Score, Variant
from fptq.report.report import Report
from fptq.report.text import (
    DASH,
    change,
    decibels,
    difference,
    ends,
    median_ms,
    number,
    p95_ms,
    percent,
    percent_change,
    ratio,
    score,
)
from fptq.report.verdict import Tone, cases, headline_drop, tone, unit_of

_SCORES = 12
"""Most scores of the first table; beyond, those of single classes are left to the tables of cases."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One number to remember."""

    label: str
    value: str
    lines: tuple[str, ...] = ()
    tone: Tone = "neutral"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of the table float | engine's default | quantized."""

    label: str
    float: str
    default: str
    quantized: str
    change: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: lengths are shares of the longest in its group, in [0, 1]."""

    label: str
    role: str
    length: float
    text: str
    tick: float | None = None


@dataclass(frozen=True, kw_only=True)
class BarGroup:
    """Bars on one scale."""

    title: str
    bars: tuple[Bar, ...]
    note: str = ""


def cards(report: Report) -> tuple[Card, ...]:
    """The numbers to remember, those that were measured."""
    found = (
        _speed_card(report),
        _size_card(report),
        _agreement_card(report),
        _drop_card(report),
        _coverage_card(report),
    )
    return tuple(card for card in found if card)


def comparisons(report: Report) -> tuple[Comparison, ...]:
    """The table that a person reads first."""
    names = list(dict.fromkeys([*report.float.scores, *report.quantized.scores]))
    if len(names) > _SCORES:
        names = [name for name in names if not is_part(name, names)]
    return tuple(_score_row(report, name) for name in names) + _cost_rows(report)


def bar_groups(report: Report) -> tuple[BarGroup, ...]:
    """Latency, size and memory, side by side on one scale each."""
    rows = _variants(report)
    latency = [(role, v, median_ms(v), p95_ms(v)) for role, v in rows]
    size = [(role, v, v.size_mb, None) for role, v in rows]
    memory = [(role, v, v.peak_memory_mb, None) for role, v in rows]
    note = "bar: median, tick: 95th percentile" if any(p95 is not None for *_, p95 in latency) else ""
    groups = (
        _bars("Latency of one run", "ms", latency, note),
        _bars("File size", "MB", size, ""),
        _bars("Peak memory", "MB", memory, "a fresh process that loads and runs the file"),
    )
    return tuple(group for group in groups if group)


def realized_share(report: Report) -> tuple[int, int]:
    """How many placements ran on integers, of how many that the engine told about."""
    told = [p.realized for p in report.placements if p.realized is not None]
    return sum(is_integer(precision) for precision in told), len(told)


def agreement_basis(report: Report) -> str:
    """What the agreement was measured on, and what its card leaves out."""
    agreement = report.agreement
    if not agreement.samples:
        return ""
    parts = [f"Agreement over {agreement.samples} sample{'' if agreement.samples == 1 else 's'}"]
    if agreement.output:
        parts.append(f"worst output {agreement.output}")
    if agreement.max_abs is not None:
        parts.append(f"largest absolute difference {number(agreement.max_abs)}")
    if agreement.cosine is not None:
        parts.append(f"cosine {number(agreement.cosine, 6)}")
    return ", ".join(parts) + "."


def is_integer(precision: str) -> bool:
    """Whether an engine's name for a precision is one of integers.

    >>> is_integer("int8"), is_integer("u8"), is_integer("bf16")
    (True, True, False)
    """
    return precision.lower().startswith(("int", "uint", "i8", "u8", "s8", "i4", "u4", "s4"))


def _variants(report: Report) -> list[tuple[str, Variant]]:
    default = [("default", report.float_default)] if report.float_default else []
    return [("float", report.float), *default, ("quantized", report.quantized)]


def _bars(
    title: str, unit: str, rows: Sequence[tuple[str, Variant, float | None, float | None]], note: str
) -> BarGroup | None:
    longest = max((x for *_, value, tick in rows for x in (value, tick) if x is not None), default=0.0)
    if longest <= 0:
        return None
    bars = tuple(
        Bar(
            label=variant.precision,
            role=role,
            length=(value or 0.0) / longest,
            text=f"{number(value)} {unit}" if value is not None else DASH,
            tick=None if tick is None else tick / longest,
        )
        for role, variant, value, tick in rows
    )
    return BarGroup(title=title, bars=bars, note=note)


def _speed_card(report: Report) -> Card | None:
    if report.speedup is None:
        return None
    before, after = median_ms(report.float), median_ms(report.quantized)
    lines = [f"{number(before)} → {number(after)} ms, median"] if before and after else []
    if report.speedup_default is not None and report.float_default:
        lines.append(f"{ratio(report.speedup_default)} against {report.float_default.precision}, the engine's default")
    return Card(label="Speedup", value=ratio(report.speedup), lines=tuple(lines), tone=tone(report))


def _size_card(report: Report) -> Card | None:
    if report.compression is None:
        return None
    before, after = report.float.size_mb, report.quantized.size_mb
    lines = (f"{number(before)} → {number(after)} MB",) if before and after else ()
    kind: Tone = "good" if report.compression > 1 else "bad"
    return Card(label="Compression", value=ratio(report.compression), lines=lines, tone=kind)


def _agreement_card(report: Report) -> Card | None:
    agreement = report.agreement
    if agreement.sqnr_db is None and agreement.max_abs is None:
        return None
    exact = agreement.sqnr_db is None and agreement.max_abs == 0
    lines = [f"{name} {score(s.value, s.unit)}" for name, s in list(agreement.scores.items())[:1]]
    if agreement.argmax_match is not None:
        lines.append(f"same class {percent(agreement.argmax_match, 4)}")
    if agreement.cosine is not None and len(lines) < 2:
        lines.append(f"cosine {number(agreement.cosine, 5)}")
    value = "exact" if exact else f"{decibels(agreement.sqnr_db)} dB"
    return Card(label="Agreement with float", value=value, lines=tuple(lines))


def _drop_card(report: Report) -> Card | None:
    drop = headline_drop(report)
    if drop is None:
        return None
    known = drop.low is not None and drop.high is not None
    level = f"{100 * drop.confidence:g} % interval, {cases(drop.cases)}"
    lines = (ends(drop.low, drop.high), level) if known else (f"{cases(drop.cases)}, no interval",)
    return Card(label=f"Drop in {drop.score}", value=difference(drop.value, unit_of(report, drop.score)), lines=lines)


def _coverage_card(report: Report) -> Card | None:
    integer, told = realized_share(report)
    if not told:
        return None
    lines = ["of the tensors asked for"]
    if report.refusals:
        lines.append(f"{len(report.refusals)} nodes kept in float, see why below")
    return Card(label="Ran on integers", value=f"{integer} of {told}", lines=tuple(lines))


def _score_row(report: Report, name: str) -> Comparison:
    found: list[Score | None] = [v.scores.get(name) if v else None for v in _three(report)]
    texts = [score(s.value, s.unit) if s else DASH for s in found]
    return Comparison(
        label=name, float=texts[0], default=texts[1], quantized=texts[2], change=change(found[0], found[2])
    )


def _cost_rows(report: Report) -> tuple[Comparison, ...]:
    three = _three(report)
    measured = {
        "Latency, median [ms]": [median_ms(v) for v in three],
        "Latency, p95 [ms]": [p95_ms(v) for v in three],
        "File size [MB]": [v.size_mb if v else None for v in three],
        "Peak memory [MB]": [v.peak_memory_mb if v else None for v in three],
        "Load time [s]": [v.load_s if v else None for v in three],
    }
    return tuple(_cost_row(label, values) for label, values in measured.items() if any(v is not None for v in values))


def _cost_row(label: str, values: list[float | None]) -> Comparison:
    before, default, after = values
    return Comparison(
        label=label,
        float=number(before),
        default=number(default),
        quantized=number(after),
        change=percent_change(before, after),
    )


def _three(report: Report) -> tuple[Variant, Variant | None, Variant]:
    return report.float, report.float_default, report.quantized
