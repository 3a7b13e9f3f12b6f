"""Gradients, types and devices; the values are those of ONNX's own cases."""

import onnx_ir as ir
import pytest
import torch

from fptq.errors import ModelError
from fptq.execute.ops.call import Call
from fptq.execute.ops.elementwise import OPS

UNARY = {
    "Abs": {},
    "Atan": {},
    "Celu": {"alpha": 1.5},
    "Cos": {},
    "Cosh": {},
    "Elu": {"alpha": 0.7},
    "Erf": {},
    "Exp": {},
    "Gelu": {},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "HardSwish": {},
    "Identity": {},
    "LeakyRelu": {"alpha": 0.2},
    "Mish": {},
    "Neg": {},
    "Reciprocal": {},
    "Relu": {},
    "Selu": {},
    "Shrink": {"bias": 0.1, "lambd": 0.25},
    "Sigmoid": {},
    "Sin": {},
    "Sinh": {},
    "Softplus": {},
    "Softsign": {},
    "Swish": {"alpha": 1.3},
    "Tan": {},
    "Tanh": {},
    "ThresholdedRelu": {"alpha": 0.45},
}
POSITIVE = ("Log", "Sqrt", "Acos", "Asin", "Asinh", "Atanh")  # of numbers between 0 and 1
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu")


def apply(op, *inputs, opset=21, outputs=1, **attributes):
    node = ir.node(op, [], attributes, num_outputs=outputs)
    return OPS[op](Call(node, opset), *inputs)


def numbers(*shape, seed=0, low=-2.0, high=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def has_gradient(op, *inputs, **attributes):
    return torch.autograd.gradcheck(lambda *given: apply(op, *given, **attributes), inputs)


@pytest.mark.parametrize("op", UNARY)
def test_gradients_of_one_input(op):
    assert has_gradient(op, numbers(2, 3), **UNARY[op])


@pytest.mark.parametrize("op", POSITIVE)
def test_gradients_inside_the_domain(op):
    assert has_gradient(op, numbers(2, 3, low=0.1, high=0.9))


def test_gradients_of_acosh_and_of_the_other_gelu():
    assert has_gradient("Acosh", numbers(4, low=1.2))
    assert has_gradient("Gelu", numbers(4), approximate="tanh")


@pytest.mark.parametrize("op", BINARY)
def test_gradients_of_inputs_that_broadcast(op):
    assert has_gradient(op, numbers(2, 3), numbers(3, seed=1))


def test_gradients_of_powers_remainders_and_choices():
    assert has_gradient("Pow", numbers(2, 3, low=0.2), numbers(3, seed=1))
    assert has_gradient("Mod", numbers(4), torch.tensor([0.7, 1.1, 3.0, 5.0]), fmod=1)
    assert has_gradient("Where", torch.tensor([True, False, True]), numbers(2, 3), numbers(2, 1, seed=1))


def test_gradients_of_clip_reach_its_bounds():
    assert has_gradient("Clip", numbers(9), torch.tensor(-0.5), torch.tensor(0.8))
    low = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    assert has_gradient("Clip", numbers(9), low, None)


def test_clip_had_attributes_before_opset_11():
    assert apply("Clip", torch.tensor([-3.0, 3.0]), opset=6, min=-1.0, max=2.0).tolist() == [-1.0, 2.0]


def test_division_of_integers_truncates_toward_zero():
    assert apply("Div", torch.tensor([-7, 7, -7]), torch.tensor([2, -2, -2])).tolist() == [-3, -3, 3]


def test_halves_round_to_even():
    assert apply("Round", torch.tensor([0.5, 1.5, 2.5, -0.5])).tolist() == [0.0, 2.0, 2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_wide_unsigned_integers_wrap_around(dtype):
    less = apply("Sub", torch.tensor([1], dtype=dtype), torch.tensor([2], dtype=dtype))
    assert less.dtype == dtype
    assert less.view(torch.uint8).unique().tolist() == [255]


def test_a_power_keeps_the_type_of_its_base():
    assert apply("Pow", torch.tensor([3]), torch.tensor([2.0])).tolist() == [9]
    assert apply("Pow", torch.tensor([3.0]), torch.tensor([2])).dtype == torch.float32


def test_softplus_is_exact_in_double_precision():
    x = torch.tensor([21.0], dtype=torch.float64)
    assert (apply("Softplus", x) - x).item() == pytest.approx(7.582560422e-10, rel=1e-5)


def test_dropout_lets_everything_pass():
    x = torch.ones(2, 3)
    y, mask = apply("Dropout", x, outputs=2)
    assert y is x
    assert mask.all()
    with pytest.raises(ModelError, match="training mode"):
        apply("Dropout", x, torch.tensor(0.5), torch.tensor(True))


@pytest.mark.parametrize("op", ["Add", "Less", "Max"])
def test_an_operand_on_the_cpu_follows_the_other(op):
    there = torch.ones(3, device="meta")
    assert apply(op, torch.ones(3), there).device.type == "meta"
    assert apply(op, there, torch.tensor(2.0)).device.type == "meta"


def test_a_mask_on_the_cpu_follows_the_data():
    there = torch.ones(3, device="meta")
    assert apply("Where", torch.tensor([True, False, True]), there, torch.tensor(0.0)).device.type == "meta"
