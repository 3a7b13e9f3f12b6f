"""What the numbers must reach."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from measure import ONNXRUNTIME, OPENVINO, OPENVINO_F32, SIMULATION
from results import Measured, Row

SPEEDUPS = {
    "basicunet": 3.5,
    "dynunet": 3.3,
    "unet": 1.4,
    "deepbet": 1.7,
    "encoder": 2.2,
    "swinunetr": 1.8,
    "transunet": 2.0,
}
NOISE = 0.02
"""Two measurements of one file differ by up to this share: "never slower" means within it."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One number and what it is held against.

    Attributes:
        what: What is measured.
        network: Of which network.
        value: The number; NaN where it could not be measured.
        limit: The bar.
        at_most: Whether smaller is better.
        beside: What it was compared with.
    """

    what: str
    network: str
    value: float
    limit: float
    at_most: bool
    beside: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def bars(measured: Measured) -> Iterator[Bar]:
    """Everything that is asked of one network."""
    yield from _latency(measured)
    yield from _onnxruntime(measured)
    yield from _calibration(measured)
    yield from _accuracy(measured)
    for engine in ("openvino", "onnxruntime"):
        ratio = measured.float_row.size_mb / measured.ours(engine).size_mb
        yield at_least(f"size: float / int8 for {engine}", measured, ratio, 3.5)
    if measured.network == "basicunet":
        limit_ms = measured.macs / measured.peak_macs_per_s * 1e3
        ratio = measured.ours("openvino").median_ms(OPENVINO.name) / limit_ms
        beside = f"{measured.macs / 1e9:.1f} GMAC at {measured.peak_macs_per_s / 1e9:.0f} GMAC/s = {limit_ms:.0f} ms"
        yield at_most("OpenVINO int8 / arithmetic limit", measured, ratio, 1.25, beside)


def counted(every: Sequence[Bar], what: str) -> Bar:
    """The bar "better than the peers on most networks", out of the bars of one kind; which way follows theirs."""
    chosen = [bar for bar in every if bar.what == what]
    even = 1.0 if chosen and chosen[0].at_most else 0.0
    ahead = sum(bar.value < even if bar.at_most else bar.value > even for bar in chosen)
    return Bar(
        what=f"{what}: networks where fptq is ahead",
        network="all",
        value=ahead,
        limit=len(chosen) // 2 + 1,
        at_most=False,
    )


def help_bar() -> Bar:
    """How long `fptq --help` takes."""
    command = [sys.executable, "-c", "import sys; sys.argv = ['fptq', '--help']; from fptq.cli import main; main()"]
    times = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return Bar(what="fptq --help [s]", network="-", value=statistics.median(times), limit=0.3, at_most=True)


def disturbed(rows: Sequence[Row], setting: str) -> str:
    """A remark where a latency rests on runs that other processes disturbed."""
    shaky = any(row.latency[setting].counted == 0 for row in rows if setting in row.latency)
    return " (disturbed: no calm run)" if shaky else ""


def at_most(what: str, measured: Measured, value: float, limit: float, beside: str = "") -> Bar:
    return Bar(what=what, network=measured.network, value=value, limit=limit, at_most=True, beside=beside)


def at_least(what: str, measured: Measured, value: float, limit: float, beside: str = "") -> Bar:
    return Bar(what=what, network=measured.network, value=value, limit=limit, at_most=False, beside=beside)


AGAINST_PEERS = "OpenVINO int8 latency / fastest peer"
SQNR_AGAINST_PEERS = "output SQNR - best peer's [dB]"


def _latency(measured: Measured) -> Iterator[Bar]:
    ours = measured.ours("openvino")
    for setting, name in ((OPENVINO, AGAINST_PEERS), (OPENVINO_F32, f"{AGAINST_PEERS}, float remainder at f32")):
        fastest, label = measured.fastest_peer([setting.name])
        yield at_most(
            name,
            measured,
            ours.median_ms(setting.name) / fastest,
            1.05,
            f"{label}: {fastest:.1f} ms{disturbed(measured.rows, setting.name)}",
        )
    fp32, int8 = measured.float_row.median_ms(OPENVINO_F32.name), ours.median_ms(OPENVINO.name)
    beside = f"{fp32:.1f} / {int8:.1f} ms; bf16 {measured.float_row.median_ms(OPENVINO.name):.1f} ms"
    yield at_least("OpenVINO fp32 / int8", measured, fp32 / int8, SPEEDUPS[measured.network], beside)
    default = measured.float_row.median_ms(OPENVINO.name)
    yield at_least("OpenVINO default float / int8", measured, default / int8, 1 - NOISE)


def _onnxruntime(measured: Measured) -> Iterator[Bar]:
    fp32, int8 = (row.median_ms(ONNXRUNTIME.name) for row in (measured.float_row, measured.ours("onnxruntime")))
    limit = 1.7 if measured.network == "encoder" else 1 - NOISE
    fastest, label = measured.fastest_peer([ONNXRUNTIME.name])
    beside = f"{fp32:.1f} / {int8:.1f} ms; {label}: {fastest:.1f} ms{disturbed(measured.rows, ONNXRUNTIME.name)}"
    yield at_least("ONNX Runtime fp32 / int8", measured, fp32 / int8, limit, beside)


def _calibration(measured: Measured) -> Iterator[Bar]:
    ours, forward = measured.calibration, measured.float_row
    limit = 1.5 if measured.network == "encoder" else 1.3
    beside = f"{ours.per_sample_s:.3f} / {forward.per_sample_s:.3f} s"
    ratio = ours.per_sample_s / forward.per_sample_s
    yield at_most("calibration per sample / plain forward", measured, ratio, limit, beside)
    # Whoever runs the float network in the faster engine has the cheaper samples: that is no merit of a calibration.
    openvino_is_faster = forward.median_ms(OPENVINO_F32.name) < forward.median_ms(ONNXRUNTIME.name)
    rivals_in = {
        "onnxruntime": ("fastest peer in ONNX Runtime", 1.0),
        "openvino": ("NNCF in OpenVINO", math.inf if openvino_is_faster else 1.0),
    }
    for engine, (name, bar) in rivals_in.items():
        rivals = [row for row in measured.peers if row.calibrates_in == engine and row.per_sample_s > 0]
        best = min(rivals, key=lambda row: row.per_sample_s, default=Row(tool="none", preset=""))
        beside = f"{best.label}: {best.per_sample_s:.3f} s"
        yield at_most(f"calibration per sample / {name}", measured, ours.per_sample_s / best.per_sample_s, bar, beside)
    memory, beside = ours.peak_mb / forward.peak_mb, f"{ours.peak_mb:.0f} / {forward.peak_mb:.0f} MB"
    yield at_most("calibration peak memory / plain forward", measured, memory, 1.5, beside)
    growth = ours.peak_mb / measured.few_samples.peak_mb
    samples = f"{ours.peak_mb:.0f} / {measured.few_samples.peak_mb:.0f} MB"
    yield at_most("calibration peak memory, all samples / three", measured, growth, 1.05, samples)


def _accuracy(measured: Measured) -> Iterator[Bar]:
    ours, setting = measured.ours("openvino"), OPENVINO_F32.name
    best = max(measured.peers, key=lambda row: row.sqnr_db.get(setting, float("-inf")))
    sqnr, theirs = (row.sqnr_db.get(setting, float("nan")) for row in (ours, best))
    beside = f"{sqnr:.1f} dB; {best.label}: {theirs:.1f} dB"
    yield at_least(SQNR_AGAINST_PEERS, measured, sqnr - theirs, -0.5, beside)
    for engine in ("openvino", "onnxruntime"):
        found = measured.ours(engine).sqnr_db
        values = [found.get(s.name, float("nan")) for s in (OPENVINO_F32, ONNXRUNTIME, SIMULATION)]
        beside = " / ".join(f"{value:.2f}" for value in values) + " dB in OpenVINO, ONNX Runtime, simulation"
        name = f"SQNR gap between engines, file for {engine} [dB]"
        yield at_most(name, measured, max(values) - min(values), 0.5, beside)
    if "agreement_dice" in ours.dice:
        label = f"Dice against the label {ours.dice['dice']:.4f}, float {measured.float_row.dice['dice']:.4f}"
        yield at_least("Dice against the float mask", measured, ours.dice["agreement_dice"], 0.998, label)
