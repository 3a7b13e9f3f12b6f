"""ModelOpt's ONNX path: calibrates in ONNX Runtime, writes Q/DQ nodes meant for TensorRT."""

from __future__ import annotations

import common
import modelopt
from modelopt.onnx.quantization import quantize as modelopt_quantize


def quantize(job: common.Job) -> None:
    modelopt_quantize(
        str(job.model),
        quantize_mode="int8",
        calibration_method=job.preset,
        calibration_data_reader=common.Reader(job),
        calibration_eps=["cpu"],
        # fp16 is meant for a GPU; the CPU engines would run it slower than fp32.
        high_precision_dtype="fp32",
        output_path=str(job.output),
        log_level="ERROR",
    )


if __name__ == "__main__":
    common.run(common.parse_job(__doc__, ("max", "entropy")), quantize, version=modelopt.__version__)
