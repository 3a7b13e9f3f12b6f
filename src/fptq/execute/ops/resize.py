"""Resampling: one axis at a time as a weighted sum of few neighbours, or by torch where it does exactly the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from fptq.errors import ModelError
from fptq.execute.ops.call import Call, Op, Result


@dataclass(frozen=True)
class _Axis:
    """One axis to be resampled.

    Attributes:
        index: Which one.
        size: Its size.
        out: Its size afterwards.
        scale: Their ratio as the node states it; `out` is rounded.
        roi: Where the part to be resampled starts and ends, as a share of the whole.
    """

    index: int
    size: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)

    @property
    def exact(self) -> bool:
        """Whether the stated ratio is the one of the sizes."""
        return math.isclose(self.scale * self.size, self.out, rel_tol=1e-6)


@dataclass(frozen=True)
class _How:
    """How a node resamples; the fields are ONNX's attributes of Resize."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False


def resize(call: Call, x: Tensor, *rest: Tensor | None) -> Result:
    """`x` with other sizes; `rest` is the region of interest, the scales and the sizes (opset 10: the scales).

    Raises:
        ModelError: A mode is unknown.
    """
    if call.opset < 11:
        return _resample(x, _How(_mode(call), "asymmetric", "simple"), _scaled(x, rest[0]))
    how = _How(
        mode=_mode(call),
        coordinates=call.string("coordinate_transformation_mode", "half_pixel"),
        nearest=call.string("nearest_mode", "round_prefer_floor"),
        cubic_a=call.float("cubic_coeff_a", -0.75),
        antialias=bool(call.int("antialias")),
        exclude_outside=bool(call.int("exclude_outside")),
    )
    axes = _axes(call, x, *rest)
    y = _resample(x, how, axes)
    if how.coordinates != "tf_crop_and_resize":
        return y
    return _extrapolated(y, axes, call.float("extrapolation_value"))


def upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Result:
    """`x` enlarged; Resize before there was one.

    Raises:
        ModelError: A mode is unknown.
    """
    stated = call.node.attributes.get_floats("scales", ()) or () if scales is None else scales
    return _resample(x, _How(_mode(call), "asymmetric", "simple"), _scaled(x, stated))


def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Result:
    """`x` (N, C, *spatial) at the points of `grid` (N, *sizes, rank), both in two or three dimensions.

    Raises:
        ModelError: The rank or the mode is not supported.
    """
    mode = call.string("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    if x.dim() not in (4, 5) or (x.dim() == 5 and mode == "bicubic"):
        raise ModelError(
            f"GridSample {call.node.name!r} samples {x.dim() - 2} spatial axes in mode {mode!r}",
            rule="two are supported, and three in the modes linear and nearest",
            remedy="Choose another mode at export",
        )
    padding, corners = call.string("padding_mode", "zeros"), bool(call.int("align_corners"))
    return functional.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=corners)


def affine_grid(call: Call, theta: Tensor, size: Tensor) -> Result:
    """The sampling points of an affine map; theta is (N, rank, rank + 1), size the image's whole shape."""
    return functional.affine_grid(theta, size.tolist(), align_corners=bool(call.int("align_corners")))


def _mode(call: Call) -> str:
    mode = call.string("mode", "nearest")
    if mode in ("nearest", "linear", "cubic"):
        return mode
    raise ModelError(f"{call.node.op_type} {call.node.name!r} has the mode {mode!r}", rule="ONNX knows no such mode")


