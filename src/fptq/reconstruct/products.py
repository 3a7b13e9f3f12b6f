"""Layers as what they are to least squares: a matrix of weights times rows of inputs, for any spatial rank.

Output channel `o` of group `g` at one output position is `matrix[g, o] . row[g]`. A convolution's row is the window
that its kernel sees there. A transposed convolution is a convolution with the flipped kernel over its input with
`stride - 1` zeros put between neighbours, so that it has rows too: each sees one tap in `stride` of every channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch.nn import functional

from fptq.execute.ops.call import Call
from fptq.execute.ops.conv import Window, crops_of, pad_order, pads_of
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.plan.plan import Plan, Refusal


@dataclass(frozen=True, kw_only=True)
class Product(ABC):
    """A layer with a stored, quantized weight.

    Attributes:
        call: Its node.
        source: Its input, as it alone sees it.
        weight: Its weight.
        shape: The weight's shape as it is stored.
    """

    call: Call
    source: Placement
    weight: Placement
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.call.node.name)

    @property
    def output(self) -> str:
        """Name of the value that it computes."""
        return str(self.call.node.outputs[0].name)

    @property
    def group(self) -> int:
        """Number of groups: each has weights and inputs of its own."""
        return self.call.int("group", 1)

    @property
    def channels(self) -> int:
        """Number of output channels, of all groups."""
        return self.shape[self.row_axis]

    @property
    @abstractmethod
    def channel_axis(self) -> int:
        """The axis of the output that counts rows of the weight matrix."""

    @property
    @abstractmethod
    def row_axis(self) -> int:
        """The axis of the stored weight that counts output channels (of one group, where groups share it)."""

    @abstractmethod
    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor of the weight's shape as `[G, R, K]`: groups, output channels, inputs of a row."""

    @abstractmethod
    def stored(self, matrix: torch.Tensor) -> torch.Tensor:
        """The inverse of `matrix`."""

    @abstractmethod
    def windows(self, x: torch.Tensor) -> torch.Tensor:
        """A view of an input as `[*positions, *row]`: positions of the output, samples included, and what each sees."""

    @property
    @abstractmethod
    def row_axes(self) -> int:
        """How many axes of `windows` make a row."""

    def rows(self, windows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The rows at some positions.

        Args:
            windows: What `windows` made of an input.
            chosen: i64[n], numbers of positions in C order.

        Returns:
            `[G, n, K]`.
        """
        picked = windows[torch.unravel_index(chosen, windows.shape[: -self.row_axes])]
        return picked.reshape(len(chosen), self.group, -1).transpose(0, 1)

    def positions(self, windows: torch.Tensor) -> int:
        """How many output positions an input has."""
        return int(torch.Size(windows.shape[: -self.row_axes]).numel())


class Convolution(Product):
    """Conv: weight `[O, C / group, *kernel]`."""

    @property
    def channel_axis(self) -> int:
        return 1

    @property
    def row_axis(self) -> int:
        return 0

    @property
    def row_axes(self) -> int:
        return 1 + self.window.rank

    @property
    def window(self) -> Window:
        """How the kernel sweeps."""
        return Window.of(self.call, self.shape[2:])

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(self.group, self.shape[0] // self.group, -1)

    def stored(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.reshape(self.shape)

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        return _swept(x, self.window, *pads_of(self.call, self.window, x.shape[2:]))


class TransposedConvolution(Convolution):
    """ConvTranspose: weight `[C, O / group, *kernel]`."""

    @property
    def channels(self) -> int:
        return self.group * self.shape[1]

    @property
    def row_axis(self) -> int:
        return 1

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        grouped = weight.flip(self._taps).reshape(self.group, -1, *self.shape[1:])
        return grouped.transpose(1, 2).reshape(self.group, self.shape[1], -1)

    def stored(self, matrix: torch.Tensor) -> torch.Tensor:
        channels, outputs, *kernel = self.shape
        grouped = matrix.reshape(self.group, outputs, channels // self.group, *kernel)
        return grouped.transpose(1, 2).reshape(self.shape).flip(self._taps)

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        window, sizes = self.window, x.shape[2:]
        extra = self.call.ints("output_padding") or (0,) * window.rank
        before, after = crops_of(self.call, window, sizes, extra)
        spread = [(size - 1) * stride + 1 for size, stride in zip(sizes, window.strides, strict=True)]
        expanded = x.new_zeros((*x.shape[:2], *spread))
        every = slice(None)
        expanded[(every, every, *(slice(None, None, stride) for stride in window.strides))] = x
        near = [reach - 1 - rows for reach, rows in zip(window.reach, before, strict=True)]
        far = [reach - 1 - rows + more for reach, rows, more in zip(window.reach, after, extra, strict=True)]
        dense = Window(window.kernel, (1,) * window.rank, window.dilations)
        return _swept(expanded, dense, near, far)

    @property
    def _taps(self) -> tuple[int, ...]:
        return tuple(range(2, len(self.shape)))


class MatrixProduct(Product):
    """Gemm, and MatMul with a stored matrix on either side; Gemm's `alpha` scales all errors alike."""

    @property
    def channel_axis(self) -> int:
        return -2 if self.source.index == 1 else -1

    @property
    def row_axis(self) -> int:
        return 0 if self.source.index == 1 or self.call.int("transB") else 1

    @property
    def row_axes(self) -> int:
        return 1

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight.T if self.row_axis else weight)[None]

    def stored(self, matrix: torch.Tensor) -> torch.Tensor:
        return (matrix[0].T if self.row_axis else matrix[0]).contiguous()

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        turned = self.source.index == 1 or self.call.int("transA")
        return x.transpose(-2, -1) if turned else x.reshape(-1, x.shape[-1])


