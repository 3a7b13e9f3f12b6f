"""Weights and scales that are learned so that the quantized network computes what the float one does."""

from fptq.reconstruct.blocks import Block, blocks_of
from fptq.reconstruct.loop import reconstruct
from fptq.reconstruct.method import METHODS, Method, Prediction, Rates
from fptq.reconstruct.result import Reconstructed, ReconstructionOptions, UnitResult

__all__ = [
    "METHODS",
    "Block",
    "Method",
    "Prediction",
    "Rates",
    "Reconstructed",
    "ReconstructionOptions",
    "UnitResult",
    "blocks_of",
    "reconstruct",
]
