"""The result in one sentence."""

from __future__ import annotations

from typing import Literal

from fptq.report.records import Drop
from fptq.report.report import Report
from fptq.report.text import decibels, difference, ends, enumeration, ratio, score
from fptq.report.tradeoff import mix

NOISE = 0.02
"""Two latencies within this share of each other count as equal."""

Tone = Literal["good", "neutral", "bad"]

_ENGINES = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "simulated": "the simulation",
}


def verdict(report: Report) -> str:
    """What quantizing brought, what the layers became and what it cost; what was not measured is left out."""
    claims = [claim for claim in (_speed_claim(report), _size_claim(report), _agreement_claim(report)) if claim]
    sentences = [f"On {engine_title(report)} the quantized network {enumeration(claims)}."] if claims else []
    sentences += [f"{said}." for said in (mix(report), _quality_claim(report)) if said]
    return " ".join(sentences) or "Nothing was measured."


def tone(report: Report) -> Tone:
    """Whether quantizing paid: faster than every float variant, slower than one, or neither."""
    ratios = [r for r in (report.speedup, report.speedup_default) if r is not None]
    if not ratios or abs(min(ratios) - 1) <= NOISE:
        return "neutral"
    return "good" if min(ratios) > 1 else "bad"


def engine_title(report: Report) -> str:
    """The engine's name as its makers write it, with its version."""
    engine = report.engine
    return f"{_ENGINES.get(engine.name, engine.name)} {engine.version}".strip()


def headline_drop(report: Report) -> Drop | None:
    """The drop to quote: the first given, or that of the first score that both networks have."""
    if report.drops:
        return report.drops[0]
    for name, before in report.float.scores.items():
        after = report.quantized.scores.get(name)
        if after and before.value is not None and after.value is not None:
            loss = before.value - after.value if before.higher_is_better else after.value - before.value
            return Drop(score=name, value=loss, cases=max(1, len(after.per_case)))
    return None


def cases(count: int) -> str:
    """A number of cases in words."""
    return "one case" if count == 1 else f"{count} cases"


def unit_of(report: Report, name: str) -> str:
    """The unit of a score."""
    return next((v.scores[name].unit for v in (report.quantized, report.float) if name in v.scores), "")


def _speed_claim(report: Report) -> str:
    if report.speedup is None:
        return ""
    claim = _against(report.speedup, report.float.precision)
    if report.speedup_default is None or report.float_default is None:
        return claim
    default = _against(report.speedup_default, report.float_default.precision)
    return f"{claim} ({default.removeprefix('is ')}, the engine's default)"


def _against(speedup: float, precision: str) -> str:
    if abs(speedup - 1) <= NOISE:
        return f"is as fast as {precision}"
    return (
        f"is {ratio(speedup)} faster than {precision}"
        if speedup > 1
        else (f"is {ratio(1 / speedup)} slower than {precision}")
    )


def _size_claim(report: Report) -> str:
    if report.compression is None or abs(report.compression - 1) <= NOISE:
        return ""
    smaller = report.compression > 1
    return f"is {ratio(report.compression)} smaller" if smaller else f"is {ratio(1 / report.compression)} larger"


def _agreement_claim(report: Report) -> str:
    if report.agreement.max_abs == 0:
        return "returns exactly what the float network returns"
    if report.agreement.sqnr_db is None:
        return ""
    return f"agrees with the float network at {decibels(report.agreement.sqnr_db)} dB SQNR"


def _quality_claim(report: Report) -> str:
    drop = headline_drop(report)
    if drop is None or drop.value is None:
        return _own_output_claim(report)
    unit = unit_of(report, drop.score)
    way = "worse" if drop.value > 0 else "better"
    claim = (
        f"{drop.score} is {way} by {difference(abs(drop.value), unit)}" if drop.value else f"{drop.score} is unchanged"
    )
    if drop.low is None or drop.high is None:
        return f"{claim} ({cases(drop.cases)}: no interval)"
    low, high = (drop.low, drop.high) if drop.value >= 0 else (-drop.high, -drop.low)
    level = f"{100 * drop.confidence:g} % interval {ends(low, high)}"
    doubt = ", which cannot be told from no change" if drop.value and drop.low <= 0 <= drop.high else ""
    return f"{claim} ({level}, {cases(drop.cases)}){doubt}"


def _own_output_claim(report: Report) -> str:
    for name, own in report.agreement.scores.items():
        return f"{name} against the float network's own output is {score(own.value, own.unit)}"
    return ""
