"""The values between what is done and what is to come, of the float and of the quantized network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fptq.execute import Executor, Hook
from fptq.graph.placement import Placement
from fptq.reconstruct.blocks import Block
from fptq.reconstruct.flow import Flow
from fptq.reconstruct.inputs import Key, Kind, Values


@dataclass(frozen=True, kw_only=True)
class Suffix:
    """The float network behind a block.

    Attributes:
        part: Computes those of the network's outputs that depend on the block.
        entry: The block's output.
        beside: What else it reads, of the kind "beside", else "quantized".
    """

    part: Executor
    entry: str
    beside: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Moves through the network block by block, so that no node runs twice on the way.

    Attributes:
        executor: The float network.
        flow: Its graph.
        values: What is known of every sample: the kinds "float" and "quantized" hold the frontier.
    """

    executor: Executor
    flow: Flow
    values: Values

    def reach(self, block: Block, hook: Hook) -> None:
        """Compute what a block reads, in both networks, and its float output as the kind "target".

        Args:
            block: The next one.
            hook: Quantizes everything.
        """
        self._extend("float", "float", block.inputs, None)
        self._extend("quantized", "quantized", block.inputs, hook)
        self._extend("float", "target", [block.output], None)

    def suffix(self, block: Block) -> Suffix:
        """What lies behind a block, in float; its other inputs become known as the kind "beside".

        Blocks in front are quantized, what runs beside this one and behind it is not: PD-Quant's mixture.
        """
        maker = self.flow.makers[block.output]
        behind = self.flow.behind[maker]
        makers = {name: self.flow.makers[name] for name in self.executor.output_names}
        outputs = [name for name, at in makers.items() if name == block.output or behind >> at & 1]
        needed = 0
        for name in outputs:
            needed |= (self.flow.before[makers[name]] | 1 << makers[name]) & behind
        beside = tuple(name for name in self.flow.entries(needed) if name != block.output)
        missing = [name for name in beside if ("quantized", name) not in self.values]
        self._extend("quantized", "beside", missing, None)
        part = self.executor.part([block.output, *beside], outputs)
        return Suffix(part=part, entry=block.output, beside=beside)

    def outputs(self) -> None:
        """Compute the outputs of the float network, as the kind "output"."""
        self._extend("float", "output", self.executor.output_names, None)

    def leave(self, block: Block, hook: Hook) -> None:
        """Put the block's output in the place of what only it has read.

        Args:
            block: It is done.
            hook: Quantizes everything, the block as it was learned.
        """
        self._extend("quantized", "quantized", [block.output], hook)
        self.values.add({("float", block.output): self.values.get(("target", block.output), s)} for s in self._all())
        needed = self.flow.crossing(self.values.names("quantized"), self.executor.output_names)
        kinds: tuple[Kind, ...] = ("target", "moved", "aim", "beside", "fisher")
        gone: list[Key] = [(kind, name) for kind in kinds for name in self.values.names(kind)]
        paths: tuple[Kind, ...] = ("float", "quantized")
        gone += [(kind, name) for kind in paths for name in self.values.names(kind) if name not in needed]
        for key in gone:
            self.values.drop(key)

    def _all(self) -> range:
        return range(self.values.count)

    def _extend(self, source: Kind, kind: Kind, names: Iterable[str], hook: Hook | None) -> None:
        """Compute values from those known of one kind, where they are not known yet."""
        wanted = [name for name in dict.fromkeys(names) if (kind, name) not in self.values]
        if not wanted:
            return
        known = self.flow.crossing(self.values.names(source), wanted)
        part = self.executor.part(known, wanted)
        self.values.add({(kind, name): found[name] for name in wanted} for found in self._computed(part, source, hook))

    def _computed(self, part: Executor, source: Kind, hook: Hook | None) -> Iterator[dict[str, torch.Tensor]]:
        for sample in self._all():
            with torch.no_grad():
                fed = {n: self.values.get((source, n), sample) for n in part.input_names if (source, n) in self.values}
                found = part.run(fed, hook=None if hook is None else unseen(hook, part.input_names))
            yield found


def unseen(hook: Hook, fed: Sequence[str]) -> Hook:
    """A hook that leaves fed values as they are: the run that computed them has quantized them."""
    places = {Placement(name) for name in fed}

    def seen(placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if placement in places else hook(placement, tensor)

    return seen