def _axes(
    call: Call, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> tuple[_Axis, ...]:
    """The axes that a node of opset 11 or later resamples."""
    which = [axis % x.dim() for axis in call.ints("axes") or range(x.dim())]
    if sizes is None or not sizes.numel():
        axes = _scaled(x, scales, which)
    else:
        axes = _sized(x, [int(size) for size in sizes], which, call.string("keep_aspect_ratio_policy", "stretch"))
    if roi is None or call.string("coordinate_transformation_mode") != "tf_crop_and_resize":
        return axes
    starts, ends = roi.reshape(2, -1).tolist()
    return tuple(
        _Axis(axis.index, axis.size, axis.out, axis.scale, (start, end))
        for axis, start, end in zip(axes, starts, ends, strict=True)
    )


def _scaled(
    x: Tensor, scales: Tensor | Sequence[float] | None, which: Sequence[int] | None = None
) -> tuple[_Axis, ...]:
    stated = [] if scales is None else [float(scale) for scale in scales]
    pairs = zip(range(x.dim()) if which is None else which, stated, strict=True)
    return tuple(_Axis(axis, x.shape[axis], math.floor(x.shape[axis] * scale), scale) for axis, scale in pairs)


def _sized(x: Tensor, sizes: Sequence[int], which: Sequence[int], policy: str) -> tuple[_Axis, ...]:
    scales = [size / x.shape[axis] for size, axis in zip(sizes, which, strict=True)]
    if policy != "stretch":
        common = min(scales) if policy == "not_larger" else max(scales)
        scales = [common] * len(scales)
        sizes = [math.floor(common * x.shape[axis] + 0.5) for axis in which]
    return tuple(
        _Axis(axis, x.shape[axis], size, scale) for axis, size, scale in zip(which, sizes, scales, strict=True)
    )


_Map: TypeAlias = Callable[[Tensor, _Axis], Tensor]


def _half_pixel(places: Tensor, axis: _Axis) -> Tensor:
    return (places + 0.5) / axis.scale - 0.5


def _corner_to_corner(places: Tensor, axis: _Axis) -> Tensor:
    return places * (axis.size - 1) / max(axis.out - 1, 1)


def _symmetric(places: Tensor, axis: _Axis) -> Tensor:
    offset = axis.size / 2 * (1 - axis.out / (axis.scale * axis.size))
    return (offset + (places + 0.5) / axis.scale) - 0.5


def _cropped(places: Tensor, axis: _Axis) -> Tensor:
    start, end = axis.roi
    if axis.out == 1:
        return torch.full_like(places, (start + end) * (axis.size - 1) / 2)
    return start * (axis.size - 1) + places * (end - start) * (axis.size - 1) / (axis.out - 1)


_COORDINATES: Mapping[str, _Map] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda places, axis: _half_pixel(places, axis) if axis.out > 1 else torch.zeros_like(places),
    "align_corners": _corner_to_corner,
    "asymmetric": lambda places, axis: places / axis.scale,
    "tf_half_pixel_for_nn": lambda places, axis: (places + 0.5) / axis.scale,
    "tf_crop_and_resize": _cropped,
}
"""Where in the input a place in the output lies, by `coordinate_transformation_mode`."""

_NEAREST: Mapping[str, Callable[[Tensor, _Axis], Tensor]] = {
    "round_prefer_floor": lambda places, axis: (places - 0.5).ceil(),
    "round_prefer_ceil": lambda places, axis: (places + 0.5).floor(),
    "floor": lambda places, axis: places.floor(),
    "ceil": lambda places, axis: places.ceil(),
    # What runtimes do before opset 11, which does not say.
    "simple": lambda places, axis: places.ceil() if axis.scale < 1 else places.floor(),
}
"""Which element is the nearest, by `nearest_mode`."""


def _resample(x: Tensor, how: _How, axes: Sequence[_Axis]) -> Tensor:
    known = how.coordinates in _COORDINATES and how.nearest in _NEAREST
    if not known:
        raise ModelError(
            f"Resize has the modes {how.coordinates!r} and {how.nearest!r}", rule="ONNX knows no such mode"
        )
    changed = [axis for axis in axes if axis.out != axis.size or axis.scale != 1 or axis.roi != (0.0, 1.0)]
    mode = _torch_mode(x, how, changed)
    if mode is not None:
        sizes = {axis.index: axis.out for axis in changed}
        return functional.interpolate(x, [sizes.get(index, x.shape[index]) for index in range(2, x.dim())], **mode)
    y = x
    for axis in changed:
        y = _picked(y, how, axis) if how.mode == "nearest" else _weighted(y, how, axis)
    return y.to(x.dtype)


