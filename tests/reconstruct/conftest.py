"""Small networks with their encodings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from fptq.calibrate import CalibrationOptions, calibrate
from fptq.calibrate.observers.lp import Lp
from fptq.graph.model import Model
from fptq.plan import PROFILES, Policy, place
from fptq.plan.encoding import Encoding
from fptq.reconstruct import METHODS, Method
from fptq.types import Array


def build(text: str, shapes: Mapping[str, Sequence[int]], *, seed: int = 0) -> Model:
    """A model from the body of a graph in ONNX's text form; its weights are random with variance 1 / fan-in."""
    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, shape in shapes.items():
        fan_in = max(1, int(np.prod(shape[1:])))
        array = (rng.standard_normal(tuple(shape)) / np.sqrt(fan_in)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return Model(graph_model=ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def encode(
    model: Model, feeds: Sequence[Mapping[str, Array]], *, variant: int = 0, engine: str = "openvino", **bits: int
) -> Encoding:
    """A calibrated encoding, 3-bit weights and 4-bit activations unless told otherwise."""
    profile = PROFILES[engine]
    policy = Policy(weight_bits=bits.get("weight_bits", 3), activation_bits=bits.get("activation_bits", 4))
    plan = place(model, profile, profile.variants[variant], policy)
    return calibrate(model, plan, feeds, options=CalibrationOptions(weight_observer=Lp()))


def drawn(count: int, shape: Sequence[int], *, seed: int = 1) -> list[dict[str, Array]]:
    """Random samples of the input "x"."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(tuple(shape)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def make_net() -> Callable[..., Model]:
    return build


@pytest.fixture
def make_encoding() -> Callable[..., Encoding]:
    return encode


@pytest.fixture
def draw() -> Callable[..., list[dict[str, Array]]]:
    return drawn


@pytest.fixture
def quick() -> Callable[..., Method]:
    """A method by name, in a few iterations."""

    def make(preset: str, /, *, iterations: int = 40, **changes: object) -> Method:
        return replace(METHODS[preset].shortened(iterations), **{"batch_size": 6, **changes})

    return make


@pytest.fixture
def resnet() -> Model:
    """A stem, a residual block, a strided one with a projection, a classifier."""
    return build(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a0 = Conv<pads = [1, 1, 1, 1]>(x, w0)
            a = Relu(a0)
            b0 = Conv<pads = [1, 1, 1, 1]>(a, w1)
            b1 = Relu(b0)
            b2 = Conv<pads = [1, 1, 1, 1]>(b1, w2)
            b3 = Add(b2, a)
            b = Relu(b3)
            c0 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(b, w3)
            c1 = Relu(c0)
            c2 = Conv<pads = [1, 1, 1, 1]>(c1, w4)
            c3 = Conv<strides = [2, 2]>(b, w5)
            c4 = Add(c2, c3)
            c = Relu(c4)
            d = GlobalAveragePool(c)
            e = Flatten(d)
            y = Gemm(e, w6)
        }""",
        {
            "w0": (6, 3, 3, 3),
            "w1": (6, 6, 3, 3),
            "w2": (6, 6, 3, 3),
            "w3": (8, 6, 3, 3),
            "w4": (8, 8, 3, 3),
            "w5": (8, 6, 1, 1),
            "w6": (8, 5),
        },
    )


@pytest.fixture
def images() -> list[dict[str, Array]]:
    return drawn(12, (1, 3, 8, 8))
