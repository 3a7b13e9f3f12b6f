"""One node, computed here and by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper

from fptq.execute.ops import OPS, Call
from fptq.types import Array

Inputs: TypeAlias = Sequence[Array | None]


def make_node(op: str, given: Sequence[bool], outputs: int, attributes: dict[str, Any]) -> onnx.NodeProto:
    names = [f"x{index}" if here else "" for index, here in enumerate(given)]
    while names and not names[-1]:  # trailing inputs that are left out have no name at all
        names.pop()
    return helper.make_node(op, names, [f"y{index}" for index in range(outputs)], name="node", **attributes)


def run_here(node: onnx.NodeProto, inputs: Sequence[torch.Tensor | None], opset: int) -> tuple[torch.Tensor, ...]:
    values = [None if x is None else ir.val(f"x{index}") for index, x in enumerate(inputs)]
    attributes = [ir.from_proto(attribute) for attribute in node.attribute]
    inner = ir.Node("", node.op_type, values, attributes, num_outputs=len(node.output), name="node")
    found = OPS[node.op_type](Call(inner, opset), *inputs)
    return found if isinstance(found, tuple) else (found,)


def run_there(node: onnx.NodeProto, inputs: Inputs, opset: int) -> list[Array]:
    feeds = {f"x{index}": x for index, x in enumerate(inputs) if x is not None}
    stated = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for k, x in feeds.items()
    ]
    asked = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "one", stated, asked)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.fixture
def parity() -> Callable[..., None]:
    """Holds a node's outputs against ONNX Runtime's: the same shapes and types, 1e-4 of the largest value apart."""

    def check(op: str, inputs: Inputs, *, opset: int = 21, outputs: int = 1, **attributes: Any) -> None:
        node = make_node(op, [x is not None for x in inputs], outputs, attributes)
        tensors = [None if x is None else torch.from_numpy(x) for x in inputs]
        here, there = run_here(node, tensors, opset), run_there(node, inputs, opset)
        assert len(here) == len(there)
        for ours, theirs in zip(here, there, strict=True):
            assert tuple(ours.shape) == theirs.shape
            assert ours.numpy().dtype == theirs.dtype
            largest = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=1e-6))
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-4 * largest)

    return check


@pytest.fixture
def gradients() -> Callable[..., None]:
    """Holds a node's gradients against differences, for every floating-point input in float64."""

    def check(op: str, inputs: Inputs, *, opset: int = 21, **attributes: Any) -> None:
        node = make_node(op, [x is not None for x in inputs], 1, attributes)
        tensors = [None if x is None else torch.from_numpy(x) for x in inputs]
        which = [index for index, x in enumerate(tensors) if x is not None and x.dtype == torch.float64]
        free = [x.requires_grad_() for index in which if (x := tensors[index]) is not None]

        def function(*values: torch.Tensor) -> torch.Tensor:
            filled = dict(zip(which, values, strict=True))
            return run_here(node, [filled.get(index, x) for index, x in enumerate(tensors)], opset)[0]

        assert torch.autograd.gradcheck(function, free)

    return check


@pytest.fixture
def one_node() -> Callable[..., tuple[torch.Tensor, ...]]:
    """Computes a node here; inputs are arrays or tensors."""

    def run(
        op: str, inputs: Sequence[Any], *, opset: int = 21, outputs: int = 1, **how: Any
    ) -> tuple[torch.Tensor, ...]:
        node = make_node(op, [x is not None for x in inputs], outputs, how)
        return run_here(node, [None if x is None else torch.as_tensor(x) for x in inputs], opset)

    return run


@pytest.fixture
def normal() -> Callable[..., Array]:
    """Normal random numbers of a shape."""
    rng = np.random.default_rng(0)

    def draw(*shape: int, dtype: str = "float32") -> Array:
        return rng.standard_normal(shape).astype(dtype)

    return draw
