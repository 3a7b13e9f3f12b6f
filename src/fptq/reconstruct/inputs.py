"""Values of all samples, in memory up to a budget and in mapped files beyond it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

Kind = Literal["float", "quantized", "target", "moved", "aim", "beside", "fisher", "output"]
"""Values of the float network and of the network quantized so far; what one block needs beside its inputs (its float
output, inputs and output after distribution correction, inputs of what lies behind, weights of its loss); outputs."""

Key = tuple[Kind, str]


@dataclass(kw_only=True)
class Values:
    """One tensor for each key and sample.

    What is added is estimated from its first sample: it goes to memory when the budget has room for all samples.

    Attributes:
        count: Number of samples.
        memory: Bytes that may be held in memory.
        folder: Where the rest goes; files are removed with their values.
        held: Bytes in memory now.
    """

    count: int
    memory: int
    folder: Path
    held: int = 0
    _columns: dict[Key, _Column] = field(default_factory=dict, repr=False)
    _files: int = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._columns

    def add(self, rows: Iterable[Mapping[Key, torch.Tensor]]) -> None:
        """Keep what an iterable yields sample by sample; nothing is gathered before."""
        columns: dict[Key, _Column] = {}
        for row in rows:
            for key, tensor in row.items():
                if key not in columns:
                    columns[key] = self._column(tensor)
                columns[key].append(tensor.detach().cpu())
        for key, column in columns.items():
            self.drop(key)
            self._columns[key] = column

    def get(self, key: Key, sample: int) -> torch.Tensor:
        """The tensor of a sample, on the CPU."""
        return self._columns[key].read(sample)

    def alike(self, keys: Iterable[Key]) -> bool:
        """Whether each of some keys has one shape in all samples."""
        return all(len(set(self._columns[key].shapes())) == 1 for key in keys)

    def drop(self, key: Key) -> None:
        """Forget a key's values."""
        column = self._columns.pop(key, None)
        if column is not None:
            self.held -= column.reserved
            column.remove()

    def names(self, kind: Kind) -> tuple[str, ...]:
        """The names of a kind that are known."""
        return tuple(name for known, name in self._columns if known == kind)

    @property
    def on_disk(self) -> int:
        """How many columns are in files."""
        return sum(column.path is not None for column in self._columns.values())

    def _column(self, first: torch.Tensor) -> _Column:
        expected = first.numel() * first.element_size() * self.count
        if self.held + expected <= self.memory:
            self.held += expected
            return _Column(path=None, reserved=expected)
        self._files += 1
        return _Column(path=self.folder / f"{self._files}.bin", reserved=0)


@dataclass(kw_only=True)
class _Column:
    """The tensors of one key: themselves, or where they lie in a file."""

    path: Path | None
    reserved: int
    tensors: list[torch.Tensor] = field(default_factory=list)
    places: list[tuple[int, np.dtype, tuple[int, ...]]] = field(default_factory=list)

    def append(self, tensor: torch.Tensor) -> None:
        if self.path is None:
            self.tensors.append(tensor.clone())  # a view would keep what it is a view of
            return
        array = np.ascontiguousarray(tensor.numpy())
        with self.path.open("ab") as file:
            self.places.append((file.tell(), array.dtype, tuple(tensor.shape)))
            file.write(array.tobytes())

    def read(self, sample: int) -> torch.Tensor:
        if self.path is None:
            return self.tensors[sample]
        offset, dtype, shape = self.places[sample]
        if 0 in shape:  # an empty range cannot be mapped
            return torch.from_numpy(np.empty(shape, dtype))
        return torch.from_numpy(np.array(np.memmap(self.path, dtype, mode="r", offset=offset, shape=shape)))

    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(t.shape) for t in self.tensors] if self.path is None else [shape for _, _, shape in self.places]

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
