"""The float and the quantized network side by side, layer after layer, each part of them run once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from fptq.execute import Executor, Hook, Overlay
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.plan.encoding import Encoding
from fptq.reconstruct.covariance import Inputs
from fptq.reconstruct.products import Product
from fptq.types import Array, Feeds

Values: TypeAlias = dict[str, torch.Tensor]
State: TypeAlias = Mapping[str, Array | torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Revised:
    """A hook that quantizes as an overlay does, but for the stored values that were found since.

    Attributes:
        overlay: Quantizes.
        found: What weights and biases are now, in place of what the overlay says; put in what follows is to see.
    """

    overlay: Overlay
    found: dict[Placement, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def encoding(self) -> Encoding:
        """What becomes what."""
        return self.overlay.encoding

    def __call__(self, placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        known = self.found.get(placement)
        return self.overlay(placement, tensor) if known is None else known


class Walk:
    """All samples at a cut through both networks, which moves on from layer to layer.

    What is behind a layer in the graph sees that layer as it was rounded: layers are taken in the graph's order, and
    the cut never passes one that is not done. Where the values at a cut do not fit into memory the cut stays, and
    layers further on are reached from there again for each of them.
    """

    def __init__(self, reference: Executor, executor: Executor, feeds: Iterable[Feeds], hook: Revised) -> None:
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
