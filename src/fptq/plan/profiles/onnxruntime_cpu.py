"""ONNX Runtime's CPU execution provider."""

from __future__ import annotations

from fptq.numerics import QuantizerSpec
from fptq.plan.conditions import AlignedChannels, MatrixWeight, PlainGemm
from fptq.plan.profile import Fact, Family, PolicyCost, Profile, Rule, Variant

_UNSIGNED = QuantizerSpec(signed=False, symmetric=False)
_SOURCE = "onnxruntime/core/optimizer/qdq_transformer and measured per-node profile"
_VERSION = "1.32.0"

_TIMED = "a stack of 8 Gemms, 512 x 2048 and 2048 x 512, of 512 and 2048 rows, 2 threads, interleaved medians"

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
    passes=(
        "matmul_add_to_gemm",
        "hidden_rows_by_mask",
        "movement_as_gather",
        "arithmetic_without_reshapes",
        "repeated_columns_gathered",
    ),
    policies=(
        PolicyCost(policy="smoothing", overhead=0.0, source="no node is added"),
        PolicyCost(policy="pieces", overhead=0.1, source=_TIMED),
        PolicyCost(policy="two regions", overhead=0.25, source=_TIMED),
        PolicyCost(policy="per token", overhead=0.2, source=_TIMED),
        PolicyCost(policy="float input", overhead=1.3, source=_TIMED),
    ),
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
            says="a scale for each token: codes of rows that are divided by their reach, under one fixed scale, run as "
            "MatMulIntegerToFloat of u8 x s8; QuantizeLinear with a scale for each row and MatMulInteger of s8 x s8 "
            "take 4 to 5 times as long as static int8",
            source=_TIMED,
            version=_VERSION,
        ),
        Fact(
            says="MatMulInteger - Cast - Mul(scale of each row x scale of each column) - Add(bias) is fused into one "
            "MatMulIntegerToFloat that adds a wrong bias; one factor after the other is not fused, and right",
            source="optimised against unoptimised, tests/engines/test_policy_facts.py",
            version=_VERSION,
        ),
        Fact(
            says="16-bit activations beside int8 weights are rounded, expanded and multiplied in float (MatMulNBits): "
            "1.8 times static int8, where float activations take 2.1 times; MatMulNBits of 8 bits, accuracy level 4, "
            "takes 1.6 times in blocks of 32 and 1.3 in blocks of 128",
            source=_TIMED,
            version=_VERSION,
        ),
        Fact(
            says="IsNaN and Where over the scores of attention take 3 % of AntiBERTy in int8 at 1 x 128 tokens, 14 % "
            "at 16 x 256",
            source="the file with and without them, 2 threads, interleaved medians",
            version=_VERSION,
        ),
        Fact(
            says="ConvTranspose, InstanceNormalization, LayerNormalization and Gelu have no integer kernel",
            source=_SOURCE,
            version=_VERSION,
        ),
    ),
)
