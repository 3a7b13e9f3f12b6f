"""Small networks and sample sources."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from fptq.graph.model import Model
from fptq.types import Array


def build(text: str, weights: Mapping[str, Array], opset: int = 21) -> Model:
    """A model from the body of a graph in ONNX's text form and its weights."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return Model(graph_model=ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


@pytest.fixture
def make_net() -> Callable[..., Model]:
    """`build`."""
    return build


@pytest.fixture
def conv_net() -> Model:
    """x f32[N, 2, 12, 12] -> Conv, Relu, Conv; tensors x, hidden, relu, y."""
    rng = np.random.default_rng(0)
    return build(
        """g (float[N, 2, 12, 12] x) => (float[N, 3, 8, 8] y) {
            hidden = Conv(x, w1)
            relu = Relu(hidden)
            y = Conv(relu, w2)
        }""",
        {
            "w1": rng.standard_normal((4, 2, 3, 3)).astype(np.float32),
            "w2": rng.standard_normal((3, 4, 3, 3)).astype(np.float32),
        },
    )


@dataclass
class Samples:
    """Restartable samples that count how often they were walked."""

    items: list[dict[str, Array]]
    walks: int = field(default=0)

    def __iter__(self):
        self.walks += 1
        return iter(self.items)

    def __len__(self):
        return len(self.items)


@pytest.fixture
def make_samples() -> Callable[..., Samples]:
    """Random samples of one input."""

    def make(count, shape=(1, 2, 12, 12), name="x", seed=0):
        rng = np.random.default_rng(seed)
        return Samples([{name: (rng.standard_normal(shape) * (1 + i % 3)).astype(np.float32)} for i in range(count)])

    return make
