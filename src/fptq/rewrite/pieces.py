"""Channels that reach far in several pieces of one scale: two regions and more in a single product.

What a channel has beyond the ends `[l, h]` of a quantizer is handed on: `x_1 = x - clip(x)`, `x_2 = x_1 - clip(x_1)`,
... stand behind the other channels, and behind the rows of the weight stand those rows again, so that
`W x = [W W_J W_K ...] [x x_1 x_2 ...]`. Every part is quantized with the same scale, which saturates by itself at its
ends: the piecewise-linear quantizer whose regions have equal steps, in one product that is a little longer.
Source: the duplicated rows are outlier channel splitting (Zhao et al., Improving Neural Network Quantization without
Retraining using Outlier Channel Splitting, ICML 2019, arXiv 1901.09504), which halves a channel; cutting it at the
quantizer's ends keeps the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.placement import Placement
from fptq.numerics import QuantizerSpec, UniformParams, fake_quantize
from fptq.plan.encoding import Encoding
from fptq.plan.profile import input_axis
from fptq.rewrite.draft import Draft
from fptq.rewrite.insertion import Insertion
from fptq.rewrite.piecewise import UNBOUNDED
from fptq.rewrite.product_inputs import ProductInput
from fptq.types import Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """How channels are cut.

    Attributes:
        params: The numbers of the one quantizer.
        rounds: Channels that have a second piece, those that have a third one, and so on: each ascending, each a part
            of the one before. What a channel has beyond its last piece saturates.
    """

    params: UniformParams
    rounds: tuple[tuple[int, ...], ...]

    @cached_property
    def extra(self) -> int:
        """Channels that the product becomes longer by."""
        return sum(len(channels) for channels in self.rounds)

    def ends(self, spec: QuantizerSpec) -> tuple[Array, Array]:
        """The lowest and highest value of a piece, f32."""
        low, high = self.params.range(spec)
        return low.astype(np.float32), high.astype(np.float32)

    def fake_quantize(self, rows: Array, spec: QuantizerSpec) -> Array:
        """What the product sees of `f32[R, C]`."""
        found = fake_quantize(rows, spec, self.params)
        low, high = self.ends(spec)
        rest = rows
        for channels in self.rounds:
            rest = rest - np.clip(rest, low, high)
            found[:, channels] += fake_quantize(rest, spec, self.params)[:, channels]
        return found


def cut_in_pieces(draft: Draft, encoding: Encoding, *, cut: ProductInput, pieces: Pieces) -> Encoding:
    """Cut channels of an activation in pieces.

    The float network computes the same, but for the order of additions, whatever its input. Names of nodes and values
    stay; the products read a longer activation and a longer weight, whose codes are those of the original.

    Args:
        draft: The float network; changed in place.
        encoding: Its quantizers.
        cut: What is cut, one of `product_inputs`.
        pieces: Where, and which channels.
    """
    longer = _Writer(draft=draft, readers=cut.readers, cut=cut, pieces=pieces).write()
    return _longer_encoding(encoding, cut, pieces, longer)


@dataclass(frozen=True, kw_only=True)
class _Longer:
    """A weight with rows that stand there again: what it was, what it is, and the axis of its rows."""

    old: Placement
    new: Placement
    axis: int


def _longer_encoding(encoding: Encoding, cut: ProductInput, pieces: Pieces, longer: Sequence[_Longer]) -> Encoding:
    plan, renamed = encoding.plan, {one.old: one.new for one in longer}
    renamed |= {p: Placement(_joined(cut), p.consumer, p.index) for p in cut.placements}
    params = {renamed.get(p, p): encoding.params[p] for p in plan.specs}
    params |= {renamed[p]: pieces.params for p in cut.placements}
    codes = {renamed.get(p, p): found for p, found in encoding.codes.items()}
    for one in longer:
        if one.new in codes:
            codes[one.new] = _lengthened(codes[one.new], pieces.rounds, one.axis)
    return replace(
        encoding,
        plan=replace(
            plan,
            specs={renamed.get(p, p): spec for p, spec in plan.specs.items()},
            weights=frozenset(renamed.get(p, p) for p in plan.weights),
            ties=tuple(frozenset(renamed.get(p, p) for p in tie) for tie in plan.ties),
        ),
        params=params,
        codes=codes,
    )


def _joined(cut: ProductInput) -> str:
    return f"{cut.value}_pieces"


def _lengthened(weight: Array, rounds: Sequence[Sequence[int]], axis: int) -> Array:
    return np.concatenate([weight, *(np.take(weight, channels, axis=axis) for channels in rounds)], axis=axis)


@dataclass(kw_only=True)
class _Writer(Insertion):
    """Cuts channels of one activation of a draft."""

    cut: ProductInput
    pieces: Pieces

    def write(self) -> list[_Longer]:
        joined = self._within(self._together(query.values(self.changed)[self.cut.value]))
        return [self._lengthen(query.node_named(self.changed, name), joined) for name in self.cut.readers]

    def _together(self, source: ir.Value) -> ir.Value:
        """All channels, and behind them what exceeds the ends, round by round."""
        name, axis = self.cut.value, self.cut.axis
        low, high = (
            self.stored(f"{name}_piece_{end}", value)
            for end, value in zip(("low", "high"), self.pieces.ends(self.cut.spec), strict=True)
        )
        parts, rest, had = [source], source, tuple(range(self.cut.channels))
        for number, channels in enumerate(self.pieces.rounds, start=2):
            indices = np.searchsorted(had, channels).astype(np.int64)
            taken = self.op(
                "Gather",
                [rest, self.stored(f"{name}_channels_{number}", indices)],
                f"{name}_taken_{number}",
                like=rest,
                axis=axis,
            )
            self._resized(taken, len(channels))
            clipped = self.op("Clip", [taken, low, high], f"{name}_clipped_{number}", like=taken)
            rest = self.op("Sub", [taken, clipped], f"{name}_piece_{number}", like=taken)
            parts, had = [*parts, rest], channels
        joined = self.op("Concat", parts, f"{name}_joined", like=source, axis=axis)
        return self._resized(joined, self.cut.channels + self.pieces.extra)

    def _within(self, joined: ir.Value) -> ir.Value:
        """Clipped where the rest has been handed on. A quantizer behind it saturates there by itself."""
        rank = query.rank(joined)
        assert rank is not None
        last = [*self.pieces.rounds[1:], ()]
        on = [np.isin(range(self.cut.channels), self.pieces.rounds[0])]
        on += [np.isin(had, more) for had, more in zip(self.pieces.rounds, last, strict=True)]
        handed_on, found, name = np.concatenate(on), joined, _joined(self.cut)
        low, high = self.pieces.ends(self.cut.spec)
        for op, end, free in (("Max", low, -UNBOUNDED), ("Min", high, UNBOUNDED)):
            ends = np.where(handed_on, end, free).astype(np.float32)
            bounds = self.stored(f"{name}_{op.lower()}", ends.reshape(-1, *[1] * (rank - 1 - self.cut.axis)))
            found = self.op(op, [found, bounds], name if op == "Min" else f"{name}_floored", like=joined)
        return found

    def _lengthen(self, node: ir.Node, joined: ir.Value) -> _Longer:
        weight = node.inputs[1]
        content = query.constant(weight)
        assert weight is not None
        assert content is not None
        axis = input_axis(node, content.ndim)
        longer = self.stored(f"{node.name}_pieces_weight", _lengthened(content, self.pieces.rounds, axis))
        node.replace_input_with(0, joined)
        node.replace_input_with(1, longer)
        if not weight.uses() and not weight.is_graph_output():
            del self.changed.graph.initializers[str(weight.name)]
        return _Longer(
            old=Placement(str(weight.name), str(node.name), 1),
            new=Placement(str(longer.name), str(node.name), 1),
            axis=axis,
        )

    def _resized(self, value: ir.Value, channels: int) -> ir.Value:
        if value.shape is not None:
            dims = list(value.shape)
            dims[self.cut.axis] = channels
            value.shape = ir.Shape(dims)
        return value
