"""Changes to a model that keep what it computes, or bring it nearer to float after quantization."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from fptq.graph.gemm import matmul_add_to_gemm
from fptq.graph.model import Model
from fptq.rewrite.bias import corrected_biases, input_means, measured_biases, shifted_biases
from fptq.rewrite.branches import branches_levelled
from fptq.rewrite.draft import Change, applied
from fptq.rewrite.equalize import equalized
from fptq.rewrite.hidden_rows import hidden_rows_by_mask
from fptq.rewrite.movement import movement_as_gather
from fptq.rewrite.per_token import scale_tokens, takes_tokens
from fptq.rewrite.pieces import Pieces, cut_in_pieces
from fptq.rewrite.piecewise import Regions, cut_in_regions
from fptq.rewrite.product_inputs import ProductInput, product_inputs
from fptq.rewrite.repeated_columns import repeated_columns_gathered
from fptq.rewrite.reshaped_arithmetic import arithmetic_without_reshapes
from fptq.rewrite.several_readers import bias_for_several_readers
from fptq.rewrite.smooth import logarithmically_smoothed, smooth_readers, smoothed
from fptq.rewrite.space_to_depth import space_to_depth_stem
from fptq.rewrite.summed import FloatInput, float_inputs, sum_regions

PASSES: MappingProxyType[str, Callable[[Model], Model]] = MappingProxyType(
    {
        "arithmetic_without_reshapes": arithmetic_without_reshapes,
        "bias_for_several_readers": bias_for_several_readers,
        "hidden_rows_by_mask": hidden_rows_by_mask,
        "matmul_add_to_gemm": matmul_add_to_gemm,
        "movement_as_gather": movement_as_gather,
        "repeated_columns_gathered": repeated_columns_gathered,
        "space_to_depth_stem": space_to_depth_stem,
    }
)
"""Rewrites that leave the network's results as they are, by the names that profiles use."""

__all__ = [
    "PASSES",
    "Change",
    "FloatInput",
    "Pieces",
    "ProductInput",
    "Regions",
    "applied",
    "arithmetic_without_reshapes",
    "bias_for_several_readers",
    "branches_levelled",
    "corrected_biases",
    "cut_in_pieces",
    "cut_in_regions",
    "equalized",
    "float_inputs",
    "hidden_rows_by_mask",
    "input_means",
    "logarithmically_smoothed",
    "matmul_add_to_gemm",
    "measured_biases",
    "movement_as_gather",
    "product_inputs",
    "repeated_columns_gathered",
    "scale_tokens",
    "shifted_biases",
    "smooth_readers",
    "smoothed",
    "space_to_depth_stem",
    "sum_regions",
    "takes_tokens",
]
