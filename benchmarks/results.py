"""What was measured of one network, and its file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from artifacts import FPTQ
from measure import Latency


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tool with one setting of it.

    Attributes:
        tool: The tool; "float" for the network itself.
        preset: Its setting.
        version: Of the tool.
        size_mb: Of its file [MB].
        latency: By engine setting; a peer has one in its fastest preset only.
        sqnr_db: Output SQNR by engine setting, against the float network there [dB].
        dice: Against the float network's own mask and against the label, where the network segments.
        seconds: The tool's whole work [s].
        per_sample_s: Its calibration, per sample [s].
        peak_mb: Its peak memory [MB].
        calibrates_in: Engine of its float runs.
        error: Why it made nothing.
    """

    tool: str
    preset: str
    version: str = ""
    size_mb: float = float("nan")
    latency: Mapping[str, Latency] = field(default_factory=dict)
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    dice: Mapping[str, float] = field(default_factory=dict)
    seconds: float = float("nan")
    per_sample_s: float = float("nan")
    peak_mb: float = float("nan")
    calibrates_in: str = ""
    error: str = ""

    @property
    def is_peer(self) -> bool:
        return self.tool not in {FPTQ, "float"}

    @property
    def label(self) -> str:
        return f"{self.tool}, {self.preset}" if self.preset else self.tool

    def median_ms(self, setting: str) -> float:
        return self.latency[setting].median_ms if setting in self.latency else float("nan")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One network.

    Attributes:
        network: Its name.
        rows: The float network first.
        calibration: fptq's calibration alone.
        few_samples: The same with three samples, to see whether memory grows with their number.
        macs: Multiply-accumulates of its convolutions.
        peak_macs_per_s: The processor's peak int8 rate.
        machine: Where it was measured, with what.
    """

    network: str
    rows: tuple[Row, ...]
    calibration: Row
    few_samples: Row
    macs: int
    peak_macs_per_s: float
    machine: str

    @property
    def float_row(self) -> Row:
        return self.rows[0]

    @property
    def peers(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.is_peer)

    def ours(self, engine: str) -> Row:
        """Fptq's file for an engine; an empty row where it made none."""
        found = (row for row in self.rows if row.tool == FPTQ and row.preset == engine)
        return next(found, Row(tool=FPTQ, preset=engine, error="not measured"))

    def fastest_peer(self, settings: Iterable[str]) -> tuple[float, str]:
        """Median latency [ms] and label of the fastest peer in any of these settings."""
        times = [
            (row.median_ms(s), f"{row.tool}, {row.preset}") for row in self.peers for s in settings if s in row.latency
        ]
        return min(times, default=(float("nan"), ""))

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def read_measured(path: Path) -> Measured:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(_row(row) for row in data.pop("rows"))
    calibration, few_samples = _row(data.pop("calibration")), _row(data.pop("few_samples"))
    return Measured(rows=rows, calibration=calibration, few_samples=few_samples, **data)


def _row(data: dict[str, Any]) -> Row:
    latency = {name: Latency(**values) for name, values in data.pop("latency").items()}
    return Row(latency=latency, **data)