def products(model: Model, plan: Plan) -> tuple[tuple[Product, ...], tuple[Refusal, ...]]:
    """The layers whose weights a plan quantizes, in the graph's order; and the other weights, with the reason."""
    found: list[Product] = []
    refusals: list[Refusal] = []
    for node in model.graph:
        for placement in _own(node, plan.weights):
            made = _product(Call(node, model.opset), placement)
            if isinstance(made, Product):
                found.append(made)
            else:
                refusals.append(Refusal(node=str(node.name), op=node.op_type, reason=made))
    return tuple(found), tuple(refusals)


def _own(node: ir.Node, weights: Iterable[Placement]) -> list[Placement]:
    names = {str(value.name) for value in node.inputs if value is not None}
    mine = (p for p in weights if p.value in names and p.consumer in (None, node.name))
    return sorted(mine, key=lambda p: p.index or 0)


_KINDS: dict[str, tuple[type[Product], tuple[int, ...]]] = {
    "Conv": (Convolution, (1,)),
    "ConvTranspose": (TransposedConvolution, (1,)),
    "Gemm": (MatrixProduct, (1,)),
    "MatMul": (MatrixProduct, (0, 1)),
}
"""Classes by ONNX operation, with the inputs that may hold the weight."""


def _product(call: Call, placement: Placement) -> Product | str:
    """The layer of a weight, or why it has no rows."""
    node = call.node
    if node.op_type not in _KINDS:
        return f"{node.op_type} is no matrix product"
    kind, allowed = _KINDS[node.op_type]
    index = next((i for i, value in enumerate(node.inputs) if value is not None and value.name == placement.value), 0)
    value, other = node.inputs[index], node.inputs[1 - index]
    shape = query.static_shape(value)
    if index not in allowed or shape is None or other is None or value is None:
        return "its weight is not where a matrix product has it"
    if len(query.readers(value)) > 1:
        return "its weight is read by several nodes, whose inputs differ"
    if kind is MatrixProduct and len(shape) != 2:
        return f"its weight has {len(shape)} axes; a matrix has 2"
    if query.constant(other) is not None:
        return "its input is stored too"
    return kind(call=call, source=Placement(str(other.name), str(node.name), 1 - index), weight=placement, shape=shape)


def _swept(x: torch.Tensor, window: Window, before: Iterable[int], after: Iterable[int]) -> torch.Tensor:
    """The windows of a kernel as a view `[N, *out, C, *kernel]`."""
    x = functional.pad(x, pad_order(list(before), list(after)))
    for axis, reach in enumerate(window.reach):
        x = x.unfold(2 + axis, reach, window.strides[axis])[..., :: window.dilations[axis]]
    return x.movedim(1, 1 + window.rank)
