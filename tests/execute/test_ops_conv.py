from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fptq.errors import ModelError
from fptq.types import Array

RANKS = pytest.mark.parametrize("rank", [1, 2, 3])
Check = Callable[..., None]
Normal = Callable[..., Array]


def spatial(*per_axis: int, rank: int) -> list[int]:
    return list(per_axis[:rank])


def case(rank: int, name: str) -> dict[str, Any]:
    near, far = spatial(1, 2, 0, rank=rank), spatial(3, 0, 1, rank=rank)
    return {
        "plain": {},
        "symmetric": {"pads": near + near, "strides": spatial(2, 1, 2, rank=rank)},
        "asymmetric": {"pads": near + far, "strides": spatial(2, 3, 1, rank=rank)},
        "dilated": {"pads": [2] * 2 * rank, "dilations": spatial(2, 1, 2, rank=rank)},
        "valid": {"auto_pad": "VALID", "strides": [2] * rank},
        "same_upper": {"auto_pad": "SAME_UPPER", "strides": spatial(2, 3, 2, rank=rank)},
        "same_lower": {"auto_pad": "SAME_LOWER", "strides": spatial(2, 3, 2, rank=rank)},
    }[name]


CASES = pytest.mark.parametrize(
    "name", ["plain", "symmetric", "asymmetric", "dilated", "valid", "same_upper", "same_lower"]
)


@RANKS
@CASES
@pytest.mark.parametrize("group", [1, 2])
def test_a_convolution_is_that_of_onnx_runtime(parity: Check, normal: Normal, rank: int, name: str, group: int) -> None:
    sizes, kernel = spatial(8, 7, 6, rank=rank), spatial(3, 4, 2, rank=rank)
    inputs = [normal(2, 4, *sizes), normal(6, 4 // group, *kernel), normal(6)]
    parity("Conv", inputs, group=group, **case(rank, name))


def test_same_padding_counts_dilated_taps(one_node: Callable[..., Any], normal: Normal) -> None:
    # ONNX Runtime refuses this combination.
    inputs = [normal(1, 2, 9), normal(3, 2, 4)]
    (same,) = one_node("Conv", inputs, auto_pad="SAME_UPPER", dilations=[3])
    (stated,) = one_node("Conv", inputs, pads=[4, 5], dilations=[3])
    assert same.shape[2] == 9
    assert torch.equal(same, stated)


def test_depthwise_without_bias(parity: Check, normal: Normal) -> None:
    parity("Conv", [normal(1, 4, 5, 5), normal(4, 1, 3, 3)], group=4, pads=[1, 1, 1, 1])


@RANKS
@CASES
@pytest.mark.parametrize("group", [1, 2])
def test_a_transposed_convolution_is_that_of_onnx_runtime(
    parity: Check, normal: Normal, rank: int, name: str, group: int
) -> None:
    sizes, kernel = spatial(5, 4, 3, rank=rank), spatial(3, 4, 3, rank=rank)
    inputs = [normal(2, 4, *sizes), normal(4, 6 // group, *kernel), normal(6)]
    parity("ConvTranspose", inputs, group=group, **case(rank, name))


@RANKS
@pytest.mark.parametrize("far", [0, 1, 3])
def test_output_padding_and_asymmetric_pads_go_together(parity: Check, normal: Normal, rank: int, far: int) -> None:
    sizes, kernel = spatial(4, 3, 3, rank=rank), [3] * rank
    inputs = [normal(1, 2, *sizes), normal(2, 3, *kernel), normal(3)]
    pads = [1] * rank + [far] * rank
    parity("ConvTranspose", inputs, strides=[3] * rank, output_padding=spatial(2, 1, 0, rank=rank), pads=pads)


@RANKS
@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [8, 9, 10])
def test_an_output_shape_sets_the_pads(parity: Check, normal: Normal, rank: int, auto_pad: str, size: int) -> None:
    inputs = [normal(1, 2, *[4] * rank), normal(2, 3, *[4] * rank), normal(3)]
    parity("ConvTranspose", inputs, strides=[2] * rank, output_shape=[size] * rank, auto_pad=auto_pad)


@RANKS
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_gradients_pass_asymmetric_pads(gradients: Check, normal: Normal, rank: int, op: str) -> None:
    x, weight = normal(1, 2, *[3] * rank, dtype="float64"), normal(2, 1, *[2] * rank, dtype="float64")
    gradients(op, [x, weight, normal(2, dtype="float64")], group=2, pads=[1] * rank + [0] * rank, strides=[2] * rank)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_four_spatial_axes_are_refused(one_node: Callable[..., Any], normal: Normal, op: str) -> None:
    with pytest.raises(ModelError, match="'node' has 4 spatial axes"):
        one_node(op, [normal(1, 1, 2, 2, 2, 2), normal(1, 1, 1, 1, 1, 1)])
