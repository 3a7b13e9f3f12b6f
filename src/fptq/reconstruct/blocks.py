"""What is reconstructed at a time: regions of the graph with one output, found by its shape alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.plan.plan import Plan
from fptq.plan.profile import STORED_WEIGHTS
from fptq.reconstruct.flow import Flow, bits

Extent = Literal["layer", "block", "pack"]

_MOST_WEIGHTS = 8
"""A residual addition around more than this is a long skip, not a block."""

_JOINS = ({"Add", "Sum"}, {"MatMul"}, {"Mul"})
"""Residual additions before attention (a product of two activations) before gates."""

_ACTIVATIONS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Gelu", "Elu", "Selu", "Softplus", "HardSwish"}
    | {"HardSigmoid", "Mish", "Swish", "Erf", "Softmax", "Softsign", "Celu", "ThresholdedRelu"}
)
_NORMS = frozenset({"BatchNormalization", "InstanceNormalization", "GroupNormalization"})
_ABSORBED = _ACTIVATIONS | _NORMS | {"Add", "Mul", "Sub", "Div"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of the network with one output, and its quantizers.

    Attributes:
        name: Its first node with a quantized weight.
        nodes: Names of its nodes, in their order.
        inputs: The values that it reads; a skip that enters half-way is one of them.
        output: The value that it computes for others.
        weights: The quantizers of its weights, never empty.
        activations: The quantizers of what its nodes read and make.
        channels: The channel axis of the output: 1 behind convolutions, otherwise the last.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str
    weights: tuple[Placement, ...]
    activations: tuple[Placement, ...]
    channels: int


def blocks_of(model: Model, plan: Plan, *, extent: Extent = "block", pack_size: int = 2) -> tuple[Block, ...]:
    """The blocks of a plan in the order in which they run; every quantized weight is in exactly one of them.

    A block is the smallest region around a residual addition, an attention product or a gate whose values leave it in
    one place only; a long skip around many layers, or around other blocks, makes none. Layers outside blocks stand by
    themselves, each with the normalisation and activation behind it. Nodes without weights in front belong to the
    block that alone reads them, so that their quantizers are learned with it.

    Args:
        model: The network.
        plan: What is quantized.
        extent: Layers only, blocks, or packs of neighbouring blocks (Pack-PTQ).
        pack_size: At most so many blocks in a pack.
    """
    search = _Search(flow=Flow.of(model), plan=plan)
    regions = search.layers([]) if extent == "layer" else search.layers(search.blocks())
    if extent == "pack":
        regions = search.packs(regions, pack_size)
    seen: set[Placement] = set()
    found: list[Block] = []
    for region in regions:
        block = search.block(region)
        found.append(replace(block, weights=tuple(p for p in block.weights if p not in seen)))
        seen.update(block.weights)
    return tuple(block for block in found if block.weights)


@dataclass(frozen=True, kw_only=True)
class _Search:
    flow: Flow
    plan: Plan

    def blocks(self) -> list[int]:
        """Regions around joins, the smallest first, that do not meet."""
        taken, found = 0, []
        for ops in _JOINS:
            joins = (i for i, node in enumerate(self.flow.nodes) if node is not None and node.op_type in ops)
            for region in sorted(filter(None, map(self.flow.between, joins)), key=int.bit_count):
                count = sum(1 for _ in self._weighted(region))
                if 0 < count <= _MOST_WEIGHTS and not region & taken and len(self.flow.exits(region)) == 1:
                    found.append(region)
                    taken |= region
        return found

    def layers(self, blocks: list[int]) -> list[int]:
        """The blocks, every other layer by itself, and around each of them what goes with it."""
        taken = sum(blocks)
        every = self._weighted(sum(1 << i for i, node in enumerate(self.flow.nodes) if node is not None))
        alone = [1 << index for index in every if not taken >> index & 1]
        regions = blocks + [layer for layer in alone if self.flow.exits(layer)]  # some nets compute what nobody reads
        taken, grown = sum(regions), []
        for region in sorted(regions, key=int.bit_length):
            wider = self._with_absorbed(region, taken)
            taken |= wider
            grown.append(wider)
        for place, region in enumerate(grown):
            grown[place] = self._with_front(region, taken)
            taken |= grown[place]
        return sorted(grown, key=int.bit_length)

    def packs(self, regions: list[int], size: int) -> list[int]:
        """Neighbours joined while nothing but the last one's output leaves the pack."""
        packed: list[tuple[int, int]] = []
        for region in regions:
            if packed and packed[-1][1] < size and len(self.flow.exits(packed[-1][0] | region)) == 1:
                packed[-1] = (packed[-1][0] | region, packed[-1][1] + 1)
            else:
                packed.append((region, 1))
        return [region for region, _ in packed]

    def block(self, region: int) -> Block:
        nodes = [self.flow.node(index) for index in bits(region)]
        names = {str(node.name) for node in nodes}
        made = {name for index in bits(region) for name in self.flow.made(index)}
        read = {str(value.name) for node in nodes for value in node.inputs if value is not None}
        weights = [p for p in self.plan.weights if p.consumer in names or (p.consumer is None and p.value in read)]
        inside = [p for p in self.plan.activations if p.consumer in names or (p.consumer is None and p.value in made)]
        weighted = [self.flow.node(index) for index in self._weighted(region)]
        return Block(
            name=str(weighted[0].name),
            nodes=tuple(str(node.name) for node in nodes),
            inputs=self.flow.entries(region),
            output=self.flow.exits(region)[0],
            weights=tuple(sorted(weights, key=str)),
            activations=tuple(inside),
            channels=1 if weighted[-1].op_type in query.CONVOLUTIONS else -1,
        )

    def _weighted(self, region: int) -> Iterator[int]:
        """Nodes with a quantized weight."""
        consumers = {p.consumer for p in self.plan.weights}
        shared = {p.value for p in self.plan.weights if p.consumer is None}
        for index in bits(region):
            node = self.flow.node(index)
            if node.name in consumers or any(value is not None and value.name in shared for value in node.inputs):
                yield index

    def _with_absorbed(self, region: int, taken: int) -> int:
        """The region with the bias, normalisation and activation that alone read its output."""
        while True:
            (output,) = self.flow.exits(region)
            readers = self.flow.readers.get(output, ())
            trial = region | sum(1 << index for index in readers)
            ends = [] if output in self.flow.outputs or not readers else self.flow.exits(trial)
            if trial & taken & ~region or len(ends) != 1 or not self._absorbs(readers, trial):
                return region
            region = trial

    def _absorbs(self, readers: Iterable[int], trial: int) -> bool:
        return all(
            self.flow.node(index).op_type in _ABSORBED
            and self.flow.inside((self.flow.makers[name] for name in self.flow.reads[index]), trial)
            for index in readers
        )

    def _with_front(self, region: int, taken: int) -> int:
        """The region with the nodes in front of it that nothing else reads and that hold no weight of a product."""
        open_names = list(self.flow.entries(region))
        while open_names:
            maker = self.flow.makers[open_names.pop()]
            node = self.flow.nodes[maker]
            if node is None or (region | taken) >> maker & 1:
                continue
            index = STORED_WEIGHTS.get(node.op_type)
            product = index is not None and query.is_weight(node.inputs[index])
            if not product and not self.flow.exits(region | 1 << maker)[1:] and self._only_for(maker, region):
                region |= 1 << maker
                open_names = list(self.flow.entries(region))
        return region

    def _only_for(self, maker: int, region: int) -> bool:
        return all(
            name not in self.flow.outputs and self.flow.inside(self.flow.readers.get(name, ()), region)
            for name in self.flow.made(maker)
        )
