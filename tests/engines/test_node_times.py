"""An engine's times by the nodes of the network, whatever the engine calls what it fuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fptq.engines import DEPLOYABLE, ENGINES, CompileOptions, NodeRun
from fptq.engines.node_times import node_times, slowest_runs
from fptq.graph.model import Model
from fptq.graph.write import save

BOTH = [pytest.param(name, marks=pytest.mark.engine(name)) for name in DEPLOYABLE]


@pytest.fixture
def biased(net: Callable) -> Model:
    n = net((2, 64, 64))
    n("MatMul", n.stored(64, 64))
    n("Add", n.stored(64))
    n("Relu")
    n("MatMul", n.stored(64, 64))
    return n.model()


def ran(time_ms: float, *nodes: str) -> NodeRun:
    return NodeRun(nodes=nodes, op="", precision="f32", kernel="", time_ms=time_ms)


def test_of_several_engine_nodes_of_one_name_the_slowest_counts(biased: Model) -> None:
    runs = [ran(1.0, "MatMul_0", "Add_1"), ran(3.0, "MatMul_0"), ran(2.0, "MatMul_0")]
    assert slowest_runs(runs) == {"MatMul_0": runs[1], "Add_1": runs[0]}
    assert node_times(biased, runs)["MatMul_0"] == 3.0


def test_a_node_is_found_by_the_value_that_leaves_it_and_by_what_is_fused_behind_it(biased: Model) -> None:
    times = node_times(biased, [ran(1.0, "Add_1"), ran(2.0, "v3")])
    assert (times["MatMul_0"], times["MatMul_3"]) == (1.0, 2.0)
    # Four nodes at most are fused; what the engine has no time for at all is left out.
    assert node_times(biased, [ran(2.0, "v3")])["MatMul_0"] == 2.0
    assert "MatMul_3" not in node_times(biased, [ran(1.0, "Add_1")])


@pytest.mark.parametrize("engine", BOTH)
def test_every_product_of_a_float_network_has_a_time(biased: Model, tmp_path: Path, engine: str) -> None:
    """OpenVINO calls a product by the addition of its bias."""
    save(biased, tmp_path / "net.onnx")
    session = ENGINES[engine].compile(tmp_path / "net.onnx", CompileOptions(threads=1))
    times = node_times(biased, session.profile({"x": np.ones((2, 64, 64), np.float32)}))
    assert times["MatMul_0"] > 0
    assert times["MatMul_3"] > 0
