from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fptq.errors import ModelError
from fptq.types import Array

RANKS = pytest.mark.parametrize("rank", [1, 2, 3])
Check = Callable[..., None]
Normal = Callable[..., Array]

COORDINATES = pytest.mark.parametrize(
    "coordinates", ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
SCALES = pytest.mark.parametrize(
    "scales",
    [(2.0, 2.0, 2.0), (1.7, 2.3, 1.0), (0.65, 0.5, 0.8), (3.0, 0.25, 1.5)],
    ids=["twice", "up", "down", "both"],
)


def scaled(*scales: float) -> list[Array | None]:
    return [None, np.array([1, 1, *scales], np.float32)]


def sized(*sizes: int) -> list[Array | None]:
    return [None, None, np.array(sizes, np.int64)]


@RANKS
@COORDINATES
@SCALES
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_elements_are_those_of_onnx_runtime(
    parity: Check, normal: Normal, rank: int, coordinates: str, scales: tuple[float, ...], nearest: str
) -> None:
    how = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    parity("Resize", [normal(2, 3, *(5, 6, 4)[:rank]), *scaled(*scales[:rank])], **how)


@RANKS
@COORDINATES
@SCALES
def test_linear_weights_are_those_of_onnx_runtime(
    parity: Check, normal: Normal, rank: int, coordinates: str, scales: tuple[float, ...]
) -> None:
    how = {"mode": "linear", "coordinate_transformation_mode": coordinates}
    parity("Resize", [normal(2, 3, *(5, 6, 4)[:rank]), *scaled(*scales[:rank])], **how)


@COORDINATES
@SCALES
@pytest.mark.parametrize("exclude_outside", [0, 1])
@pytest.mark.parametrize("a", [-0.75, -0.5])
def test_cubic_weights_are_those_of_onnx_runtime(
    parity: Check, normal: Normal, coordinates: str, scales: tuple[float, ...], exclude_outside: int, a: float
) -> None:
    how = {"coordinate_transformation_mode": coordinates, "exclude_outside": exclude_outside, "cubic_coeff_a": a}
    parity("Resize", [normal(2, 3, 5, 6), *scaled(*scales[:2])], mode="cubic", **how)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@SCALES
def test_antialiasing_is_that_of_onnx_runtime(
    parity: Check, normal: Normal, mode: str, scales: tuple[float, ...]
) -> None:
    parity("Resize", [normal(2, 3, 9, 8), *scaled(*scales[:2])], mode=mode, antialias=1)


@RANKS
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_sizes_are_met(parity: Check, normal: Normal, rank: int, mode: str) -> None:
    parity("Resize", [normal(2, 3, *(5, 6, 4)[:rank]), *sized(2, 3, *(7, 3, 9)[:rank])], mode=mode)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_the_aspect_ratio_is_kept(parity: Check, normal: Normal, policy: str, mode: str) -> None:
    how = {"mode": mode, "keep_aspect_ratio_policy": policy, "axes": [2, 3]}
    parity("Resize", [normal(1, 2, 5, 6), *sized(8, 7)], **how)


def test_axes_name_what_is_resized(parity: Check, normal: Normal) -> None:
    parity("Resize", [normal(1, 2, 5, 6), None, np.array([2, 0.5], np.float32)], mode="linear", axes=[3, 2])


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_region_is_cropped_and_extrapolated(parity: Check, normal: Normal, mode: str) -> None:
    roi = np.array([0, 0, 0.2, -0.3, 1, 1, 1.4, 0.8], np.float32)
    how = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0}
    parity("Resize", [normal(1, 2, 5, 6), roi, None, np.array([1, 2, 4, 7], np.int64)], mode=mode, **how)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.5, 0.6)])
def test_before_opset_11_places_start_at_the_corner(
    parity: Check, normal: Normal, mode: str, scales: tuple[float, ...]
) -> None:
    parity("Resize", [normal(1, 2, 5, 6), np.array([1, 1, *scales], np.float32)], opset=10, mode=mode)


@RANKS
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsampling_is_that_of_onnx_runtime(parity: Check, normal: Normal, rank: int, mode: str) -> None:
    scales = [1.0, 1.0, *(2.0, 3.0, 1.5)[:rank]]
    parity("Upsample", [normal(1, 2, *(5, 4, 4)[:rank]), np.array(scales, np.float32)], opset=9, mode=mode)


def test_upsampling_once_had_its_scales_as_an_attribute(parity: Check, normal: Normal) -> None:
    parity("Upsample", [normal(1, 2, 3, 4)], opset=7, scales=[1.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_points_of_a_plane_are_those_of_onnx_runtime(
    parity: Check, normal: Normal, mode: str, padding: str, corners: int
) -> None:
    how = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    parity("GridSample", [normal(2, 3, 5, 6), normal(2, 4, 3, 2) * 0.8], **how)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("corners", [0, 1])
def test_points_of_a_volume_are_those_of_onnx_runtime(parity: Check, normal: Normal, mode: str, corners: int) -> None:
    parity("GridSample", [normal(1, 2, 4, 5, 3), normal(1, 2, 3, 4, 3) * 0.8], mode=mode, align_corners=corners)


def test_old_names_of_modes_are_known(parity: Check, normal: Normal) -> None:
    parity("GridSample", [normal(1, 2, 4, 5), normal(1, 3, 3, 2)], opset=16, mode="bilinear")


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_affine_points_are_those_of_onnx_runtime(parity: Check, normal: Normal, corners: int, rank: int) -> None:
    size = np.array([2, 3, 4, 5, 6][: rank + 2], np.int64)
    parity("AffineGrid", [normal(2, rank, rank + 1), size], align_corners=corners)


@pytest.mark.parametrize("scale", range(2, 9))
def test_repeating_elements_is_exact_at_any_size(one_node: Callable[..., Any], scale: int) -> None:
    x = torch.arange(1000, dtype=torch.float32).reshape(1, 1, 1000)
    (y,) = one_node("Resize", [x, *scaled(scale)], coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    assert torch.equal(y, x.repeat_interleave(scale, dim=2))


@RANKS
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scale", [2.0, 1.6, 0.7])
def test_gradients_pass(gradients: Check, normal: Normal, rank: int, mode: str, scale: float) -> None:
    x = normal(1, 1, *[3] * rank, dtype="float64")
    gradients("Resize", [x, *scaled(*[scale] * rank)], mode=mode)


def test_gradients_pass_antialiasing(gradients: Check, normal: Normal) -> None:
    gradients("Resize", [normal(1, 1, 6, dtype="float64"), *scaled(0.4)], mode="linear", antialias=1)


def test_gradients_pass_to_the_points(gradients: Check, normal: Normal) -> None:
    gradients("GridSample", [normal(1, 1, 3, 3, dtype="float64"), normal(1, 2, 2, 2, dtype="float64") * 0.5])


@pytest.mark.parametrize("how", [{"mode": "spline"}, {"nearest_mode": "up"}, {"coordinate_transformation_mode": "x"}])
def test_unknown_modes_are_refused(one_node: Callable[..., Any], normal: Normal, how: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="knows no such mode"):
        one_node("Resize", [normal(1, 1, 3), *scaled(2.0)], **how)


def test_cubic_points_of_a_volume_are_refused(one_node: Callable[..., Any], normal: Normal) -> None:
    with pytest.raises(ModelError, match="linear and nearest"):
        one_node("GridSample", [normal(1, 1, 2, 2, 2), normal(1, 1, 1, 1, 3)], mode="cubic")
