"""The float and the quantized network side by side, layer after layer, each part of them run once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from fptq.execute import Executor, Hook
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import dequantize
from fptq.numerics.torch_uniform import fake_quantize_tensor
from fptq.plan.encoding import Encoding
from fptq.reconstruct.covariance import Inputs
from fptq.reconstruct.products import Product
from fptq.types import Array, Feeds

Values: TypeAlias = dict[str, torch.Tensor]
State: TypeAlias = Mapping[str, Array | torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A hook that quantizes as an encoding says, weights with learned codes included, and as was found since.

    Attributes:
        encoding: What becomes what.
        weights: Weights as they are after rounding, each made when it is first met; put another one in to replace it.
        biases: Stored values that are replaced, by name.
    """

    encoding: Encoding
    weights: dict[Placement, torch.Tensor] = field(default_factory=dict, repr=False)
    biases: Values = field(default_factory=dict, repr=False)

    def __call__(self, placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        if placement.consumer is None and placement.value in self.biases:
            return self.biases[placement.value]
        spec = self.encoding.plan.specs.get(placement)
        if spec is None:
            return tensor
        if placement not in self.encoding.plan.weights:
            return fake_quantize_tensor(tensor, spec, self.encoding.params[placement])
        if placement not in self.weights:
            self.weights[placement] = self._rounded(placement, tensor)
        return self.weights[placement]

    def _rounded(self, placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        spec, params = self.encoding.plan.specs[placement], self.encoding.params[placement]
        codes = self.encoding.codes.get(placement)
        if codes is None:
            return fake_quantize_tensor(tensor, spec, params)
        return torch.from_numpy(dequantize(codes, spec, params)).to(tensor)


class Walk:
    """All samples at a cut through both networks, which moves on from layer to layer.

    What is behind a layer in the graph sees that layer as it was rounded: layers are taken in the graph's order, and
    the cut never passes one that is not done. Where the values at a cut do not fit into memory the cut stays, and
    layers further on are reached from there again for each of them.
    """

    def __init__(self, reference: Executor, executor: Executor, feeds: Iterable[Feeds], hook: Simulation) -> None:
        """At the networks' inputs.

        Args:
            reference: The float network.
            executor: The network that is quantized: the same nodes, with other weights perhaps.
            feeds: The samples.
            hook: Quantizes.
        """
        self._executors = (reference, executor)
        self._hook = hook
        self._cut = executor.input_names
        self._states: list[tuple[State, State]] = [(sample, sample) for sample in feeds]

    def __len__(self) -> int:
        return len(self._states)

    def move(self, product: Product, memory: int) -> None:
        """Take the cut in front of a layer.

        Args:
            product: The layer; none before it will change any more.
            memory: The cut stays where it is if the values there would need more bytes.
        """
        ahead = _live(self._executors[1].model, product)
        if ahead == self._cut:
            return
        runs = self._runs(ahead, range(len(self)))
        first = next(runs)
        if memory < len(self) * sum(value.nbytes for values in first for value in values.values()):
            return
        for index, values in enumerate(itertools.chain([first], runs)):
            self._states[index] = values
        self._cut = ahead

    def inputs(self, product: Product, samples: Iterable[int]) -> Iterator[Inputs]:
        """A layer's input in both networks, sample by sample."""
        name = product.source.value
        for exact, quantized in self._runs((name,), samples):
            yield exact[name], self._hook(product.source, quantized[name])

    def outputs(self, product: Product, samples: Iterable[int]) -> Iterator[Inputs]:
        """A layer's output in both networks, before it is quantized itself."""
        name = product.output

        def before(placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
            return tensor if placement == Placement(name) else self._hook(placement, tensor)

        for exact, quantized in self._runs((name,), samples, before):
            yield exact[name], quantized[name]

    def _runs(
        self, names: tuple[str, ...], samples: Iterable[int], hook: Hook | None = None
    ) -> Iterator[tuple[Values, Values]]:
        """Values of both networks, sample by sample, from the cut as it is now."""
        exact, quantized = (executor.part(self._cut, names) for executor in self._executors)
        for index in samples:
            states = self._states[index]
            yield exact.run(states[0]), quantized.run(states[1], hook=hook or self._hook)


def _live(model: Model, product: Product) -> tuple[str, ...]:
    """The values that are known before a layer runs and that it, or a node behind it, reads."""
    nodes = list(model.graph)
    place = next(i for i, node in enumerate(nodes) if node.name == product.name)
    known = [info.name for info in model.inputs] + [str(v.name) for node in nodes[:place] for v in node.outputs]
    read = {str(value.name) for node in nodes[place:] for value in node.inputs if value is not None}
    return tuple(name for name in known if name in read)
