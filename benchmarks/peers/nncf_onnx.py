"""NNCF with its ONNX backend: calibrates in ONNX Runtime, writes Q/DQ nodes."""

from __future__ import annotations

import common
import nncf
import nncf.onnx
import onnx

PRESETS = {
    "performance": {"preset": nncf.QuantizationPreset.PERFORMANCE},
    "mixed": {"preset": nncf.QuantizationPreset.MIXED},
    "transformer": {"model_type": nncf.ModelType.TRANSFORMER},
}


def quantize(job: common.Job) -> None:
    model = onnx.load(job.model)
    samples = nncf.Dataset(job.samples, job.load)
    quantized = nncf.quantize(model, samples, subset_size=len(job.samples), **PRESETS[job.preset])
    onnx.save(quantized, job.output)


if __name__ == "__main__":
    common.run(common.parse_job(__doc__, tuple(PRESETS)), quantize, version=nncf.__version__)