def _torch_mode(x: Tensor, how: _How, axes: Sequence[_Axis]) -> dict[str, Any] | None:
    """The arguments with which torch's `interpolate` does the same; None where it does not."""
    spatial = x.dim() - 2
    inner = all(axis.index >= 2 and axis.exact for axis in axes)
    if not axes or not inner or not 1 <= spatial <= 3 or not x.dtype.is_floating_point:
        return None
    if how.mode == "nearest":
        return {"mode": "nearest"} if all(_repeats(how, axis) for axis in axes) else None
    corners = how.coordinates == "align_corners"
    centres = how.coordinates in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel")
    one = how.coordinates == "pytorch_half_pixel" and any(axis.out == 1 for axis in axes)
    if one or how.antialias or how.exclude_outside or not (corners or centres):
        return None
    if how.mode == "linear":
        return {"mode": ("linear", "bilinear", "trilinear")[spatial - 1], "align_corners": corners}
    return {"mode": "bicubic", "align_corners": corners} if spatial == 2 and how.cubic_a == -0.75 else None


def _repeats(how: _How, axis: _Axis) -> bool:
    """Whether every element is repeated equally often: the case in which rounding does not matter."""
    times = axis.out // axis.size
    if axis.out % axis.size or times > 8:
        return False
    return torch.equal(_nearest(how, axis), torch.arange(axis.out) // times)


def _places(how: _How, axis: _Axis) -> Tensor:
    # In float32, as runtimes have it: whether a place lies between two elements exactly hangs on the rounding.
    return _COORDINATES[how.coordinates](torch.arange(axis.out, dtype=torch.float32), axis)


def _nearest(how: _How, axis: _Axis) -> Tensor:
    return _NEAREST[how.nearest](_places(how, axis), axis).clamp(0, axis.size - 1).long()


def _picked(x: Tensor, how: _How, axis: _Axis) -> Tensor:
    return x.index_select(axis.index, _nearest(how, axis).to(x.device))


def _weighted(x: Tensor, how: _How, axis: _Axis) -> Tensor:
    """One axis as a sum over the taps of the kernel, each a copy of `x` picked and scaled."""
    taps, weights = (each.to(x.device) for each in _taps(how, axis))
    shape = (-1, *(1,) * (x.dim() - axis.index - 1))
    terms = (x.index_select(axis.index, t) * w.reshape(shape) for t, w in zip(taps, weights, strict=True))
    return sum(terms, start=x.new_zeros(()))


def _taps(how: _How, axis: _Axis) -> tuple[Tensor, Tensor]:
    """Elements and their weights, both (taps, out)."""
    places = _places(how, axis)
    squeeze = min(axis.scale, 1.0) if how.antialias else 1.0
    half = math.ceil((1 if how.mode == "linear" else 2) / squeeze)
    taps = places.floor().long() + torch.arange(1 - half, half + 1)[:, None]
    away = (taps - places).abs() * squeeze
    weights = (1 - away).clamp_min(0) if how.mode == "linear" else _cubic(away, how.cubic_a)
    if how.exclude_outside:
        weights = weights * ((taps >= 0) & (taps < axis.size))
    if how.exclude_outside or how.antialias:
        weights = weights / weights.sum(0)
    return taps.clamp(0, axis.size - 1), weights


def _cubic(away: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel of R. Keys, IEEE Trans. ASSP 29 (1981), with a free coefficient."""
    near = ((a + 2) * away - (a + 3)) * away * away + 1
    far = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
    return torch.where(away <= 1, near, torch.where(away < 2, far, 0.0))


def _extrapolated(y: Tensor, axes: Sequence[_Axis], value: float) -> Tensor:
    """`y` with `value` wherever its place lies outside of the input."""
    for axis in axes:
        places = _cropped(torch.arange(axis.out, dtype=torch.float32), axis)
        outside = ((places < 0) | (places > axis.size - 1)).to(y.device)
        y = y.masked_fill(outside.reshape(-1, *(1,) * (y.dim() - axis.index - 1)), value)
    return y


OPS: Mapping[str, Op] = {
    "AffineGrid": affine_grid,
    "GridSample": grid_sample,
    "Resize": resize,
    "Upsample": upsample,
}
"""Functions by ONNX operation."""
