"""Convolutions, and the windows that pooling shares with them, over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional

from fptq.errors import ModelError
from fptq.execute.ops.call import Call, Op, Result

Pads: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Rows added before every spatial axis, and after every one."""

ByRank: TypeAlias = tuple[Callable[..., Tensor], ...]
"""The same torch function for one, two and three spatial axes."""

CONV: ByRank = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE: ByRank = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


@dataclass(frozen=True)
class Window:
    """How a kernel sweeps over an image; one entry per spatial axis.

    Attributes:
        kernel: Number of taps.
        strides: Step from one position to the next.
        dilations: Spacing of the taps.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(cls, call: Call, kernel: Sequence[int]) -> Window:
        """The window of a node whose kernel size is known, ONNX's defaults filled in."""
        ones = (1,) * len(kernel)
        return cls(tuple(kernel), call.ints("strides") or ones, call.ints("dilations") or ones)

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def reach(self) -> tuple[int, ...]:
        """Rows from the first to the last tap, both included."""
        return tuple((taps - 1) * spacing + 1 for taps, spacing in zip(self.kernel, self.dilations, strict=True))


def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Result:
    """Convolution of `x` (N, C, *spatial) with `weight` (O, C / group, *kernel).

    Raises:
        ModelError: There are no spatial axes, or more than three.
    """
    window = Window.of(call, weight.shape[2:])
    function = of_rank(CONV, call, window.rank)
    padding, after = pads_of(call, window, x.shape[2:])
    if padding != after:
        x, padding = functional.pad(x, pad_order(padding, after)), (0,) * window.rank
    return function(x, weight, bias, window.strides, padding, window.dilations, call.int("group", 1))


def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Result:
    """Transposed convolution of `x` (N, C, *spatial) with `weight` (C, O / group, *kernel).

    Raises:
        ModelError: There are no spatial axes, or more than three.
    """
    window, group = Window.of(call, weight.shape[2:]), call.int("group", 1)
    function = of_rank(_CONV_TRANSPOSE, call, window.rank)
    extra = call.ints("output_padding") or (0,) * window.rank
    before, after = crops_of(call, window, x.shape[2:], extra)
    # Torch crops both sides alike; a far side that is cropped less is the same as more output padding.
    far = tuple(map(lambda e, b, a: e + b - a, extra, before, after))
    limits = map(max, window.strides, window.dilations)
    if min(before) >= 0 and all(0 <= rows < limit for rows, limit in zip(far, limits, strict=True)):
        return function(x, weight, bias, window.strides, before, far, group, window.dilations)
    whole = function(x, weight, None, window.strides, 0, 0, group, window.dilations)
    y = functional.pad(whole, pad_order([-rows for rows in before], [e - a for e, a in zip(extra, after, strict=True)]))
    return y if bias is None else y + bias.reshape(-1, *(1,) * window.rank)


def of_rank(functions: ByRank, call: Call, rank: int) -> Callable[..., Tensor]:
    """The function for so many spatial axes.

    Raises:
        ModelError: There are no spatial axes, or more than three.
    """
    if 1 <= rank <= len(functions):
        return functions[rank - 1]
    raise ModelError(
        f"{call.node.op_type} {call.node.name!r} has {rank} spatial axes",
        rule=f"1 to {len(functions)} are supported",
        remedy="Fold the axes that the kernel does not extend over into the batch",
    )


def pads_of(call: Call, window: Window, sizes: Sequence[int]) -> Pads:
    """The rows that a node adds around an image of these sizes, `auto_pad` resolved."""
    auto, rank = call.string("auto_pad", "NOTSET"), window.rank
    if auto == "VALID":
        return (0,) * rank, (0,) * rank
    if auto in _SAME:
        steps = [-(-size // stride) for size, stride in zip(sizes, window.strides, strict=True)]
        ends = map(lambda n, stride, reach: (n - 1) * stride + reach, steps, window.strides, window.reach)
        return _shared_out([max(end - size, 0) for end, size in zip(ends, sizes, strict=True)], upper=_SAME[auto])
    pads = call.ints("pads") or (0,) * (2 * rank)
    return pads[:rank], pads[rank:]


def pad_order(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Pads as `torch.nn.functional.pad` wants them: the last axis first.

    >>> pad_order((1, 2), (3, 4))
    [2, 4, 1, 3]
    """
    pairs = list(zip(before, after, strict=True))
    return [rows for pair in reversed(pairs) for rows in pair]


_SAME = {"SAME_UPPER": True, "SAME_LOWER": False}
"""Whether the far side takes the odd row."""


def _shared_out(totals: Sequence[int], *, upper: bool) -> Pads:
    smaller = tuple(total // 2 for total in totals)
    larger = tuple(total - half for total, half in zip(totals, smaller, strict=True))
    return (smaller, larger) if upper else (larger, smaller)


def crops_of(call: Call, window: Window, sizes: Sequence[int], extra: Sequence[int]) -> Pads:
    """The rows that a transposed convolution crops; negative where `output_shape` asks for more than there are."""
    auto, wanted = call.string("auto_pad", "NOTSET"), call.ints("output_shape")
    if wanted is None and auto in _SAME:
        wanted = tuple(size * stride for size, stride in zip(sizes, window.strides, strict=True))
    if wanted is None:
        return pads_of(call, window, sizes)
    whole = map(lambda n, s, r, e: (n - 1) * s + r + e, sizes, window.strides, window.reach, extra)
    totals = [rows - want for rows, want in zip(whole, wanted[-window.rank :], strict=True)]
    before, _ = _shared_out([max(total, 0) for total in totals], upper=auto == "SAME_UPPER")
    return before, tuple(total - rows for total, rows in zip(totals, before, strict=True))


OPS: Mapping[str, Op] = {"Conv": conv, "ConvTranspose": conv_transpose}
"""Functions by ONNX operation."""
