"""The numbers as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bars import Bar
from measure import ONNXRUNTIME, OPENVINO, OPENVINO_F32, SIMULATION, TIMED
from results import Measured, Row

CAPTION = """Latencies are medians over runs in turns, with the number of runs that count: those during which no other
process held a core; (0) means that none was calm and the fastest half counts.
"OpenVINO" leaves its float operations in the engine's default (bf16 where the processor has it),
"OpenVINO f32" does not. A peer is timed in the preset that is fastest in that column; SQNR is given for all.
"per sample" and "peak" are of calibration alone for fptq, of the whole run for the peers, which do not separate them;
peak memory counts from after the imports."""


def markdown(found: Sequence[Measured], every: Sequence[Bar]) -> str:
    """All tables: the machine, the bars, and for each network what each tool reached."""
    machines = dict.fromkeys(measured.machine for measured in found)
    parts = [*machines, CAPTION, "## Bars\n\n" + _bars(every)]
    parts += [f"## {measured.network}\n\n{_network(measured)}" for measured in found]
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _bars(every: Sequence[Bar]) -> str:
    rows = (
        (
            bar.what,
            bar.network,
            number(bar.value, 3),
            *_verdict(bar),
            bar.beside,
        )
        for bar in sorted(every, key=lambda bar: bar.what)
    )
    return table(("what", "network", "value", "bar", "", "beside"), rows)


def _verdict(bar: Bar) -> tuple[str, str]:
    if math.isinf(bar.limit):
        return "-", ""
    return f"{'<=' if bar.at_most else '>='} {bar.limit:g}", "met" if bar.met else "**missed**"


def _network(measured: Measured) -> str:
    head = ["tool", *(f"{setting.name} [ms]" for setting in TIMED)]
    head += [f"SQNR {setting.name} [dB]" for setting in (OPENVINO_F32, OPENVINO, ONNXRUNTIME, SIMULATION)]
    head += ["size [MB]", "per sample [s]", "peak [MB]", "total [s]"]
    text = table(head, (_cells(row) for row in measured.rows))
    failed = [f"{row.label}: {row.error}" for row in measured.rows if row.error]
    dice = [
        f"{row.label}: Dice {number(row.dice.get('agreement_dice', math.nan), 4)} against the float mask, "
        f"{number(row.dice.get('dice', math.nan), 4)} against the label"
        for row in measured.rows
        if row.dice
    ]
    return "\n".join([text, "", *(f"- {line}" for line in [*dice, *failed])]).rstrip()


def _cells(row: Row) -> list[str]:
    times = [
        f"{number(row.latency[s.name].median_ms)} ({row.latency[s.name].counted})" if s.name in row.latency else "-"
        for s in TIMED
    ]
    errors = [number(row.sqnr_db.get(s.name, math.nan)) for s in (OPENVINO_F32, OPENVINO, ONNXRUNTIME, SIMULATION)]
    rest = [number(row.size_mb, 2), number(row.per_sample_s, 3), number(row.peak_mb, 0), number(row.seconds)]
    return [row.label, *times, *errors, *rest]
