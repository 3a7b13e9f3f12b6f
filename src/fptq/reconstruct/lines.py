"""Slope and offset of each output channel that bring a quantized layer nearest to the float one, and where they go.

`y ~ slope * y_q + offset` by least squares for each channel, over all positions of all samples; the idea is that of
PTQD's correlated noise (He et al., NeurIPS 2023, arXiv 2305.10657), regressed the other way round. A slope multiplies
the scale of the channel's weights, codes unchanged, and its bias; an offset goes into the bias: both are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from fptq.graph import query
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, UniformParams
from fptq.plan.plan import Plan
from fptq.reconstruct.covariance import Inputs
from fptq.reconstruct.products import Product, TransposedConvolution
from fptq.types import Array


@dataclass(frozen=True, kw_only=True)
class Line:
    """`slope * y_q + offset` for each channel, f64[C]."""

    slope: torch.Tensor
    offset: torch.Tensor

    @classmethod
    def identity(cls, channels: int) -> Line:
        """What changes nothing."""
        return cls(slope=torch.ones(channels, dtype=torch.float64), offset=torch.zeros(channels, dtype=torch.float64))

    def where(self, chosen: torch.Tensor, other: Line) -> Line:
        """This one in some channels, another one elsewhere."""
        return Line(
            slope=torch.where(chosen, self.slope, other.slope), offset=torch.where(chosen, self.offset, other.offset)
        )


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over samples and positions for each channel, f64[C]: all that lines are fitted to and judged by.

    Attributes:
        count: Positions in all.
        exact: Sum of the float outputs `y`.
        found: Sum of the quantized ones `y_q`.
        squares: Sum of `y^2`.
        mixed: Sum of `y y_q`.
        powers: Sum of `y_q^2`.
    """

    count: int
    exact: torch.Tensor
    found: torch.Tensor
    squares: torch.Tensor
    mixed: torch.Tensor
    powers: torch.Tensor

    @classmethod
    def of(cls, outputs: Iterable[Inputs], axis: int) -> Moments:
        """Add up a layer's outputs, `(y, y_q)` for each sample, whose channels are along an axis."""
        count, sums = 0, torch.zeros(())
        for pair in outputs:
            y, y_q = (value.movedim(axis, 0).flatten(1).double().cpu() for value in pair)
            count += y.shape[1]
            sums = sums + torch.stack([part.sum(1) for part in (y, y_q, y * y, y * y_q, y_q * y_q)])
        exact, found, squares, mixed, powers = sums
        return cls(count=count, exact=exact, found=found, squares=squares, mixed=mixed, powers=powers)

    def error(self, line: Line) -> torch.Tensor:
        """Squared error of each channel behind a line."""
        a, b = line.slope, line.offset
        constant = self.squares - 2 * b * self.exact + self.count * b * b
        return constant - 2 * a * self.mixed + a * a * self.powers + 2 * a * b * self.found

    def fitted(self, allowed: Allowed) -> Line:
        """The best line; slopes that are not positive are no scales, and stay 1."""
        slope = torch.ones_like(self.exact)
        if allowed.slope is None:
            centre = self.exact * self.found / self.count if allowed.offset is None else torch.zeros_like(self.exact)
            spread = self.powers - (self.found.square() / self.count if allowed.offset is None else 0)
            best = (self.mixed - centre) / spread
            slope = torch.where((spread > 0) & (best > 0) & best.isfinite(), best, slope)
        offset = (self.exact - slope * self.found) / self.count
        return Line(slope=slope, offset=offset if allowed.offset is None else torch.zeros_like(offset))


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What of a line can be folded into a layer exactly; otherwise why not.

    Attributes:
        slope: None: slopes go into the scales of the weights.
        offset: None: offsets go into the bias.
    """

    slope: str | None
    offset: str | None

    @classmethod
    def of(cls, product: Product, plan: Plan) -> Allowed:
        """What a layer allows."""
        if _normalized(product):
            removed = "the InstanceNormalization behind it removes slopes and offsets"
            return cls(slope=removed, offset=removed)
        return cls(slope=_no_slope(product, plan), offset=_no_offset(product))


def mean_is_free(product: Product) -> bool:
    """Whether weights may shift the mean of each output channel: a bias sets it, or a normalisation removes it."""
    return _normalized(product) or _no_offset(product) is None


def chosen_line(fitted: Moments, held: Moments, allowed: Allowed) -> Line:
    """For each channel the line, the offset alone or neither: what is best on samples that were not fitted to."""
    best = Line.identity(len(fitted.exact))
    for option in (Allowed(slope="not tried", offset=allowed.offset), allowed):
        line = fitted.fitted(option)
        best = line.where(held.error(line) < held.error(best), best)
    return best


def scaled(product: Product, spec: QuantizerSpec, params: UniformParams, slope: torch.Tensor) -> UniformParams:
    """The numbers of a layer's weight with the scales of each output channel multiplied by its slope."""
    factors: Array = slope.numpy()
    if isinstance(spec.granularity, PerBlock):
        view = [1] * params.scale.ndim
        view[product.row_axis] = len(factors)
        factors = factors.reshape(view)
    return UniformParams(scale=params.scale * factors, zero_point=params.zero_point)


