"""Smoothing: channels that stand out behind a LayerNormalization are divided there and multiplied in what reads them.

`s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)` moves a part of an activation's range into the weights, where it costs
less: the norm's scale and offset are divided by `s`, the input rows of the weights multiplied by it.
Source: Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models,
arXiv 2211.10438, equation 4.

Logarithmic equalization asks the activation alone, `s_j = r_j / log2(2 + r_j)`: what stands out is pulled in, the more
the farther it does, and there is no exponent to search.
Source: Li et al., FPTQ: Fine-grained Post-Training Quantization for Large Language Models, arXiv 2308.15987. There
`r_j` is `max|X_j|` as it is, which fits networks of one scale; here it is relative to the median channel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.rest import put_to_rest
from fptq.rewrite.channels import channel_maxima
from fptq.rewrite.stored import write_stored
from fptq.types import Array, Feeds

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
LARGEST = 1e4
"""Factors beyond this, or below its inverse, are of channels that are all but zero: left alone."""


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """A product with a stored matrix that nobody else reads; `axis` is the one of its inputs."""

    node: str
    weight: str
    axis: int


@dataclass(frozen=True, kw_only=True)
class _Norm:
    """A norm over the last axis that only products read.

    Attributes:
        node: Its name.
        output: The value behind it.
        readers: The products.
    """

    node: str
    output: str
    readers: tuple[_Reader, ...]

    def feeds(self, products: Collection[str]) -> bool:
        """Whether one of these products reads it."""
        return any(reader.node in products for reader in self.readers)


def smooth_readers(model: Model, product: str) -> frozenset[str]:
    """Every product that reads what this one reads, where that is a norm that can be divided; else none."""
    norms = (norm for norm in _norms(model) if norm.feeds({product}))
    return frozenset(reader.node for norm in norms for reader in norm.readers)


def smoothed(model: Model, feeds: Iterable[Feeds], *, alpha: float = 0.5) -> Model | None:
    """The model with smoother activations behind its norms, exact but for rounding.

    Names of nodes and values stay, so a plan for the model is one for the result. A norm whose result goes anywhere
    but into the first input of Gemm and MatMul with weights of their own cannot be divided: left alone.

    Args:
        model: The float network.
        feeds: A few samples, for the largest magnitude of each channel.
        alpha: The share of the activation's range that moves, in [0, 1].

    Returns:
        The model; None where there is no such norm.

    Raises:
        ValueError: `alpha` is out of range.
        EngineError: ONNX Runtime failed on a sample.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha}: it is between 0 and 1")
    norms = tuple(_norms(model))
    return _rescaled(model, feeds, norms, lambda activations, weights: _factors(activations, weights, alpha))


def logarithmically_smoothed(
    model: Model, feeds: Iterable[Feeds], *, readers: Collection[str] | None = None
) -> Model | None:
    """The same with the factors of logarithmic equalization, which ask the activations alone.

    Args:
        model: The float network.
        feeds: A few samples, for the largest magnitude of each channel.
        readers: Names of products: norms that none of them reads stay as they are. None: all norms are smoothed.

    Returns:
        The model; None where there is no norm that can be divided.

    Raises:
        EngineError: ONNX Runtime failed on a sample.
    """
    norms = tuple(norm for norm in _norms(model) if readers is None or norm.feeds(readers))
    return _rescaled(model, feeds, norms, lambda activations, weights: logarithmic_factors(activations))


def _rescaled(
    model: Model, feeds: Iterable[Feeds], norms: Sequence[_Norm], factors_of: Callable[[Array, Array], Array]
) -> Model | None:
    """The model with norms divided by what this makes of the maxima of activations and weights, f64[C] each."""
    if not norms:
        return None
    maxima = channel_maxima(model, {norm.output: -1 for norm in norms}, feeds)
    changed = model.clone()
    for norm in norms:
        factors = factors_of(maxima[norm.output], _weight_maxima(model, norm))
        _divide(changed, norm, factors)
        for reader in norm.readers:
            _multiply(changed, reader, factors)
    put_to_rest(changed)
    return model.with_graph(changed)


