"""NNCF with its OpenVINO backend: calibrates in OpenVINO, writes an IR (.xml and .bin)."""

from __future__ import annotations

import common
import nncf
import openvino

PRESETS = {
    "performance": {"preset": nncf.QuantizationPreset.PERFORMANCE},
    "mixed": {"preset": nncf.QuantizationPreset.MIXED},
    "transformer": {"model_type": nncf.ModelType.TRANSFORMER},
}


def quantize(job: common.Job) -> None:
    model = openvino.Core().read_model(job.model)
    samples = nncf.Dataset(job.samples, job.load)
    quantized = nncf.quantize(model, samples, subset_size=len(job.samples), **PRESETS[job.preset])
    openvino.save_model(quantized, job.output, compress_to_fp16=False)


if __name__ == "__main__":
    common.run(common.parse_job(__doc__, tuple(PRESETS)), quantize, version=nncf.__version__)
