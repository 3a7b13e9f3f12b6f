"""Changes to a model that keep what it computes, or bring it nearer to float after quantization."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from fptq.graph.gemm import matmul_add_to_gemm
from fptq.graph.model import Model
from fptq.rewrite.bias import corrected_biases, input_means, measured_biases, shifted_biases
from fptq.rewrite.branches import branches_levelled
from fptq.rewrite.equalize import equalized
from fptq.rewrite.per_token import takes_tokens, tokens_scaled
from fptq.rewrite.pieces import Pieces, in_pieces
from fptq.rewrite.piecewise import Regions, branched
from fptq.rewrite.product_inputs import ProductInput, product_inputs
from fptq.rewrite.several_readers import bias_for_several_readers
from fptq.rewrite.smooth import logarithmically_smoothed, smooth_readers, smoothed
from fptq.rewrite.space_to_depth import space_to_depth_stem
from fptq.rewrite.summed import FloatInput, float_inputs, summed

PASSES: MappingProxyType[str, Callable[[Model], Model]] = MappingProxyType(
    {
        "bias_for_several_readers": bias_for_several_readers,
        "matmul_add_to_gemm": matmul_add_to_gemm,
        "space_to_depth_stem": space_to_depth_stem,
    }
)
"""Rewrites that leave the network's results as they are, by the names that profiles use."""

__all__ = [
    "PASSES",
    "FloatInput",
    "Pieces",
    "ProductInput",
    "Regions",
    "bias_for_several_readers",
    "branched",
    "branches_levelled",
    "corrected_biases",
    "equalized",
    "float_inputs",
    "in_pieces",
    "input_means",
    "logarithmically_smoothed",
    "matmul_add_to_gemm",
    "measured_biases",
    "product_inputs",
    "shifted_biases",
    "smooth_readers",
    "smoothed",
    "space_to_depth_stem",
    "summed",
    "takes_tokens",
    "tokens_scaled",
]