def bias_name(product: Product) -> str:
    """Name of a layer's bias, or of the one that it is given."""
    value = _bias(product.call.node)
    return f"{product.name}_output_correction" if value is None else str(value.name)


def new_bias(product: Product, line: Line) -> Array:
    """The bias behind a line, f64[C]."""
    old = query.constant(_bias(product.call.node))
    start = np.zeros(len(line.slope)) if old is None else old.astype(np.float64)
    return np.asarray(start * line.slope.numpy() + line.offset.numpy() / product.call.float("beta", 1.0))


def with_biases(graph_model: ir.Model, biases: Mapping[str, tuple[str, Array]]) -> None:
    """Write biases into a graph: name and content for each node, which may have none yet."""
    for node_name, (name, content) in biases.items():
        node = query.node_named(graph_model, node_name)
        stored = graph_model.graph.initializers.get(name)
        if stored is not None and stored.const_value is not None:
            content = content.astype(stored.const_value.dtype.numpy())
            stored.const_value = ir.tensor(content, name=name)
            continue
        added = ir.val(name, const_value=ir.tensor(content.astype(np.float32), name=name))
        graph_model.graph.register_initializer(added)
        node.resize_inputs(3)
        node.replace_input_with(2, added)


def _normalized(product: Product) -> bool:
    reader = query.sole_reader(product.call.node.outputs[0])
    return reader is not None and reader.op_type == "InstanceNormalization"


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _no_offset(product: Product) -> str | None:
    node = product.call.node
    if node.op_type == "MatMul":
        return "MatMul has no bias"
    if product.call.float("beta", 1.0) == 0:
        return "its beta is 0"
    bias = _bias(node)
    if bias is None:
        return None
    own = query.constant(bias) is not None and len(query.readers(bias)) == 1
    return (
        None if own and query.static_shape(bias) == (product.channels,) else "its bias is computed, shared or no vector"
    )


def _no_slope(product: Product, plan: Plan) -> str | None:
    granularity = plan.specs[product.weight].granularity
    if len(plan.tied(product.weight)) > 1:
        return "its weight shares scales with other placements"
    if product.group > 1 and isinstance(product, TransposedConvolution):
        return "its groups share scales"
    bias = _bias(product.call.node)
    if bias is not None and _no_offset(product) is not None:
        return "its bias cannot be changed"
    axes = len(product.shape)
    match granularity:
        case PerTensor():
            return "all channels share one scale"
        case PerChannel(axis=axis):
            return None if axis % axes == product.row_axis else "its scales do not belong to output channels"
        case PerBlock(axis=axis):
            return None if axis % axes != product.row_axis else "output channels share scales"
