"""Gradients, and the corners that ONNX's own cases leave out."""

import onnx_ir as ir
import pytest
import torch

from fptq.execute.ops.call import Call
from fptq.execute.ops.reduce import OPS

REDUCTIONS = [name for name in OPS if name.startswith("Reduce")]


def apply(op, *inputs, opset=21, **attributes):
    return OPS[op](Call(ir.node(op, [], attributes), opset), *inputs)


def numbers(*shape):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1).requires_grad_()


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_gradients_of_reductions(op, keepdims):
    axes = torch.tensor([0, -1])
    assert torch.autograd.gradcheck(lambda x: apply(op, x, axes, keepdims=keepdims), (numbers(2, 3, 2),))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 13])
def test_gradients_of_what_normalizes(op, opset):
    assert torch.autograd.gradcheck(lambda x: apply(op, x, opset=opset, axis=1), (numbers(2, 3, 2),))


def test_softmax_took_all_axes_from_its_own_on_before_opset_13():
    x = numbers(2, 3, 4)
    assert torch.allclose(apply("Softmax", x, opset=12).sum((1, 2)), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(apply("Softmax", x, opset=13).sum(2), torch.ones(2, 3, dtype=torch.float64))


def test_the_gradient_of_a_norm_at_zero_is_a_number():
    x = torch.zeros(3, requires_grad=True)
    apply("ReduceL2", x).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("op", REDUCTIONS)
def test_axes_are_an_attribute_or_an_input_and_none_are_all(op):
    x = numbers(2, 3, 4).detach()
    assert torch.equal(apply(op, x, opset=11, axes=[1]), apply(op, x, torch.tensor([1])))
    assert apply(op, x, keepdims=0).shape == ()
    assert apply(op, x, torch.tensor([], dtype=torch.int64), noop_with_empty_axes=1).shape == x.shape


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.float16])
def test_a_reduction_keeps_the_type(op, dtype):
    assert apply(op, torch.ones(2, 3, dtype=dtype), torch.tensor([1])).dtype == dtype


def test_a_mean_of_integers_truncates():
    assert apply("ReduceMean", torch.tensor([-1, -2, -4]), keepdims=0).item() == -2


def test_the_last_of_equal_values_on_request():
    x = torch.tensor([[1, 3, 3], [2, 2, 0]])
    assert apply("ArgMax", x, axis=1, keepdims=0).tolist() == [1, 0]
    assert apply("ArgMax", x, axis=-1, keepdims=0, select_last_index=1).tolist() == [2, 1]
