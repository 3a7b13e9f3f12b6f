"""Samples as batches: side by side where a block computes them alike, else one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fptq.errors import DataError, FptqError
from fptq.execute import Executor
from fptq.execute.overlay import watching
from fptq.graph.placement import Placement
from fptq.reconstruct.inputs import Key, Kind, Values
from fptq.types import Feeds, FeedSource

_ALIKE = 1e-4  # of the largest value: kernels for other batch sizes sum in another order


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Access to the values of some samples at a time.

    Attributes:
        values: Of all samples.
        device: Where they are wanted.
        width: How many samples may run side by side, along axis 0.
    """

    values: Values
    device: str
    width: int = 1

    def groups(self, picked: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The samples of a batch that run together."""
        return (tuple(picked[at : at + self.width]) for at in range(0, len(picked), self.width))

    def fetch(self, key: Key, group: Sequence[int]) -> torch.Tensor:
        """The values of a key for some samples, side by side."""
        tensors = [self.values.get(key, sample) for sample in group]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return tensor.to(self.device) if tensor.is_floating_point() else tensor

    def first(self, kinds: Sequence[Kind], name: str, group: Sequence[int]) -> torch.Tensor:
        """The values of a name, of the first of some kinds in which it is known."""
        kind = next(kind for kind in kinds if (kind, name) in self.values)
        return self.fetch((kind, name), group)


def joins(part: Executor, pair: Sequence[Sequence[torch.Tensor]]) -> bool:
    """Whether a part of the network computes two samples side by side as it does one by one.

    Shapes that are stored in the network, or a batch that is not the first axis, may forbid it.

    Args:
        part: The part.
        pair: What it is fed for one sample and for another, in the order of its inputs.
    """
    first, second = pair
    if [x.shape for x in first] != [x.shape for x in second] or any(not x.ndim for x in first):
        return False
    try:
        with torch.no_grad():
            both = _run(part, [torch.cat(pair) for pair in zip(first, second, strict=True)])
            single = [_run(part, row) for row in pair]
    except (FptqError, RuntimeError):
        return False
    return all(_alike(both[name], torch.cat([one[name] for one in single])) for name in both)


def width_of(part: Executor, pair: Sequence[Sequence[torch.Tensor]], memory: int) -> int:
    """How many samples a part of the network may run side by side.

    Args:
        part: The part.
        pair: What it is fed for one sample and for another, in the order of its inputs.
        memory: Bytes that the values of a batch may take, kept for the backward pass.
    """
    if not joins(part, pair):
        return 1
    taken = 0

    def see(placement: Placement, tensor: torch.Tensor) -> None:
        nonlocal taken
        taken += tensor.numel() * tensor.element_size() if placement.value not in part.weights else 0

    with torch.no_grad():
        part.run(dict(zip(part.input_names, pair[0], strict=True)), hook=watching(see))
    return max(1, memory // max(1, taken))


def separate(executor: Executor, feeds: FeedSource) -> Iterator[list[Feeds]]:
    """What becomes of each sample of the source: its rows, where a batch may be taken apart, else itself.

    Whether it may is tried on the first one: the rows of some inputs (nodes of a graph, frames) belong together.

    Raises:
        DataError: There is no sample.
    """
    apart: bool | None = None
    for sample in feeds:
        apart = _comes_apart(executor, sample) if apart is None else apart
        yield _rows_of(sample) if apart else [sample]
    if apart is None:
        raise DataError("there is no sample", rule="reconstruction learns from samples", remedy="Give calibration data")


def _comes_apart(executor: Executor, sample: Feeds) -> bool:
    sizes = {array.shape[:1] for array in sample.values()}
    if len(sizes) != 1 or sizes <= {(), (1,)}:
        return False
    rows = [[torch.from_numpy(row[name]) for name in executor.input_names] for row in _rows_of(sample)]
    return joins(executor, rows[:2])


def _rows_of(sample: Feeds) -> list[Feeds]:
    count = len(next(iter(sample.values())))
    return [{name: array[at : at + 1] for name, array in sample.items()} for at in range(count)]


def _run(part: Executor, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return part.run(dict(zip(part.input_names, tensors, strict=True)))


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    bound = _ALIKE * float(other.abs().max().clamp_min(1e-12)) if other.numel() else 0.0
    return bool((one - other).abs().max() <= bound) if other.numel() else True