def _factors(activations: Array, weights: Array, alpha: float) -> Array:
    """Equation 4 for each channel, f64[C]; 1 where either side is zero."""
    alive = (activations > 0) & (weights > 0)
    top, bottom = np.where(alive, activations, 1.0) ** alpha, np.where(alive, weights, 1.0) ** (1 - alpha)
    factors = np.where(alive, top / bottom, 1.0)
    return np.where((factors <= LARGEST) & (factors >= 1 / LARGEST), factors, 1.0)


def logarithmic_factors(activations: Array) -> Array:
    """FPTQ's factors for each channel, f64[C]; 1 where the channel is all but zero."""
    alive = activations[activations > 0]
    if not alive.size:
        return np.ones_like(activations)
    relative = activations / np.median(alive)
    factors = np.where(relative > 0, relative, 1.0) / np.log2(2 + relative)
    return np.where((relative >= 1 / LARGEST) & (factors <= LARGEST), factors, 1.0)


def _weight_maxima(model: Model, norm: _Norm) -> Array:
    """The largest magnitude of each input row over all readers, f64[C]."""
    found = []
    for reader in norm.readers:
        weight = query.constant(model.graph.initializers[reader.weight])
        assert weight is not None
        found.append(np.abs(weight.astype(np.float64)).max(axis=1 - reader.axis))
    return np.asarray(np.max(found, axis=0))


def _divide(changed: ir.Model, norm: _Norm, factors: Array) -> None:
    """Divide a norm's scale and offset."""
    node = query.node_named(changed, norm.node)
    for index, value in enumerate(node.inputs):
        old = query.constant(value)
        if index > 0 and old is not None:
            write_stored(changed, node, index, old / factors, label="smoothed")


def _multiply(changed: ir.Model, reader: _Reader, factors: Array) -> None:
    value = changed.graph.initializers[reader.weight]
    old = query.constant(value)
    assert old is not None
    scaled = old * (factors[:, None] if reader.axis == 0 else factors)
    value.const_value = ir.tensor(scaled.astype(old.dtype), name=reader.weight)


def _norms(model: Model) -> Iterator[_Norm]:
    for node in model.graph:
        if node.op_type not in _NORMS or node.domain or not _scales_last_axis(node):
            continue
        readers = _readers(node.outputs[0])
        if readers:
            yield _Norm(node=str(node.name), output=str(node.outputs[0].name), readers=readers)


def _scales_last_axis(node: ir.Node) -> bool:
    """Whether a norm has a stored scale, and an offset if any, for each entry of the last axis."""
    dims = query.shape(node.inputs[0])
    parts = [query.constant(value) for value in node.inputs[1:] if value is not None]
    if dims is None or not parts or query.rank(node.outputs[0]) != len(dims):
        return False
    return all(part is not None and part.shape == dims[-1:] for part in parts)


def _readers(value: ir.Value) -> tuple[_Reader, ...]:
    """The products that read a value, also through a Reshape that keeps its last axis; none if anything else does."""
    if value.is_graph_output():
        return ()
    found: list[_Reader] = []
    for node, index in query.readers(value):
        behind = _readers(node.outputs[0]) if _keeps_last_axis(node, index) else _product(node, index)
        if not behind:
            return ()
        found += behind
    return tuple(found)


def _keeps_last_axis(node: ir.Node, index: int) -> bool:
    if node.op_type not in ("Reshape", "Identity") or node.domain or index != 0:
        return False
    before, after = query.shape(node.inputs[0]), query.shape(node.outputs[0])
    if not before or not after:
        return False
    return isinstance(before[-1], int) and before[-1] == after[-1]


def _product(node: ir.Node, index: int) -> tuple[_Reader, ...]:
    """The node as a product with a matrix of its own; nothing where it is none."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain or index != 0 or node.attributes.get_int("transA", 0) == 1:
        return ()
    weight = node.inputs[1]
    stored = query.constant(weight)
    if weight is None or stored is None or stored.ndim != 2 or stored.dtype.kind != "f":
        return ()
    if len(query.readers(weight)) != 1 or weight.is_graph_output():
        return ()
    return (
        _Reader(node=str(node.name), weight=str(weight.name), axis=1 if node.attributes.get_int("transB", 0) else 0),
    )
