from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fptq.errors import ModelError
from fptq.types import Array

RANKS = pytest.mark.parametrize("rank", [1, 2, 3])
CEIL = pytest.mark.parametrize("ceil_mode", [0, 1])
Check = Callable[..., None]
Normal = Callable[..., Array]

SIZES, KERNEL = (9, 8, 7), (3, 4, 2)


def case(rank: int, name: str) -> dict[str, Any]:
    strides = [2, 3, 2][:rank]
    near, far = [1, 2, 0][:rank], [0, 1, 1][:rank]
    return {
        "plain": {},
        "strided": {"strides": strides},
        "symmetric": {"pads": near + near, "strides": strides},
        "asymmetric": {"pads": near + far, "strides": strides},
        "wide": {"pads": [2, 3, 1][:rank] + [2, 3, 1][:rank], "strides": strides},
        "dilated": {"dilations": [2, 2, 3][:rank], "pads": near + far, "strides": [2] * rank},
        "valid": {"auto_pad": "VALID", "strides": strides},
        "same_upper": {"auto_pad": "SAME_UPPER", "strides": strides},
        "same_lower": {"auto_pad": "SAME_LOWER", "strides": strides},
    }[name]


CASES = pytest.mark.parametrize(
    "name",
    ["plain", "strided", "symmetric", "asymmetric", "wide", "dilated", "valid", "same_upper", "same_lower"],
)


@RANKS
@CASES
@CEIL
def test_the_largest_elements_are_those_of_onnx_runtime(
    parity: Check, normal: Normal, rank: int, name: str, ceil_mode: int
) -> None:
    inputs = [normal(2, 3, *SIZES[:rank])]
    parity("MaxPool", inputs, kernel_shape=list(KERNEL[:rank]), ceil_mode=ceil_mode, **case(rank, name))


@RANKS
@pytest.mark.parametrize("name", ["strided", "symmetric", "asymmetric", "dilated", "same_lower"])
@pytest.mark.parametrize("storage_order", [0, 1])
def test_indices_count_in_the_whole_tensor_without_padding(
    parity: Check, normal: Normal, rank: int, name: str, storage_order: int
) -> None:
    how = {"kernel_shape": list(KERNEL[:rank]), "storage_order": storage_order, **case(rank, name)}
    parity("MaxPool", [normal(2, 3, *SIZES[:rank])], outputs=2, **how)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_small_integers_are_pooled_exactly(parity: Check, dtype: str) -> None:
    x = np.random.default_rng(0).integers(-128 if dtype == "int8" else 0, 128, (1, 2, 6, 6)).astype(dtype)
    parity("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])


@RANKS
@CASES
@CEIL
@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_means_are_those_of_onnx_runtime(
    parity: Check, normal: Normal, rank: int, name: str, ceil_mode: int, count_include_pad: int
) -> None:
    how = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad, **case(rank, name)}
    parity("AveragePool", [normal(2, 3, *SIZES[:rank])], kernel_shape=list(KERNEL[:rank]), **how)


@RANKS
@pytest.mark.parametrize("name", ["strided", "symmetric", "asymmetric", "dilated", "same_upper"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms_are_those_of_onnx_runtime(parity: Check, normal: Normal, rank: int, name: str, p: int) -> None:
    parity("LpPool", [normal(2, 3, *SIZES[:rank])], kernel_shape=list(KERNEL[:rank]), p=p, **case(rank, name))


@RANKS
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pooling_leaves_one_element_per_channel(parity: Check, normal: Normal, rank: int, op: str) -> None:
    parity(op, [normal(2, 3, *SIZES[:rank])], **({"p": 3} if op == "GlobalLpPool" else {}))


@RANKS
def test_unpooling_puts_every_maximum_back(parity: Check, normal: Normal, rank: int) -> None:
    x = normal(2, 3, *[2] * rank)
    # One element of every block of two along each axis of an image of size four.
    places = np.arange(6 * 4**rank).reshape(2, 3, *[4] * rank)[(..., *[slice(1, None, 2)] * rank)]
    parity("MaxUnpool", [x, places.astype(np.int64)], kernel_shape=[2] * rank, strides=[2] * rank)


@RANKS
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("name", ["symmetric", "asymmetric"])
def test_gradients_pass(gradients: Check, normal: Normal, rank: int, op: str, name: str) -> None:
    gradients(op, [normal(1, 1, *[4] * rank, dtype="float64")], kernel_shape=list(KERNEL[:rank]), **case(rank, name))


def test_a_norm_of_zeros_has_a_finite_gradient(one_node: Callable[..., Any]) -> None:
    x = torch.zeros(1, 1, 4, requires_grad=True)
    (y,) = one_node("LpPool", [x], kernel_shape=[2])
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[0.0] * 4]]


def test_four_spatial_axes_are_refused(one_node: Callable[..., Any], normal: Normal) -> None:
    with pytest.raises(ModelError, match="4 spatial axes"):
        one_node("MaxPool", [normal(1, 1, 2, 2, 2, 2)], kernel_shape=[1, 1, 1, 1])
