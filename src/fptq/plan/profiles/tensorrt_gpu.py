"""TensorRT on NVIDIA GPUs, and TensorRT-RTX, which reads the same files."""

from __future__ import annotations

from fptq.numerics import QuantizerSpec
from fptq.plan.conditions import AlignedChannels, PlainGemm
from fptq.plan.profile import Fact, Family, Profile, Rule, Variant, WeightAxis

_SIGNED = QuantizerSpec(signed=True, symmetric=True)
_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_GUIDE = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html"
)
_PARSED = "the ONNX parser and builder of TensorRT-RTX on small graphs, tests/engines/test_tensorrt_facts.py"

_ALIGNED = AlignedChannels(
    free_rank=0,
    inputs=8,
    outputs=8,
    least_outputs=16,
    because="int8 tensor cores read channels in blocks of 16 and more; below 16, or where the channels are no multiple "
    "of 8 or in groups, padding eats the gain",
)

TENSORRT_GPU = Profile(
    engine="tensorrt",
    weight=_SIGNED,
    rules=(
        Rule(op="Conv", family=Family.CORE, weight=1, conditions=(_ALIGNED,)),
        Rule(op="ConvTranspose", family=Family.CORE, weight=1, weight_axis=WeightAxis.INPUT, conditions=(_ALIGNED,)),
        Rule(op="Gemm", family=Family.CORE, weight=1, conditions=(PlainGemm(),)),
        Rule(op="MatMul", family=Family.CORE, weight=1),
        Rule(op="MatMul", family=Family.PRODUCT, activations=(0, 1)),
        Rule(op="Add", family=Family.ADD, activations=(0, 1), spares=_PRODUCTS),
        Rule(op="Concat", family=Family.CONCAT, activations=(0, 1)),
    ),
    variants=(
        Variant(name="products", families=frozenset({Family.CORE}), activation=_SIGNED),
        Variant(name="products+skips", families=frozenset({Family.CORE, Family.ADD}), activation=_SIGNED),
        Variant(name="products+concat", families=frozenset({Family.CORE, Family.CONCAT}), activation=_SIGNED),
        Variant(name="products+attention", families=frozenset({Family.CORE, Family.PRODUCT}), activation=_SIGNED),
        Variant(
            name="all",
            families=frozenset({Family.CORE, Family.ADD, Family.CONCAT, Family.PRODUCT}),
            activation=_SIGNED,
        ),
    ),
    transparent=_MOVING | {"MaxPool"},
    signed_only=True,
    passes=("matmul_add_to_gemm",),
    facts=(
        Fact(
            says="quantization is symmetric: a zero point other than 0 is refused",
            source=_PARSED,
            version="RTX 1.7.1",
        ),
        Fact(
            says="unsigned codes of zero point 0 are read as signed ones with no more than a warning: what lies above "
            "127 scales saturates",
            source=_PARSED,
            version="RTX 1.7.1",
        ),
        Fact(
            says="activations have one scale, stored weights one for each channel; dequantized weights must stand "
            "right in front of the product",
            source=_GUIDE,
            version="10 and later",
        ),
        Fact(
            says="kernels of ConvTranspose take one weight scale for each input channel (axis 0), not for each output "
            "channel",
            source="https://github.com/NVIDIA/TensorRT/issues/2380 and /issues/1694",
            version="8 and later",
        ),
        Fact(
            says="a convolution adds the skip branch before it rounds when that branch is quantized and its own result "
            "is not: Q/DQ belongs on the skip branch of a residual addition only",
            source="https://docs.nvidia.com/deeplearning/tensorrt/tensorflow-quantization-toolkit/docs/docs/"
            "add_custom_qdq_cases.html",
            version="8 and later",
        ),
        Fact(
            says="a quantizer moves in front of MaxPool, Reshape, Transpose and Concat by itself: they run on codes",
            source=_GUIDE,
            version="10 and later",
        ),
        Fact(
            says="batch normalisation and ReLU are absorbed between the product and the next quantizer; none belongs "
            "in between",
            source=_GUIDE,
            version="10 and later",
        ),
        Fact(
            says="InstanceNormalization and LayerNormalization have no integer kernel",
            source=_GUIDE,
            version="10 and later",
        ),
        Fact(
            says="TensorRT-RTX promises int8 for weights of matrix products only, and no GPU of compute capability 9.0",
            source="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html",
            version="RTX 1.5",
        ),
        Fact(
            says="TensorRT-RTX builds engines on a GPU of compute capability 9.0 and does not load them there: it "
            "loads them on 8.0, 8.6, 8.9, 12.0 and newer",
            source="benchmarks/gpu.py on an H100, docs/benchmarks-tensorrt.md",
            version="RTX 1.7.1",
        ),
    ),
)
