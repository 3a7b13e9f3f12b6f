"""NNCF's accuracy control, with every call of the metric counted.

Samples that judge are `.npz` files like those of the calibration, with one array more: `target`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import nncf
import numpy as np
import onnx
import onnxruntime
import openvino
from scores import SCORES

PRESETS = ("openvino", "onnx")
Runner = Callable[[common.Sample], Any]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A validation function that counts.

    Attributes:
        name: A key of `SCORES`.
        calls: For each call the number of samples it scored.
    """

    name: str
    calls: list[int] = field(default_factory=list)

    def __call__(self, model: Any, samples: Iterable[Path]) -> tuple[float, list[float]]:
        run, score = _runner(model), SCORES[self.name]
        values = []
        for path in samples:  # NNCF hands over what the data set was made of
            sample = _read(path)
            feeds = {name: array for name, array in sample.items() if name != "target"}
            values.append(score(run(feeds), sample["target"]))
        self.calls.append(len(values))
        return float(np.mean(values)), values


def _runner(model: Any) -> Runner:
    """A function from feeds to the first output; NNCF hands over a compiled model or an ONNX one."""
    if isinstance(model, onnx.ModelProto):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)[0]
    return lambda feeds: model(feeds)[0]


def quantize(job: common.Job, *, validation: Path, metric: Metric, max_drop: float) -> None:
    calibration = nncf.Dataset(job.samples, job.load)
    judges = nncf.Dataset(tuple(sorted(validation.glob("*.npz"))), _read)
    model = onnx.load(job.model) if job.preset == "onnx" else openvino.Core().read_model(job.model)
    quantized = nncf.quantize_with_accuracy_control(
        model,
        calibration,
        judges,
        metric,
        max_drop=max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(job.samples),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=min(300, len(list(validation.glob("*.npz"))))
        ),
    )
    if job.preset == "onnx":
        onnx.save(quantized, job.output)
    else:
        openvino.save_model(quantized, job.output, compress_to_fp16=False)
    job.output.with_suffix(".calls.json").write_text(json.dumps(metric.calls) + "\n", encoding="utf-8")


def _read(path: Path) -> common.Sample:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calibration", "validation", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0])
    parser.add_argument("--metric", choices=tuple(SCORES), required=True)
    parser.add_argument("--max-drop", type=float, required=True)
    arguments = parser.parse_args()
    job = common.Job(
        model=arguments.model,
        samples=tuple(sorted(arguments.calibration.glob("*.npz"))),
        output=arguments.output,
        preset=arguments.preset,
    )
    metric = Metric(name=arguments.metric)

    def work(job: common.Job) -> None:
        quantize(job, validation=arguments.validation, metric=metric, max_drop=arguments.max_drop)

    common.run(job, work, version=nncf.__version__)


if __name__ == "__main__":
    main()
