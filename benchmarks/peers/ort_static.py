"""ONNX Runtime's own tool: preprocessing, then static Q/DQ (or dynamic) quantization."""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import onnxruntime
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

# s8s8 is the documented first choice; u8s8 is what the x86 kernels multiply natively.
ACTIVATIONS = {"s8s8": QuantType.QInt8, "u8s8": QuantType.QUInt8}


def quantize(job: common.Job) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        _prepare(job.model, prepared)
        if job.preset == "dynamic":
            quantize_dynamic(prepared, job.output, per_channel=True, weight_type=QuantType.QInt8)
            return
        quantize_static(
            prepared,
            job.output,
            common.Reader(job),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=ACTIVATIONS[job.preset],
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


def _prepare(model: Path, prepared: Path) -> None:
    """ONNX Runtime's own preprocessing; without its symbolic shapes where it cannot infer them (dynamic axes)."""
    try:
        quant_pre_process(model, prepared)
    except Exception as error:  # it raises plain exceptions
        print(f"symbolic shape inference is skipped: {error}")
        quant_pre_process(model, prepared, skip_symbolic_shape=True)


if __name__ == "__main__":
    common.run(common.parse_job(__doc__, (*ACTIVATIONS, "dynamic")), quantize, version=onnxruntime.__version__)
