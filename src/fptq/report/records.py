"""The parts of a report: frozen, validated, plain data.

One convention for numbers: `null` means "not measured or not finite". JSON has no NaN and no infinity, so both become
None when a record is made, and a report read back equals the one that was written.
MB are 10^6 bytes; latencies are milliseconds of one run; SQNR is in decibels, pooled over all samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _finite(value: object) -> object:
    if not isinstance(value, Real):
        return value
    return float(value) if math.isfinite(value) else None


def _whole(value: object) -> object:
    return int(value) if isinstance(value, Integral) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A finite float; None: not measured, or not finite."""

Count = Annotated[int, BeforeValidator(_whole)]
"""A whole number, numpy's included."""


class Record(BaseModel):
    """Plain data that refuses unknown fields and cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelInfo(Record):
    """The network as the user gave it.

    Attributes:
        name: What the user calls it.
        source: A path, or the class of a module.
        sha256: Fingerprint of structure and weights.
        parameters: Number of stored floating-point values.
        opset: ONNX operator set of the canonical graph.
        inputs: Name, dtype and shape of each input.
        outputs: Name, dtype and shape of each output.
        notes: What happened on the way in (conversions, folded nodes, dynamic axes), one line each.
    """

    name: str
    source: str
    sha256: str
    parameters: Count
    opset: Count
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Environment(Record):
    """Where and when the numbers were measured.

    Attributes:
        fptq: Version of fptq.
        python: Version of Python.
        cpu: Name of the processor.
        features: Instruction sets that decide which kernels run.
        os: Operating system.
        packages: Versions of the packages that took part.
        threads: CPU threads for one run.
        date: ISO 8601, with the time zone.
    """

    fptq: str
    python: str
    cpu: str
    features: tuple[str, ...]
    os: str
    packages: Mapping[str, str]
    threads: Count
    date: str


class EngineInfo(Record):
    """The inference engine that ran.

    Attributes:
        name: Its name.
        version: Its version.
        requested: What the user asked for; "auto" measures and picks.
        chosen_because: Why it is this one.
    """

    name: str
    version: str
    requested: str
    chosen_because: str = ""


class Calibration(Record):
    """How the ranges were found.

    Attributes:
        samples: Number of calibration samples.
        observer: The estimator that turned statistics into ranges.
        seconds: Wall time of the calibration.
        peak_memory_mb: Peak memory of the calibration [MB].
    """

    samples: Count
    observer: str
    seconds: Number = None
    peak_memory_mb: Number = None


class Score(Record):
    """One metric.

    Attributes:
        value: Over all cases.
        per_case: By the name of the case.
        higher_is_better: Which way is good.
        unit: Empty when it has none.
    """

    value: Number
    per_case: Mapping[str, Number] = {}
    higher_is_better: bool = True
    unit: str = ""


class Latency(Record):
    """Time of one run [ms].

    Attributes:
        median: Half of the runs were faster.
        p95: 95 % of the runs were faster.
        runs: Number of timed runs, interleaved with those of the other variants.
    """

    median: Number
    p95: Number = None
    runs: Count


class Variant(Record):
    """One form of the network on the engine.

    Attributes:
        precision: What it computes in: "fp32", "bf16", "int8 + fp32".
        scores: Metrics against the labels, by name.
        size_mb: Size of the file, external data included [MB].
        latency_ms: Time of one run [ms].
        peak_memory_mb: Peak memory of a fresh process that loads and runs it [MB].
        load_s: Seconds from file to compiled session.
    """

    precision: str
    scores: Mapping[str, Score] = {}
    size_mb: Number = None
    latency_ms: Latency | None = None
    peak_memory_mb: Number = None
    load_s: Number = None


class Agreement(Record):
    """The quantized network against the float network's own output; of several outputs the worst.

    Attributes:
        sqnr_db: Signal to quantization noise [dB]; null where there is no noise.
        cosine: Cosine similarity, in [-1, 1].
        argmax_match: Share of positions with the same winning class, in [0, 1]; null where there are no classes.
        max_abs: Largest absolute difference.
        output: Name of the output that these numbers belong to.
        samples: Number of samples compared.
        scores: The task's metrics with the float network's output in place of labels, by name.
    """

    sqnr_db: Number = None
    cosine: Number = None
    argmax_match: Number = None
    max_abs: Number = None
    output: str = ""
    samples: Count = 0
    scores: Mapping[str, Score] = {}


class Drop(Record):
    """How much worse a score became, with its confidence interval; positive is worse.

    Attributes:
        score: Name of the metric.
        value: The drop, in the metric's unit.
        low: Lower end of the interval; null where one case gives none.
        high: Upper end of the interval.
        confidence: Level of the interval, in (0, 1).
        method: How the interval was made, for instance "paired bootstrap, 10000 resamples".
        p_value: Of Wilcoxon's two-sided signed-rank test over the cases; null for fewer than two.
        cases: Number of cases.
    """

    score: str
    value: Number
    low: Number = None
    high: Number = None
    confidence: float = 0.95
    method: str = ""
    p_value: Number = None
    cases: Count = 1
