"""The rows of the table of `proteins.py`, the file of every configuration, and the tables in markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fptq.plan.float_inputs import FLOAT_INPUTS
from fptq.tasks import Score, paired_drop
from layout import HERE

RESULTS = HERE / "results" / "proteins"
LATENCIES = RESULTS / "latency.json"
"""By the stem of a configuration's file: its own milliseconds and those of the float network, timed in turns."""
LINEAR = "linear"
ALL = frozenset({LINEAR, *FLOAT_INPUTS})
IN_INTEGERS = frozenset({"per token"})
"""Policies that are for products in integers: of rows with weights and Linear inputs."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is quantized.

    Attributes:
        says: In the table.
        inputs: Of `linear` or the kinds of `FLOAT_INPUTS`.
        weights: Whether weights are, int8 per output channel.
    """

    says: str
    inputs: frozenset[str]
    weights: bool = False


ROWS: Mapping[str, Row] = {
    "weights": Row(says="weights only", inputs=frozenset(), weights=True),
    "activations": Row(says="all activations", inputs=ALL),
    "everything": Row(says="everything", inputs=ALL, weights=True),
    "no-layernorm": Row(says="everything but LayerNorm inputs", inputs=ALL - {"layernorm"}, weights=True),
    "layernorm": Row(says="LayerNorm inputs only", inputs=frozenset({"layernorm"})),
    "softmax": Row(says="Softmax inputs only", inputs=frozenset({"softmax"})),
    "linear": Row(says="Linear inputs only", inputs=frozenset({LINEAR})),
    "int8": Row(says="Linear inputs and weights (fptq's own placement)", inputs=frozenset({LINEAR}), weights=True),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration.

    Attributes:
        engine: What runs it.
        row: A key of `ROWS`.
        bits: Of activations.
        policy: A key of `POLICIES`.
        sequences: Of the evaluation.
    """

    engine: str
    row: str
    bits: int
    policy: str
    sequences: int

    @property
    def path(self) -> Path:
        return RESULTS / f"{self.engine}-{self.sequences}-{self.row}-a{self.bits}-{self.policy}.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured.

    Attributes:
        accuracy: Share of masked residues that are named right.
        drop: What the float network has more, with the ends of its paired 95 % interval.
        perplexity: exp of the mean masked cross-entropy.
        embedding_error: Squared error of the vectors over their squares, mean over sequences.
        size_mb: Of the Q/DQ file [MB].
        accuracies: Of each sequence.
    """

    accuracy: float
    drop: tuple[float, float, float]
    perplexity: float
    embedding_error: float
    size_mb: float
    accuracies: tuple[float, ...]

    @property
    def sqnr_db(self) -> float:
        """Of the vectors."""
        return float(-10 * np.log10(self.embedding_error)) if self.embedding_error else float("inf")

    @property
    def score(self) -> Score:
        """The accuracy with its cases."""
        return Score(name="accuracy", value=self.accuracy, cases=self.accuracies)

    @classmethod
    def read(cls, path: Path) -> Outcome:
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**found, "drop": tuple(found["drop"]), "accuracies": tuple(found["accuracies"])})


def cases(engine: str, rows: list[str], bits: list[int], policies: list[str], sequences: int) -> Iterator[Case]:
    """The configurations, float first; weights alone have neither bits nor policy of activations."""
    one = Case(engine=engine, row="float", bits=32, policy="float", sequences=sequences)
    yield one
    for row in rows:
        if not ROWS[row].inputs:
            yield replace(one, row=row, bits=8, policy="uniform")
            continue
        integers = ROWS[row].weights and LINEAR in ROWS[row].inputs
        fitting = [policy for policy in policies if integers or policy not in IN_INTEGERS]
        yield from (replace(one, row=row, bits=width, policy=policy) for width in bits for policy in fitting)


def signed(difference: float) -> str:
    """Four decimals with a sign, unless all are zeros."""
    return f"{difference:+.4f}" if round(difference, 4) else "0.0000"


def cell(found: Outcome) -> str:
    drop, low, high = found.drop
    interval = f"{signed(-drop)}, {signed(-high)} to {signed(-low)}"
    return f"{found.accuracy:.4f} ({interval}), perplexity {found.perplexity:.4f}"


def table(chosen: list[Case]) -> str:
    """The configurations that were measured, in markdown."""
    lines = [
        "| quantized | A bits | policy | masked accuracy | against float (95 % interval) | perplexity "
        "| embedding SQNR [dB] | size [MB] | ONNX Runtime | OpenVINO |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    speeds = json.loads(LATENCIES.read_text(encoding="utf-8")) if LATENCIES.exists() else {}
    for case in chosen:
        if case.path.exists():
            found = Outcome.read(case.path)
            says = ROWS[case.row].says if case.row in ROWS else "nothing (float)"
            drop, low, high = found.drop
            compared = f"{signed(-drop)} ({signed(-high)} to {signed(-low)})" if case.row in ROWS else ""
            width = case.bits if case.row in ROWS and ROWS[case.row].inputs else ""
            lines.append(
                f"| {says} | {width} | {case.policy if width else ''} | {found.accuracy:.4f} | {compared} "
                f"| {found.perplexity:.4f} | {found.sqnr_db:.2f} | {found.size_mb:.1f} "
                f"| {_speed(speeds, case, 'onnxruntime')} | {_speed(speeds, case, 'openvino')} |"
            )
    return "\n".join(lines) + "\n"


def _speed(speeds: Mapping[str, Mapping[str, float]], case: Case, engine: str) -> str:
    """How many times as fast as float."""
    found = speeds.get(replace(case, engine=engine).path.stem)
    return f"{found['float'] / found['this']:.2f}x" if found else ""


def comparison(chosen: list[Case]) -> str:
    """What the other policies bring against the two uniform ones, in markdown."""
    lines = [
        "| quantized | A bits | policy | against | embedding error recovered | masked accuracy (95 % interval) |",
        "|---|---|---|---|---|---|",
    ]
    for case in chosen:
        for base in ("range", "uniform"):
            other = replace(case, policy=base)
            if case.policy in ("float", base, "range") or not (case.path.exists() and other.path.exists()):
                continue
            if case.row in ROWS and ROWS[case.row].inputs:
                found, start = Outcome.read(case.path), Outcome.read(other.path)
                drop = paired_drop(found.score, start.score)
                lines.append(
                    f"| {ROWS[case.row].says} | {case.bits} | {case.policy} | {base} "
                    f"| {1 - found.embedding_error / start.embedding_error:.1%} "
                    f"| {signed(drop.value)} ({signed(drop.low)} to {signed(drop.high)}) |"
                )
    return "\n".join(lines) + "\n"
