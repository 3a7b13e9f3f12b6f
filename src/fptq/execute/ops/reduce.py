"""Reductions over axes, and what normalizes along one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from fptq.execute.ops.call import Call, Op

Reduction: TypeAlias = Callable[[Tensor, tuple[int, ...]], Tensor]
"""Reduces the axes, at least one, and keeps them with length 1."""


def _reduction(function: Reduction, *, each: Callable[[Tensor], Tensor] = lambda x: x) -> Op:
    """An operation that reduces.

    Args:
        function: Reduces at least one axis.
        each: What is left of it where no axis is reduced.
    """

    def op(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = _axes(call, x, axes)
        if not chosen:
            return each(x)
        reduced = function(x, chosen).to(x.dtype)
        return reduced if call.int("keepdims", 1) else reduced.squeeze(chosen)

    return op


def _axes(call: Call, x: Tensor, axes: Tensor | None) -> tuple[int, ...]:
    """The axes to reduce, counted from the front; none for a scalar."""
    given = call.ints("axes") if axes is None else axes.tolist()
    if given:
        return tuple(sorted({axis % x.dim() for axis in given}))
    return () if call.int("noop_with_empty_axes") else tuple(range(x.dim()))


def _sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.sum(axes, keepdim=True)


def _mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=True)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(_sum(x, axes), count, rounding_mode="trunc")


def _product(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


def _maximum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.amax(axes, keepdim=True) if x.numel() else _of_nothing(x, axes, _lowest(x.dtype))


def _minimum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.amin(axes, keepdim=True) if x.numel() else _of_nothing(x, axes, _highest(x.dtype))


def _of_nothing(x: Tensor, axes: tuple[int, ...], value: float) -> Tensor:
    return x.new_full([1 if axis in axes else size for axis, size in enumerate(x.shape)], value)


def _lowest(dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        return -math.inf
    return 0 if dtype == torch.bool else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        return math.inf
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max


def _l1(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return _sum(x.abs(), axes)


def _l2(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    if not x.is_floating_point():
        return _sum_of_squares(x, axes).double().sqrt()
    norm: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=True)  # its gradient at zero is zero, not NaN
    return norm


def _sum_of_squares(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return _sum(x * x, axes)


def _log_of_sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return _sum(x, axes).log()


def _log_of_sum_of_exponentials(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.double(), axes, keepdim=True)


def _place_of(function: Callable[[Tensor, int], Tensor]) -> Op:
    """The index of an extreme value: the first, or the last of equal ones."""

    def op(call: Call, x: Tensor) -> Tensor:
        axis = call.int("axis") % x.dim()
        last = bool(call.int("select_last_index"))
        found = function(x.flip(axis) if last else x, axis).unsqueeze(axis)
        found = x.shape[axis] - 1 - found if last else found
        return found if call.int("keepdims", 1) else found.squeeze(axis)

    return op


def _along(function: Callable[[Tensor], Tensor]) -> Op:
    """An operation along its axis; before opset 13, along all axes from it on as if they were one.

    Args:
        function: Works along the last axis.
    """

    def op(call: Call, x: Tensor) -> Tensor:
        if call.opset >= 13:
            axis = call.int("axis", -1)
            return function(x.movedim(axis, -1)).movedim(-1, axis) if x.dim() else function(x)
        axis = call.int("axis", 1) % max(x.dim(), 1)
        rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
        return function(rows).reshape(x.shape)

    return op


def _hardmax(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), 1)


OPS: Mapping[str, Op] = {
    "ArgMax": _place_of(torch.argmax),
    "ArgMin": _place_of(torch.argmin),
    "Hardmax": _along(_hardmax),
    "LogSoftmax": _along(lambda x: torch.log_softmax(x, -1)),
    "ReduceL1": _reduction(_l1, each=torch.abs),
    "ReduceL2": _reduction(_l2, each=torch.abs),
    "ReduceLogSum": _reduction(_log_of_sum, each=torch.log),
    "ReduceLogSumExp": _reduction(_log_of_sum_of_exponentials),
    "ReduceMax": _reduction(_maximum),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_minimum),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(_sum),
    "ReduceSumSquare": _reduction(_sum_of_squares, each=torch.square),
    "Softmax": _along(lambda x: torch.softmax(x, -1)),
}
"""Functions by ONNX operation."""
