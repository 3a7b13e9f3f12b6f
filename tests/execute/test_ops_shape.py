"""Gradients, devices and the corners that ONNX's own cases leave out."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fptq.errors import ModelError
from fptq.execute.ops.call import Call
from fptq.execute.ops.shape import OPS


def apply(op, *inputs, opset=21, outputs=1, **attributes):
    node = ir.node(op, [], attributes, num_outputs=outputs)
    return OPS[op](Call(node, opset), *inputs)


def numbers(*shape):
    values = torch.randperm(int(np.prod(shape)), generator=torch.Generator().manual_seed(0))
    return (values.double().reshape(shape) / 7 - 1).requires_grad_()


def ints(*values):
    return torch.tensor(values)


X = numbers(2, 3, 4)
CASES = {
    "Reshape": ((X, ints(0, -1)), {}),
    "Flatten": ((X,), {"axis": 2}),
    "Transpose": ((X,), {"perm": [2, 0, 1]}),
    "Squeeze": ((numbers(1, 3, 1), ints(-1)), {}),
    "Unsqueeze": ((X, ints(0, -1)), {}),
    "Expand": ((numbers(3, 1), ints(2, 1, 4)), {}),
    "Tile": ((numbers(2, 2), ints(2, 3)), {}),
    "Concat": ((X, numbers(2, 1, 4)), {"axis": -2}),
    "Slice": ((X, ints(-1, 0), ints(-9, 3), ints(2, 1), ints(-2, 2)), {}),
    "Trilu": ((X, torch.tensor(1)), {"upper": 0}),
    "Gather": ((X, ints(-1, 0)), {"axis": 1}),
    "GatherElements": ((numbers(2, 3), torch.tensor([[0, -1], [1, 1]])), {"axis": 1}),
    "GatherND": ((X, torch.tensor([[[1, 2]], [[-1, 0]]])), {"batch_dims": 1}),
    "CumSum": ((X, torch.tensor(-1)), {"exclusive": 1, "reverse": 1}),
    "SpaceToDepth": ((numbers(1, 2, 4, 2),), {"blocksize": 2}),
    "DepthToSpace": ((numbers(1, 8, 2, 1),), {"blocksize": 2, "mode": "CRD"}),
}


@pytest.mark.parametrize("op", CASES)
def test_gradients(op):
    inputs, attributes = CASES[op]
    assert torch.autograd.gradcheck(lambda *given: apply(op, *given, **attributes), inputs)


@pytest.mark.parametrize("op", [op for op in CASES if op != "Concat"])
def test_indices_may_lie_on_the_cpu(op):
    inputs, attributes = CASES[op]
    there, *indices = inputs
    expected = apply(op, *inputs, **attributes)
    result = apply(op, there.detach().to("meta"), *indices, **attributes)
    assert (result.shape, result.device.type) == (expected.shape, "meta")


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_gradients_of_padding_in_any_rank(mode):
    pads = ints(1, 0, 2, -1)
    assert torch.autograd.gradcheck(lambda x: apply("Pad", x, pads, None, ints(2, 0), mode=mode), (X,))


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_padding_wider_than_the_axis_is_that_of_numpy(mode):
    x = torch.arange(12.0).reshape(3, 4)
    result = apply("Pad", x, ints(5, 0, 7, 9), mode=mode)
    assert np.array_equal(result.numpy(), np.pad(x.numpy(), ((5, 7), (0, 9)), mode=mode))


def test_padding_of_an_unknown_mode_is_refused():
    with pytest.raises(ModelError, match="mirror"):
        apply("Pad", X, ints(0, 0, 1, 0, 0, 1), mode="mirror")


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_gradients_of_scattering(op, reduction):
    index = ints(1, -1).reshape(2, 1)
    updates = (numbers(2, 1) if op == "ScatterElements" else numbers(2, 4)).detach() * 1.3 + 0.05
    given = (numbers(3, 4), updates.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, u: apply(op, x, index, u, reduction=reduction), given)


def test_gradients_of_the_largest():
    values, places = apply("TopK", X, ints(2), outputs=2, axis=1)
    assert torch.autograd.gradcheck(lambda x: apply("TopK", x, ints(2), outputs=2, axis=1)[0], (X,))
    assert torch.equal(X.gather(1, places), values)


def test_the_first_of_equal_values_is_the_largest():
    _, places = apply("TopK", torch.zeros(1000), ints(3), outputs=2)
    assert places.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("outputs", "attributes", "lengths"),
    [(2, {}, [3, 2]), (3, {"num_outputs": 3}, [2, 2, 1]), (2, {"split": [1, 4]}, [1, 4])],
)
def test_split_into_equal_or_given_lengths(outputs, attributes, lengths):
    parts = apply("Split", torch.arange(5), outputs=outputs, **attributes)
    assert [len(part) for part in parts] == lengths


@pytest.mark.parametrize("start", [-9, -3, 0, 2, 9])
@pytest.mark.parametrize("end", [-9, -2, 3, 9])
@pytest.mark.parametrize("step", [-3, -1, 1, 2])
def test_slices_are_those_of_python(start, end, step):
    x = torch.arange(6)
    assert apply("Slice", x, ints(start), ints(end), ints(0), ints(step)).tolist() == x.tolist()[start:end:step]


def test_axes_were_attributes_before_opset_13():
    assert apply("Squeeze", torch.ones(1, 2, 1), opset=11, axes=[2]).shape == (1, 2)
    assert apply("Slice", torch.arange(6), opset=9, starts=[1], ends=[3]).tolist() == [1, 2]


def test_a_zero_in_a_shape_copies_or_is_allowed():
    x = torch.ones(2, 3, 4)
    assert apply("Reshape", x, ints(0, 12)).shape == (2, 12)
    assert apply("Reshape", torch.ones(0, 3), ints(3, 0), allowzero=1).shape == (3, 0)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_space_and_depth_are_inverse_in_any_rank(rank, mode):
    x = torch.arange(2 * 3 * 4**rank).reshape(2, 3, *[4] * rank)
    deep = apply("SpaceToDepth", x, blocksize=2, mode=mode)
    assert deep.shape == (2, 3 * 2**rank, *[2] * rank)
    assert torch.equal(apply("DepthToSpace", deep, blocksize=2, mode=mode), x)


def test_parts_of_a_shape_and_scalars_out_of_it():
    assert apply("Shape", X, start=-2).tolist() == [3, 4]
    assert apply("Gather", apply("Shape", X), torch.tensor(-1)).item() == 4


@pytest.mark.parametrize(("given", "expected"), [((5, 0, -2), [5, 3, 1]), ((0, 5, -1), [])])
def test_a_range_may_run_down_and_be_empty(given, expected):
    assert apply("Range", *map(torch.tensor, given)).tolist() == expected


@pytest.mark.parametrize(
    ("name", "value"), [("value_float", 1.5), ("value_int", 3), ("value_floats", [1.0, 2.0]), ("value_ints", [1, 2])]
)
def test_constants_in_every_form(name, value):
    assert apply("Constant", **{name: value}).tolist() == value


def test_a_constant_of_text_is_refused():
    with pytest.raises(ModelError, match="value_string"):
        apply("Constant", value_string="a")
