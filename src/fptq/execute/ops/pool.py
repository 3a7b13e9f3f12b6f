"""Pooling over one to three spatial axes; the global ones over any number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fptq.execute.ops.call import Call, Op, Result
from fptq.execute.ops.conv import CONV, ByRank, Window, of_rank, pad_order, pads_of

_MAX: ByRank = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE: ByRank = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


@dataclass(frozen=True)
class _Sweep:
    """A pooling window over one image.

    Attributes:
        window: Kernel, strides and dilations.
        before: Rows added before each spatial axis.
        after: Rows that the node adds after each.
        end: Rows to add after each so that every position that ONNX counts fits, and no other.
        ceil: Whether a last position that fits in part counts.
    """

    window: Window
    before: tuple[int, ...]
    after: tuple[int, ...]
    end: tuple[int, ...]
    ceil: bool

    @property
    def symmetric(self) -> bool:
        """Whether torch can pad on its own: alike on both sides, by half a kernel at most."""
        small = all(2 * rows <= taps for rows, taps in zip(self.before, self.window.kernel, strict=True))
        return small and self.before == self.after


def max_pool(call: Call, x: Tensor) -> Result:
    """The largest element under each position of the window; on request also its flat index in `x`.

    Raises:
        ModelError: `x` is (N, C, *spatial) with more than three spatial axes.
    """
    sweep, dtype = _sweep(call, x), x.dtype
    function = of_rank(_MAX, call, sweep.window.rank)
    if not dtype.is_floating_point:
        x = x.float()  # torch pools no small integers; float32 holds them exactly
    sizes, before, ceil = x.shape[2:], sweep.before, sweep.ceil
    if not sweep.symmetric:
        x, before, ceil = functional.pad(x, pad_order(before, sweep.end), value=-math.inf), (0,) * len(before), False
    window, indices = sweep.window, call.outputs > 1
    found = function(x, window.kernel, window.strides, before, window.dilations, ceil, indices)
    if not indices:
        return found.to(dtype)
    shift = (0,) * len(before) if sweep.symmetric else sweep.before
    places = _flat_index(found[1], x.shape[2:], shift, sizes, column_major=call.int("storage_order") == 1)
    return found[0].to(dtype), places


def average_pool(call: Call, x: Tensor) -> Result:
    """The mean under each position of the window, padding counted or not.

    Raises:
        ModelError: `x` is (N, C, *spatial) with more than three spatial axes.
    """
    sweep, padded = _sweep(call, x), bool(call.int("count_include_pad"))
    window = sweep.window
    function = of_rank(_AVERAGE, call, window.rank)
    if sweep.symmetric and set(window.dilations) == {1}:
        return function(x, window.kernel, window.strides, sweep.before, sweep.ceil, padded)
    # What lies beyond the node's own padding is counted in no case.
    ones = functional.pad(x.new_ones(1, 1, *x.shape[2:]), pad_order(sweep.before, sweep.after), value=float(padded))
    beyond = [end - rows for end, rows in zip(sweep.end, sweep.after, strict=True)]
    counts = _sum_under(functional.pad(ones, pad_order([0] * window.rank, beyond)), window)
    return _sum_under(functional.pad(x, pad_order(sweep.before, sweep.end)), window) / counts


def lp_pool(call: Call, x: Tensor) -> Result:
    """The p-norm under each position of the window.

    Raises:
        ModelError: `x` is (N, C, *spatial) with more than three spatial axes.
    """
    sweep, p = _sweep(call, x), call.int("p", 2)
    of_rank(CONV, call, sweep.window.rank)
    sums = _sum_under(functional.pad(x.abs().pow(p), pad_order(sweep.before, sweep.end)), sweep.window)
    # A root has no slope at zero.
    return sums.clamp_min(torch.finfo(x.dtype).tiny).pow(1 / p)


def global_average_pool(call: Call, x: Tensor) -> Result:
    """The mean over all spatial axes."""
    return x.mean(_spatial(x), keepdim=True)


def global_max_pool(call: Call, x: Tensor) -> Result:
    """The largest element over all spatial axes."""
    return x.amax(_spatial(x), keepdim=True)


def global_lp_pool(call: Call, x: Tensor) -> Result:
    """The p-norm over all spatial axes."""
    norm: Tensor = torch.linalg.vector_norm(x, call.int("p", 2), _spatial(x), keepdim=True)
    return norm


def max_unpool(call: Call, x: Tensor, indices: Tensor, output_shape: Tensor | None = None) -> Result:
    """Zeros with the elements of `x` where MaxPool had found them.

    `indices` refer to the image that the attributes imply; a larger `output_shape` only adds zeros on the far side.
    """
    kernel = call.ints("kernel_shape") or ()
    window = Window.of(call, kernel)
    before, after = pads_of(call, window, x.shape[2:])
    crops = [b + a for b, a in zip(before, after, strict=True)]
    spatial = map(lambda n, s, k, c: (n - 1) * s + k - c, x.shape[2:], window.strides, kernel, crops)
    shape = (*x.shape[:2], *spatial)
    flat = x.new_zeros(math.prod(shape)).scatter(0, indices.to(x.device).flatten(), x.flatten())
    y = flat.reshape(shape)
    if output_shape is None:
        return y
    return functional.pad(
        y, pad_order([0] * y.dim(), [int(want) - n for want, n in zip(output_shape, shape, strict=True)])
    )


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


def _sweep(call: Call, x: Tensor) -> _Sweep:
    window = Window.of(call, call.ints("kernel_shape") or ())
    sizes, ceil = x.shape[2:], bool(call.int("ceil_mode"))
    before, after = pads_of(call, window, sizes)
    end = tuple(
        _end(size, (rows, more), stride, reach, ceil=ceil)
        for size, rows, more, stride, reach in zip(sizes, before, after, window.strides, window.reach, strict=True)
    )
    return _Sweep(window, before, after, end, ceil)


def _end(size: int, pads: tuple[int, int], stride: int, reach: int, *, ceil: bool) -> int:
    room = size + sum(pads) - reach
    steps = -(-room // stride) if ceil else room // stride
    if ceil and steps * stride >= size + pads[0]:
        steps -= 1  # a position that starts beyond the image sees nothing of it
    return steps * stride + reach - size - pads[0]


def _sum_under(x: Tensor, window: Window) -> Tensor:
    """Sums under each position; a convolution, since torch's pooling knows no dilation."""
    ones = x.new_ones(1, 1, *window.kernel)
    planes = x.reshape(-1, 1, *x.shape[2:])
    sums = CONV[window.rank - 1](planes, ones, None, window.strides, 0, window.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _flat_index(
    index: Tensor, padded: Sequence[int], shift: Sequence[int], sizes: Sequence[int], *, column_major: bool
) -> Tensor:
    """Indices in a padded plane as ONNX counts them: in the whole unpadded tensor, padding at `shift`."""
    places: list[Tensor] = []
    for size, rows in zip(reversed(padded), reversed(shift), strict=True):
        places.append(index % size - rows)
        index = index // size
    plane = math.prod(sizes)
    first = torch.arange(index.shape[0] * index.shape[1], device=index.device) * plane
    flat = first.reshape(*index.shape[:2], *(1,) * len(sizes))
    step = 1
    # `places` runs from the last axis on, the order in which row-major steps grow.
    order = list(zip(places, reversed(sizes), strict=True))
    for place, size in reversed(order) if column_major else order:
        flat = flat + place * step
        step *= size
    return flat


OPS: Mapping[str, Op] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
}
"""Functions by ONNX operation."""
