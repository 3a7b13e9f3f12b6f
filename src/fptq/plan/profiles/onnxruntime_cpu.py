"""ONNX Runtime's CPU execution provider."""

from __future__ import annotations

from fptq.numerics import QuantizerSpec
from fptq.plan.conditions import AlignedChannels, MatrixWeight, PlainGemm
from fptq.plan.profile import Fact, Family, Profile, Rule, Variant

_UNSIGNED = QuantizerSpec(signed=False, symmetric=False)
_SOURCE = "onnxruntime/core/optimizer/qdq_transformer and measured per-node profile"
_VERSION = "1.32.0"

_ALIGNED = AlignedChannels(
    free_rank=2,
    inputs=4,
    outputs=8,
    least_outputs=16,
    because="beyond two axes ONNX Runtime unfolds the whole input on one thread unless group is 1, "
    "input channels are a multiple of 4 and output channels a multiple of 8 from 16 on",
)

ONNXRUNTIME_CPU = Profile(
    engine="onnxruntime",
    weight=QuantizerSpec(signed=True, symmetric=True),
    rules=(
        Rule(
            op="Conv",
            family=Family.CORE,
            weight=1,
            quantizes_output=True,
            fused=frozenset({"Relu", "Clip"}),
            int32_bias=True,
            conditions=(_ALIGNED,),
        ),
        Rule(op="Gemm", family=Family.CORE, weight=1, int32_bias=True, conditions=(PlainGemm(),)),
        Rule(op="MatMul", family=Family.CORE, weight=1, conditions=(MatrixWeight(),)),
    ),
    variants=(Variant(name="products", families=frozenset({Family.CORE}), activation=_UNSIGNED),),
    passes=("matmul_add_to_gemm",),
    facts=(
        Fact(
            says="Conv becomes QLinearConv only between DequantizeLinear and QuantizeLinear; a Relu in between is "
            "absorbed only when the zero point is the lowest code",
            source=_SOURCE,
            version=_VERSION,
        ),
        Fact(
            says="Gemm becomes QGemm with a float result when its bias is int32 of scale input x weight; with a "
            "float bias it runs slower than in float",
            source=_SOURCE,
            version=_VERSION,
        ),
        Fact(says="MatMul without a bias becomes MatMulIntegerToFloat", source=_SOURCE, version=_VERSION),
        Fact(
            says="ConvTranspose, InstanceNormalization, LayerNormalization and Gelu have no integer kernel",
            source=_SOURCE,
            version=_VERSION,
        ),
    ),
)
