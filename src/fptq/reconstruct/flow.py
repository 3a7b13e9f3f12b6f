"""Who reads whom, as sets of bits: reachability questions about a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import onnx_ir as ir

from fptq.graph.model import Model


def bits(members: int) -> Iterator[int]:
    """The places of the bits that are set, ascending.

    >>> list(bits(0b1010))
    [1, 3]
    """
    while members:
        lowest = members & -members
        yield lowest.bit_length() - 1
        members ^= lowest


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The data flow of a graph: the fed inputs come first, then the nodes in their order; a set of them is an int.

    Attributes:
        nodes: None for a fed input.
        makers: Index by name of the value that it makes or feeds.
        reads: For each node the values that it reads and that are not stored.
        readers: Nodes that read a value, by its name.
        outputs: Names of the graph's outputs.
        before: For each node the set of what it depends on.
        behind: For each node the set of what depends on it.
    """

    nodes: tuple[ir.Node | None, ...]
    makers: dict[str, int]
    reads: tuple[tuple[str, ...], ...]
    readers: dict[str, tuple[int, ...]]
    outputs: frozenset[str]
    before: tuple[int, ...]
    behind: tuple[int, ...]

    @classmethod
    def of(cls, model: Model) -> Self:
        """The flow of a network."""
        fed = [info.name for info in model.inputs]
        nodes: list[ir.Node | None] = [*([None] * len(fed)), *model.graph]
        makers = {name: index for index, name in enumerate(fed)}
        for index, node in enumerate(nodes):
            makers |= {str(value.name): index for value in (node.outputs if node else ())}
        reads = [_reads(node, makers) for node in nodes]
        readers: dict[str, tuple[int, ...]] = {}
        for index, names in enumerate(reads):
            readers |= {name: (*readers.get(name, ()), index) for name in names}
        before, behind = [0] * len(nodes), [0] * len(nodes)
        for index, names in enumerate(reads):
            for maker in (makers[name] for name in names):
                before[index] |= before[maker] | 1 << maker
        for index in reversed(range(len(nodes))):
            for maker in (makers[name] for name in reads[index]):
                behind[maker] |= behind[index] | 1 << index
        return cls(
            nodes=tuple(nodes),
            makers=makers,
            reads=tuple(reads),
            readers=readers,
            outputs=frozenset(info.name for info in model.outputs),
            before=tuple(before),
            behind=tuple(behind),
        )

    def node(self, index: int) -> ir.Node:
        """The node of an index that is not a fed input's."""
        node = self.nodes[index]
        assert node is not None
        return node

    def made(self, index: int) -> tuple[str, ...]:
        """Names of what a node makes."""
        return tuple(str(value.name) for value in self.node(index).outputs)

    def entries(self, region: int) -> tuple[str, ...]:
        """The values that a region reads from outside, in the order of its nodes."""
        found = (name for index in bits(region) for name in self.reads[index])
        return tuple(dict.fromkeys(name for name in found if not region >> self.makers[name] & 1))

    def exits(self, region: int) -> tuple[str, ...]:
        """The values of a region that are read outside or leave the network."""
        made = (name for index in bits(region) for name in self.made(index))
        return tuple(
            name for name in made if name in self.outputs or not self.inside(self.readers.get(name, ()), region)
        )

    @staticmethod
    def inside(indices: Iterable[int], region: int) -> bool:
        """Whether all of some nodes belong to a region."""
        return all(region >> index & 1 for index in indices)

    def between(self, join: int) -> int:
        """The region from the last common ancestor of what a node reads to the node; 0 where there is none."""
        makers = [self.makers[name] for name in self.reads[join]]
        common = -1
        for maker in makers:
            common &= self.before[maker] | 1 << maker
        if len(makers) < 2 or common <= 0:
            return 0
        start = common.bit_length() - 1
        return self.behind[start] & self.before[join] | 1 << join

    def crossing(self, known: Iterable[str], wanted: Iterable[str]) -> tuple[str, ...]:
        """Which of the known values are needed to compute the wanted ones."""
        given, open_names, found = set(known), list(dict.fromkeys(wanted)), dict[str, None]()
        seen: set[int] = set()
        while open_names:
            name = open_names.pop()
            if name in given:
                found[name] = None
            elif (maker := self.makers.get(name)) is not None and maker not in seen:
                seen.add(maker)
                open_names += self.reads[maker]
        return tuple(found)


def _reads(node: ir.Node | None, makers: dict[str, int]) -> tuple[str, ...]:
    names = (str(value.name) for value in (node.inputs if node else ()) if value is not None)
    return tuple(dict.fromkeys(name for name in names if name in makers))
