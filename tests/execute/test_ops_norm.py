from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fptq.errors import ModelError
from fptq.types import Array

SHAPES = pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 4, 3), (1, 6, 3, 4, 2)])
Check = Callable[..., None]
Normal = Callable[..., Array]


@SHAPES
@pytest.mark.parametrize("epsilon", [1e-5, 1e-1])
def test_stored_statistics_normalize_as_in_onnx_runtime(
    parity: Check, normal: Normal, shape: tuple[int, ...], epsilon: float
) -> None:
    inputs = [normal(*shape), normal(6), normal(6), normal(6), np.abs(normal(6)) + 0.1]
    parity("BatchNormalization", inputs, epsilon=epsilon)


def test_training_mode_is_refused(one_node: Callable[..., Any], normal: Normal) -> None:
    with pytest.raises(ModelError, match="training mode"):
        one_node("BatchNormalization", [normal(2, 3, 4), *[normal(3)] * 4], training_mode=1, outputs=3)


@SHAPES
def test_every_channel_is_normalized_as_in_onnx_runtime(parity: Check, normal: Normal, shape: tuple[int, ...]) -> None:
    parity("InstanceNormalization", [normal(*shape), normal(6), normal(6)], epsilon=1e-3)


def test_a_channel_of_one_element_becomes_the_bias(one_node: Callable[..., Any], normal: Normal) -> None:
    bias = normal(3)
    (y,) = one_node("InstanceNormalization", [normal(1, 3, 1, 1), normal(3), bias])
    np.testing.assert_allclose(y.numpy().ravel(), bias, atol=1e-4)


@SHAPES
@pytest.mark.parametrize("axis", [-1, 1, 2, -2])
@pytest.mark.parametrize("bias", [True, False])
def test_trailing_axes_are_normalized_as_in_onnx_runtime(
    parity: Check, normal: Normal, shape: tuple[int, ...], axis: int, bias: bool
) -> None:
    affine = shape[axis:]
    parity("LayerNormalization", [normal(*shape), normal(*affine), normal(*affine) if bias else None], axis=axis)


def test_mean_and_inverse_deviation_are_handed_out(parity: Check, normal: Normal) -> None:
    parity("LayerNormalization", [normal(2, 3, 8) + 3, normal(8), normal(8)], outputs=3, epsilon=1e-2)


def test_half_precision_is_normalized_in_single_precision(parity: Check, normal: Normal) -> None:
    x = (normal(2, 64) * 100 + 1000).astype("float16")
    parity("LayerNormalization", [x, np.ones(64, "float16")], outputs=1)


@SHAPES
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_groups_are_normalized_as_in_onnx_runtime(
    parity: Check, normal: Normal, shape: tuple[int, ...], groups: int
) -> None:
    parity("GroupNormalization", [normal(*shape), normal(6), normal(6)], num_groups=groups)


def test_a_scale_per_group_holds_for_all_its_channels(one_node: Callable[..., Any], normal: Normal) -> None:
    x, scale, bias = normal(2, 6, 4), normal(2), normal(2)
    (old,) = one_node("GroupNormalization", [x, scale, bias], opset=18, num_groups=2)
    (new,) = one_node("GroupNormalization", [x, scale.repeat(3), bias.repeat(3)], num_groups=2)
    np.testing.assert_array_equal(old.numpy(), new.numpy())


@pytest.mark.parametrize("axis", [-1, 1])
def test_mean_squares_are_normalized_as_in_onnx_runtime(parity: Check, normal: Normal, axis: int) -> None:
    parity("RMSNormalization", [normal(2, 3, 8), normal(*(2, 3, 8)[axis:])], opset=23, axis=axis, epsilon=1e-2)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 1])
def test_norms_are_divided_out_as_in_onnx_runtime(parity: Check, normal: Normal, p: int, axis: int) -> None:
    parity("LpNormalization", [normal(2, 3, 4)], p=p, axis=axis)


def test_what_has_no_norm_stays_zero(one_node: Callable[..., Any]) -> None:
    (y,) = one_node("LpNormalization", [np.zeros((2, 3), np.float32)])
    assert not y.any()


@pytest.mark.parametrize("size", [1, 3, 5])
def test_neighbouring_channels_inhibit_as_in_onnx_runtime(parity: Check, normal: Normal, size: int) -> None:
    parity("LRN", [normal(2, 6, 4, 3)], size=size, alpha=0.5, beta=0.6, bias=1.5)


@pytest.mark.parametrize("axes", [None, [2, 3], [0, 1, 2, 3]])
def test_mean_and_variance_are_taken_out_as_in_onnx_runtime(
    parity: Check, normal: Normal, axes: list[int] | None
) -> None:
    parity("MeanVarianceNormalization", [normal(2, 3, 4, 5)], **({} if axes is None else {"axes": axes}))


@pytest.mark.parametrize(
    ("op", "parameters", "attributes"),
    [
        ("BatchNormalization", 4, {}),  # the statistics as well
        ("InstanceNormalization", 2, {}),
        ("GroupNormalization", 2, {"num_groups": 2}),
        ("LpNormalization", 0, {}),
        ("LRN", 0, {"size": 3, "alpha": 0.5}),
        ("MeanVarianceNormalization", 0, {"axes": [0, 2]}),
    ],
)
def test_gradients_pass(gradients: Check, normal: Normal, op: str, parameters: int, attributes: dict[str, Any]) -> None:
    inputs = [normal(2, 4, 3, dtype="float64"), *(abs(normal(4, dtype="float64")) + 0.5 for _ in range(parameters))]
    gradients(op, inputs, **attributes)


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_gradients_pass_over_trailing_axes(gradients: Check, normal: Normal, op: str) -> None:
    gradients(op, [normal(2, 3, 4, dtype="float64"), normal(3, 4, dtype="float64")], axis=1)
