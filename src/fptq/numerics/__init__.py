"""Integer arithmetic exactly as ONNX states it; knows numpy, not ONNX graphs."""

from fptq.numerics.blocks import grouped, ranges, scale_shape
from fptq.numerics.fit import lp_error, params_from_range
from fptq.numerics.packing import pack, unpack
from fptq.numerics.params import UniformParams
from fptq.numerics.spec import Granularity, PerBlock, PerChannel, PerTensor, QuantizerSpec
from fptq.numerics.uniform import dequantize, fake_quantize, quantize

__all__ = [
    "Granularity",
    "PerBlock",
    "PerChannel",
    "PerTensor",
    "QuantizerSpec",
    "UniformParams",
    "dequantize",
    "fake_quantize",
    "grouped",
    "lp_error",
    "pack",
    "params_from_range",
    "quantize",
    "ranges",
    "scale_shape",
    "unpack",
]
