"""The float and the quantized network side by side, layer after layer, each part of them run once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from fptq.execute import Executor, Hook
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import dequantize
from fptq.numerics.torch_uniform import fake_quantize_tensor
from fptq.plan.encoding import Encoding
from fptq.reconstruct.covariance import Inputs
from fptq.reconstruct.products import Product
from fptq.types import Feeds

Values = dict[str, torch.Tensor]


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
        self._networks: tuple[tuple[Executor, Hook | None], ...] = ((reference, None), (executor, hook))
        self._hook = hook
        self._cut = executor.input_names
        self._states: list[tuple[Mapping[str, object], ...]] = [(dict(sample), dict(sample)) for sample in feeds]

    def __len__(self) -> int:
        return len(self._states)

    def move(self, product: Product, memory: int) -> None:
        """Take the cut in front of a layer.

        Args:
            product: The layer; none before it will change any more.
            memory: The cut stays where it is if the values there would need more bytes.
        """
        model = self._networks[1][0].model
        ahead = _live(model, product)
        if ahead == self._cut:
            return
        first = self._run(0, ahead)
        if memory < len(self) * sum(value.nbytes for values in first for value in values.values()):
            return
        for index in range(len(self)):
            self._states[index] = first if index == 0 else self._run(index, ahead)
        self._cut = ahead

    def inputs(self, product: Product, samples: Iterable[int]) -> Iterator[Inputs]:
        """A layer's input in both networks, sample by sample."""
        name = product.source.value
        for index in samples:
            exact, quantized = (values[name] for values in self._run(index, (name,)))
            yield exact, self._hook(product.source, quantized)

    def outputs(self, product: Product, samples: Iterable[int]) -> Iterator[Inputs]:
        """A layer's output in both networks, before it is quantized itself."""
        name = product.output

        def before(placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
            return tensor if placement == Placement(name) else self._hook(placement, tensor)

        for index in samples:
            exact, quantized = self._run(index, (name,), before)
            yield exact[name], quantized[name]

    def _run(self, index: int, names: tuple[str, ...], hook: Hook | None = None) -> tuple[Values, ...]:
        hooks = (None, hook or self._hook)
        return tuple(
            executor.part(self._cut, names).run(state, hook=seen)  # type: ignore[arg-type]
            for (executor, _), state, seen in zip(self._networks, self._states[index], hooks, strict=True)
        )


def _live(model: Model, product: Product) -> tuple[str, ...]:
    """The values that are known before a layer runs and that it, or a node behind it, reads."""
    nodes = list(model.graph)
    place = next(i for i, node in enumerate(nodes) if node.name == product.name)
    known = [info.name for info in model.inputs] + [str(v.name) for node in nodes[:place] for v in node.outputs]
    read = {str(value.name) for node in nodes[place:] for value in node.inputs if value is not None}
    return tuple(name for name in known if name in read)
