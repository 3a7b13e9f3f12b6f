"""OpenVINO's CPU plugin."""

from __future__ import annotations

from fptq.numerics import QuantizerSpec
from fptq.plan.profile import Fact, Family, PolicyCost, Profile, Rule, Variant

_UNSIGNED = QuantizerSpec(signed=False, symmetric=False)
_SIGNED = QuantizerSpec(signed=True, symmetric=True)
_ALL = frozenset({Family.CORE, Family.NORM, Family.ADD})
_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
_TIMED = "a stack of 8 MatMuls, 512 x 2048 and 2048 x 512, of 512 and 2048 rows, 2 threads, interleaved medians, f32"
_MEASURED = "per-node execution graph (PERF_COUNT), x86-64 with AVX-512 VNNI"

OPENVINO_CPU = Profile(
    engine="openvino",
    weight=QuantizerSpec(signed=True, symmetric=True),
    rules=(
        Rule(op="Conv", family=Family.CORE, weight=1),
        Rule(op="ConvTranspose", family=Family.CORE, weight=1, zero_point_free=True),
        Rule(op="MatMul", family=Family.CORE, weight=1),
        Rule(op="Gemm", family=Family.CORE, weight=1),
        Rule(op="MatMul", family=Family.PRODUCT, activations=(0, 1), zero_point_free=True),
        Rule(op="InstanceNormalization", family=Family.NORM),
        Rule(op="Add", family=Family.ADD, activations=(0, 1)),
        Rule(op="Concat", family=Family.CONCAT, activations=(0, 1)),
    ),
    variants=(
        Variant(name="products", families=frozenset({Family.CORE}), activation=_UNSIGNED),
        Variant(name="products+concat", families=frozenset({Family.CORE, Family.CONCAT}), activation=_UNSIGNED),
        Variant(name="products+attention", families=frozenset({Family.CORE, Family.PRODUCT}), activation=_UNSIGNED),
        Variant(name="products, signed", families=frozenset({Family.CORE}), activation=_SIGNED),
        Variant(
            name="products+attention, signed", families=frozenset({Family.CORE, Family.PRODUCT}), activation=_SIGNED
        ),
        Variant(name="all", families=_ALL, activation=_UNSIGNED),
        Variant(name="all, signed", families=_ALL, activation=_SIGNED),
    ),
    transparent=_MOVING | {"MaxPool"},
    writes_float=frozenset({"MatMul"}),
    unsigned_behind=_MOVING | {"Concat"},
    passes=(
        "space_to_depth_stem",
        "hidden_rows_by_mask",
        "movement_as_gather",
        "arithmetic_without_reshapes",
        "repeated_columns_gathered",
        "bias_for_several_readers",
    ),
    policies=(
        PolicyCost(policy="smoothing", overhead=0.0, source="no node is added"),
        PolicyCost(policy="pieces", overhead=0.15, source=_TIMED),
        PolicyCost(policy="two regions", overhead=0.25, source=_TIMED),
        PolicyCost(policy="per token", overhead=0.3, source=_TIMED),
        PolicyCost(policy="float input", overhead=0.6, source=_TIMED),
    ),
    facts=(
        Fact(
            says="Q/DQ pairs become FakeQuantize; convolutions and their transposes of rank 1 to 3 have int8 kernels",
            source=_MEASURED,
            version="2026.4.1",
        ),
        Fact(
            says="InstanceNormalization runs as MVN, with int8 output when its reader is quantized and with int8 "
            "input when its own input is: then the convolution before it writes int8, which saves memory traffic",
            source=_MEASURED,
            version="2026.4.1",
        ),
        Fact(
            says="a bf16 MatMul of two activations whose result is quantized runs in f32: 50 ms in place of 26 for the "
            "16 products of AntiBERTy's attention at 16 x 256 tokens, and 20 ms for the conversions around it",
            source="per-node execution graph (PERF_COUNT), x86-64 with AVX-512 BF16",
            version="2026.4.1",
        ),
        Fact(
            says="IsNaN and Where between Softmax and MatMul keep attention from being one kernel",
            source=_MEASURED,
            version="2026.4.1",
        ),
        Fact(
            says="ConvTranspose has an int8 kernel only for activations with zero point 0",
            source=_MEASURED,
            version="2026.4.1",
        ),
        Fact(
            says="signed codes that reach a convolution through a Concat or a Transpose give wrong numbers (9 to 29 dB "
            "where the simulation of the same file has 32); unsigned ones give the right numbers",
            source="engine against simulation on small graphs, tests/engines/test_openvino_facts.py",
            version="2026.4.1",
        ),
        Fact(
            says="an integer convolution without a bias, of dynamic shape and with several readers, is scaled once for "
            "each of them (0 to 5 dB where the simulation has 32); with a bias, or of fixed shape, it is right",
            source="engine against simulation on small graphs, tests/engines/test_openvino_facts.py",
            version="2026.4.1",
        ),
        Fact(
            says="the sum of two products is not fused into either: the Add, and the activation behind it, which the "
            "uniform product absorbs, become a pass over the result in f32; that, not the Gather, is what two "
            "regions cost",
            source=_MEASURED,
            version="2026.4.1",
        ),
        Fact(
            says="a quantizer behind a Concat is computed in front of it, so that the Concat joins codes: channels in "
            "pieces cost half of what two regions do",
            source=_MEASURED,
            version="2026.4.1",
        ),
        Fact(
            says="MatMulInteger runs in f32, MatMulNBits as a product of float activations with expanded weights; a "
            "fixed quantizer between two scalings by row runs in int8",
            source=_TIMED,
            version="2026.4.1",
        ),
        Fact(
            says="a float activation beside int8 weights is quantized by OpenVINO itself in groups of 32 of its row "
            "(DYNAMIC_QUANTIZATION_GROUP_SIZE, at hint f32 too): 1.6 times static int8 and 3 times as fast as f32; "
            "groups of 512 take 1.2 times, 0 turns it off. 16-bit Q/DQ are stripped, and leave the same",
            source=_TIMED,
            version="2026.4.1",
        ),
        Fact(
            says="MatMul - Add - Softmax - MatMul runs as one kernel that never stores the scores, with several Adds, "
            "too; a Reshape between them, as around the mask of shifted windows, parts it: their attention then takes "
            "2 to 3 times as long beside int8 products",
            source="tests/rewrite/test_swin.py; " + _MEASURED,
            version="2026.4.1",
        ),
        Fact(
            says="a Gather of rows of tokens takes a tenth of the Slices, Concats and Transposes of a roll, a window "
            "partition or patch merging; an index that is a sum of stored vectors is added up when the file is loaded",
            source=_MEASURED,
            version="2026.4.1",
        ),
        Fact(
            says="a Concat stays int8 only when all inputs share one scale",
            source=_MEASURED,
            version="2026.4.1",
        ),
        Fact(
            says="a convolution with one input channel pads it to the 4 values of a VNNI dot product; a strided "
            "one is the same product over space-to-depth channels without the padding",
            source=_MEASURED,
            version="2026.4.1",
        ),
    ),
)
