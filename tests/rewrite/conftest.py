"""Networks of one product with plans for them, and engines that run what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fptq.engines import ENGINES, CompileOptions, Session
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.numerics import QuantizerSpec
from fptq.plan import PROFILES, Plan, place


@pytest.fixture
def product(net: Callable) -> Callable[[str], Model]:
    """One product of 8 channels with a stored weight, behind a node, by name."""

    def gemm() -> Model:
        n = net((6, 8))
        n("Neg")
        n("Gemm", n.stored(8, 16), n.stored(16))
        return n.model()

    def transposed() -> Model:
        n = net((6, 8))
        n("Neg")
        n("Gemm", n.stored(16, 8), n.stored(16), transB=1)
        return n.model()

    def matmul() -> Model:
        n = net((2, 6, 8))
        n("Neg")
        n("MatMul", n.stored(8, 16))
        return n.model()

    def biased() -> Model:
        n = net((2, 6, 8))
        n("Neg")
        n("MatMul", n.stored(8, 16))
        n("Add", n.stored(16))
        return n.model()

    def conv() -> Model:
        n = net((1, 8, 6, 6))
        n("Neg")
        n.conv(8, 16)
        return n.model()

    networks = {made.__name__: made for made in (gemm, transposed, matmul, biased, conv)}
    return lambda name: networks[name]()


@pytest.fixture
def planned() -> Callable[[Model, QuantizerSpec], Plan]:
    """A plan for the products of a model with inputs of one kind, and results that stay float."""

    def plan(model: Model, spec: QuantizerSpec) -> Plan:
        placed = place(model, PROFILES["openvino"], PROFILES["openvino"].variants[0])
        specs = {p: placed.specs[p] if p in placed.weights else spec for p in placed.specs}
        biased = frozenset(str(node.name) for node in model.graph if node.op_type == "Gemm")
        return Plan(engine="", specs=specs, weights=placed.weights, int32_bias=biased)

    return plan


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[Model, str], Session]:
    """A session of a model on an engine."""

    def session(model: Model, engine: str) -> Session:
        path = tmp_path / f"{engine}_{len(list(tmp_path.iterdir()))}.onnx"
        save(model, path)
        return ENGINES[engine].compile(path, CompileOptions(threads=1))

    return session


@pytest.fixture
def run(compiled: Callable[[Model, str], Session]) -> Callable[..., np.ndarray]:
    """The first result of a model for an input `x`."""

    def result(model: Model, x: np.ndarray, *, engine: str = "onnxruntime") -> np.ndarray:
        return np.asarray(next(iter(compiled(model, engine)({"x": x}).values())))

    return result
