"""OpenVINO's CPU plugin."""

from __future__ import annotations

from fptq.numerics import QuantizerSpec
from fptq.plan.profile import Fact, Family, Profile, Rule, Variant

_UNSIGNED = QuantizerSpec(signed=False, symmetric=False)
_SIGNED = QuantizerSpec(signed=True, symmetric=True)
_ALL = frozenset({Family.CORE, Family.NORM, Family.ADD})
_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
_MEASURED = "per-node execution graph (PERF_COUNT), x86-64 with AVX-512 VNNI"

OPENVINO_CPU = Profile(
    engine="openvino",
    weight=QuantizerSpec(signed=True, symmetric=True),
    rules=(
        Rule(op="Conv", family=Family.CORE, weight=1),
        Rule(op="ConvTranspose", family=Family.CORE, weight=1, zero_point_free=True),
        Rule(op="MatMul", family=Family.CORE, weight=1),
        Rule(op="Gemm", family=Family.CORE, weight=1),
        Rule(op="MatMul", family=Family.PRODUCT, activations=(0, 1)),
        Rule(op="InstanceNormalization", family=Family.NORM),
        Rule(op="Add", family=Family.ADD, activations=(0, 1)),
        Rule(op="Concat", family=Family.CONCAT, activations=(0, 1)),
    ),
    variants=(
        Variant(name="products", families=frozenset({Family.CORE}), activation=_UNSIGNED),
        Variant(name="products+concat", families=frozenset({Family.CORE, Family.CONCAT}), activation=_UNSIGNED),
        Variant(name="products, signed", families=frozenset({Family.CORE}), activation=_SIGNED),
        Variant(
            name="products+attention, signed", families=frozenset({Family.CORE, Family.PRODUCT}), activation=_SIGNED
        ),
        Variant(name="all", families=_ALL, activation=_UNSIGNED),
        Variant(name="all, signed", families=_ALL, activation=_SIGNED),
    ),
    transparent=_MOVING | {"MaxPool"},
    unsigned_behind=_MOVING | {"Concat"},
    passes=("space_to_depth_stem",),
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
