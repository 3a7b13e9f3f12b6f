"""The whole graph: values, parts, hooks, errors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import fptq.execute.executor as executor_module
from fptq.errors import ModelError, ParityError
from fptq.execute import Executor, verify
from fptq.graph.model import Model
from fptq.graph.parity import run_graph
from fptq.graph.placement import Placement


def test_a_network_equals_onnx_runtime(cnn: Model, samples) -> None:
    assert verify(cnn, samples[0]) > 100


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_rank(rank: int, net) -> None:
    n = net((2, 4, *[8] * rank))
    n.conv(4, 8, rank=rank)
    n("InstanceNormalization", n.stored(8), n.stored(8))
    n("LeakyRelu", alpha=0.1)
    n("ConvTranspose", n.stored(8, 4, *[3] * rank), strides=[2] * rank, pads=[1] * 2 * rank, output_padding=[1] * rank)
    n("AveragePool", kernel_shape=[2] * rank, strides=[2] * rank)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, *[8] * rank)).astype(np.float32)}
    assert verify(n.model(), feeds) > 100


def test_intermediate_values_are_fetched_by_name(cnn: Model, samples) -> None:
    names = [str(node.outputs[0].name) for node in cnn.graph][2:5]
    with torch.no_grad():
        found = Executor.open(cnn).run(samples[0], fetch=names)
    expected = run_graph(cnn.graph_model, samples[0], names)
    for name in names:
        np.testing.assert_allclose(found[name].numpy(), expected[name], atol=1e-4)


def test_a_part_runs_what_lies_between(cnn: Model, samples) -> None:
    whole = Executor.open(cnn)
    with torch.no_grad():
        known = whole.run(samples[0], fetch=["v1", "v4", "v6"])
        part = whole.part(["v1", "v4"], ["v6"])
        found = part.run({"v1": known["v1"], "v4": known["v4"]})
    assert [step.name for step in part.program(())] == ["ConvTranspose_5", "Concat_6"]
    torch.testing.assert_close(found["v6"], known["v6"])


def test_a_missing_input_is_named(cnn: Model) -> None:
    with pytest.raises(ModelError, match="'x' is not fed"):
        Executor.open(cnn).run({})


def test_a_part_says_what_it_misses(cnn: Model, samples) -> None:
    part = Executor.open(cnn).part(["v4"], ["v6"])
    with pytest.raises(ModelError, match="'x' is not fed"):
        part.run({"v4": torch.zeros(1, 32, 8, 8)})


def test_identity_hooks_change_nothing_and_see_every_float_value(cnn: Model, samples) -> None:
    seen: list[Placement] = []

    def hook(placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        seen.append(placement)
        return tensor

    executor = Executor.open(cnn)
    with torch.no_grad():
        plain, hooked = executor.run(samples[0]), executor.run(samples[0], hook=hook)
    assert all(torch.equal(plain[name], hooked[name]) for name in plain)
    values = [placement.value for placement in seen if placement.consumer is None]
    assert len(values) == len(set(values)), "each value once"
    assert {str(node.outputs[0].name) for node in cnn.graph} <= set(values)
    assert Placement("v1", "MaxPool_2", 0) in seen
    assert Placement("v1", "Concat_6", 1) in seen


def test_one_reader_may_see_another_tensor(cnn: Model, samples) -> None:
    target = Placement("v1", "MaxPool_2", 0)

    def hook(placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tensor) if placement == target else tensor

    with torch.no_grad():
        found = Executor.open(cnn).run(samples[0], hook=hook, fetch=["v1", "v2"])
    assert found["v1"].abs().max() > 0
    assert found["v2"].abs().max() == 0


def test_gradients_reach_the_input(cnn: Model, samples) -> None:
    x = torch.tensor(samples[0]["x"], dtype=torch.float64, requires_grad=True)
    output = next(iter(Executor.open(cnn, dtype=torch.float64).run({"x": x}).values()))
    output.square().sum().backward()
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-6

    def value(sign: int) -> float:
        with torch.no_grad():
            moved = x.detach() + sign * step * direction
            outputs = Executor.open(cnn, dtype=torch.float64).run({"x": moved})
        return float(next(iter(outputs.values())).square().sum())

    numeric = (value(1) - value(-1)) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(numeric, rel=1e-4)


def test_memory_of_values_is_given_back(cnn: Model, samples) -> None:
    executor = Executor.open(cnn)
    last = {name: step.name for step in executor.program(()) for name in step.last_read}
    assert last["v0"] == "Relu_1"
    assert last["v1"] == "Concat_6", "the skip lives until it is joined"


def test_an_operation_without_a_function_names_the_file(net) -> None:
    n = net((1, 4, 8, 8))
    n("Conv", n.stored(4, 4, 1, 1))
    n("Det")
    with pytest.raises(ModelError, match=r"Det .*has no function.*execute/ops/"):
        Executor.open(n.model())


def test_the_first_value_that_differs_is_named(cnn: Model, samples, monkeypatch) -> None:
    wrong = dict(executor_module.OPS) | {"MaxPool": lambda call, x: x[..., ::2, ::2]}
    monkeypatch.setattr(executor_module, "OPS", wrong)
    with pytest.raises(ParityError, match="'v2' is the first that differs from ONNX Runtime"):
        verify(cnn, samples[0])


def test_a_failure_names_the_node_and_its_shapes(cnn: Model) -> None:
    with pytest.raises(ModelError, match=r"Conv 'Conv_0' failed on inputs of shapes \[\[1, 5, 8, 8\]"):
        Executor.open(cnn).run({"x": np.zeros((1, 5, 8, 8), np.float32)})


def test_integers_stay_on_the_host_and_half_precision_weights_are_read() -> None:
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[2, 3])
    weight = ir.val("w", const_value=ir.tensor(np.float16([[1, 2, 3]]), name="w"))
    node = ir.node("Mul", [x, weight], name="mul")
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], initializers=[weight], opset_imports={"": 21})
    model = Model(graph_model=ir.Model(graph, ir_version=10))
    found = Executor.open(model).run({"x": np.ones((2, 3), np.float32)})["y"]
    assert found.tolist() == [[1, 2, 3]] * 2


@pytest.mark.parametrize("fed", [False, True])
def test_a_number_stays_a_number(*, fed: bool) -> None:
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[3, 4])
    which = ir.val("which", dtype=ir.DataType.INT64, shape=[])
    if not fed:
        which.const_value = ir.tensor(np.int64(1), name="which")
    node = ir.node("Gather", [x, which], {"axis": 0}, name="gather")
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    inputs, stored = ([x, which], []) if fed else ([x], [which])
    graph = ir.Graph(inputs, [node.outputs[0]], nodes=[node], initializers=stored, opset_imports={"": 21})
    executor = Executor.open(Model(graph_model=ir.Model(graph, ir_version=10)))
    feeds = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)} | ({"which": np.array(1)} if fed else {})
    found = executor.run(feeds)["y"]
    assert found.tolist() == [4, 5, 6, 7], "an index without an axis takes the axis away"
