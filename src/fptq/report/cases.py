"""What the page says case by case: each score's drop with its doubt, and the cases that lost most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fptq.report.records import Score
from fptq.report.report import Report
from fptq.report.text import DASH, difference, ends, number
from fptq.report.verdict import unit_of


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One case of one score.

    Attributes:
        case: Its name.
        before: The float network's score.
        after: The quantized network's.
        drop: Positive where quantizing made it worse.
        agreement: How the quantized network agrees with the float network's own output.
    """

    case: str
    before: float | None
    after: float | None
    drop: float | None
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class CaseTable:
    """One score case by case, the worst drop first.

    Attributes:
        score: Its name.
        unit: Its unit.
        rows: The cases.
        agreement: Name of the agreement beside it; empty where there is none.
        part: Whether it is of one class of another score.
    """

    score: str
    unit: str
    rows: tuple[CaseRow, ...]
    agreement: str = ""
    part: bool = False


@dataclass(frozen=True, kw_only=True)
class DropRow:
    """How much worse a score became, as text."""

    score: str
    drop: str
    interval: str
    p_value: str
    cases: int
    part: bool = False


def case_tables(report: Report) -> tuple[CaseTable, ...]:
    """Scores case by case; those of single classes last."""
    scores = report.quantized.scores
    tables = []
    for name, after in scores.items():
        if not after.per_case:
            continue
        before = report.float.scores.get(name, Score(value=None))
        agreement = f"agreement_{name}"
        agrees = report.agreement.scores.get(agreement, Score(value=None)).per_case
        rows = [_case_row(case, before, after, agrees.get(case)) for case in after.per_case]
        tables.append(
            CaseTable(
                score=name,
                unit=after.unit,
                rows=tuple(sorted(rows, key=lambda row: -(row.drop if row.drop is not None else float("-inf")))),
                agreement=agreement if agrees else "",
                part=is_part(name, scores),
            )
        )
    return tuple(sorted(tables, key=lambda table: table.part))


def drop_rows(report: Report) -> tuple[DropRow, ...]:
    """The drop of every score with its interval and its test; those of single classes last."""
    names = [drop.score for drop in report.drops]
    rows = [
        DropRow(
            score=drop.score,
            drop=difference(drop.value, unit_of(report, drop.score)),
            interval=ends(drop.low, drop.high) if drop.low is not None else DASH,
            p_value=number(drop.p_value, 2),
            cases=drop.cases,
            part=is_part(drop.score, names),
        )
        for drop in report.drops
    ]
    return tuple(sorted(rows, key=lambda row: row.part))


def is_part(name: str, names: Iterable[str]) -> bool:
    """Whether a score is that of one class of another one.

    >>> is_part("dice_liver", ["dice", "surface_dice"]), is_part("surface_dice", ["dice", "surface_dice"])
    (True, False)
    """
    return any(name.startswith(f"{other}_") for other in names)


def _case_row(case: str, before: Score, after: Score, agreement: float | None) -> CaseRow:
    old, new = before.per_case.get(case), after.per_case[case]
    drop = None
    if old is not None and new is not None:
        drop = old - new if after.higher_is_better else new - old
    return CaseRow(case=case, before=old, after=new, drop=drop, agreement=agreement)
