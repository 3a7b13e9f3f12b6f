"""fptq itself, run like a peer; and the plain float run that calibration is compared with.

Presets: the engine that the file is made for; `calibration` stops measuring placements, to look at calibration
alone; `forward` is one ONNX Runtime fp32 run per sample and writes no model.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field

import onnxruntime
import onnxscript.rewriter
import onnxscript.version_converter  # noqa: F401  imported late by fptq; imports are not calibration

import fptq
from peers import common

ENGINES = ("openvino", "onnxruntime")
THREADS = 2


@dataclass(frozen=True)
class CalibrationWatch:
    """A progress callback that notes when each calibration sample is done, and the peak memory since the first."""

    job: common.Job
    peaks_mb: list[float] = field(default_factory=list)

    def __call__(self, done: int, total: int, what: str) -> None:
        if what != "calibrate":
            return
        if done == 0:
            common.forget_peak()  # loading and its parity checks are behind us
        self.job.loads.append((done, time.perf_counter(), common.waited_s()))
        self.peaks_mb.append(common.memory_mb("VmHWM"))


def quantize_with_fptq(job: common.Job, watch: CalibrationWatch) -> None:
    """What a user does: quantize with the default recipe for one engine, save the folder."""
    engine, gate = (job.preset, "measured") if job.preset in ENGINES else (ENGINES[0], "off")
    with tempfile.TemporaryDirectory() as cache:  # a filled one would spare the calibration that is measured
        result = fptq.quantize(
            str(job.model),
            calibration=str(job.model.parent / "calibration"),
            engine=engine,
            threads=THREADS,
            samples=len(job.samples),
            gate=gate,
            cache=cache,
            progress=watch,
        )
        result.save(job.output.parent)


def forward(job: common.Job) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(job.model), options, providers=["CPUExecutionProvider"])
    for sample in job.read():
        session.run(None, sample)


def main() -> None:
    job = common.parse_job(__doc__, (*ENGINES, "calibration", "forward"))
    if job.preset == "forward":
        common.run(job, forward, version=onnxruntime.__version__)
        return
    watch = CalibrationWatch(job)
    fptq.quantize  # noqa: B018  imports it now
    common.run(job, lambda _: quantize_with_fptq(job, watch), version=fptq.__version__, peaks_mb=watch.peaks_mb)


if __name__ == "__main__":
    main()
