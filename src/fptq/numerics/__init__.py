"""Integer arithmetic exactly as ONNX states it; knows numpy, not ONNX graphs."""

from fptq.numerics.blocks import grouped, ranges, scale_shape
from fptq.numerics.breakpoints import GAUSSIAN, LAPLACE, Density, bisected, closed_form, expected_error
from fptq.numerics.decibels import sqnr, sqnr_of
from fptq.numerics.fit import lp_error, params_from_range
from fptq.numerics.packing import pack, unpack
from fptq.numerics.params import UniformParams
from fptq.numerics.piecewise import (
    Branch,
    PiecewiseCodes,
    PiecewiseParams,
    PiecewiseSpec,
    branch_codes,
    branch_inputs,
    branches,
    dequantize_piecewise,
    fake_quantize_piecewise,
    quantize_piecewise,
)
from fptq.numerics.piecewise_fit import (
    Values,
    params_from_breakpoints,
    params_from_density,
    params_from_tensor,
    searched_params,
)
from fptq.numerics.spec import Granularity, PerBlock, PerChannel, PerTensor, QuantizerSpec
from fptq.numerics.uniform import dequantize, fake_quantize, quantize

__all__ = [
    "GAUSSIAN",
    "LAPLACE",
    "Branch",
    "Density",
    "Granularity",
    "PerBlock",
    "PerChannel",
    "PerTensor",
    "PiecewiseCodes",
    "PiecewiseParams",
    "PiecewiseSpec",
    "QuantizerSpec",
    "UniformParams",
    "Values",
    "bisected",
    "branch_codes",
    "branch_inputs",
    "branches",
    "closed_form",
    "dequantize",
    "dequantize_piecewise",
    "expected_error",
    "fake_quantize",
    "fake_quantize_piecewise",
    "grouped",
    "lp_error",
    "pack",
    "params_from_breakpoints",
    "params_from_density",
    "params_from_range",
    "params_from_tensor",
    "quantize",
    "quantize_piecewise",
    "ranges",
    "scale_shape",
    "searched_params",
    "sqnr",
    "sqnr_of",
    "unpack",
]
