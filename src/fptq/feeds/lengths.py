"""Sequences of many lengths: batches without padding, and padding taken out of the batches that have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

from fptq.errors import DataError
from fptq.feeds.conform import Inputs, as_array
from fptq.graph.model import TensorInfo
from fptq.types import Array

MASK = "attention_mask"
"""What Hugging Face's models call the input that is 0 at padded positions and 1 elsewhere."""

_Key: TypeAlias = tuple[tuple[str, object], ...]


def bucket_by_length(
    samples: Iterable[Mapping[str, object]], *, batch_size: int = 8, seed: int = 0
) -> list[dict[str, object]]:
    """Batches of sequences of equal length, which need no padding.

    The batches come in random order: the last ones, which are held out to measure the agreement, have all lengths.

    >>> samples = [{"input_ids": [0, 5, 2]}, {"input_ids": [0, 5, 6, 2]}, {"input_ids": [0, 7, 2]}]
    >>> sorted(batch["input_ids"].shape for batch in bucket_by_length(samples))
    [(1, 4), (2, 3)]

    Args:
        samples: Keyword arguments of one sequence each, such as a tokenizer gives without padding: arrays, tensors or
            lists `[L]` or `[1, L]`. What is no array, such as a flag, is kept; its value is the same within a batch.
        batch_size: Most sequences in a batch.
        seed: Seed of the order.

    Returns:
        Keyword arguments of one batch each: arrays `[B, L]`.

    Raises:
        DataError: A sample holds several sequences.
    """
    buckets: dict[_Key, list[dict[str, object]]] = {}
    for index, sample in enumerate(samples):
        row = {name: _row(value, f"sample {index}: {name!r}") for name, value in sample.items()}
        key = tuple((name, part.shape if isinstance(part, np.ndarray) else repr(part)) for name, part in row.items())
        buckets.setdefault(key, []).append(row)
    batches = [
        _stacked(rows[start : start + batch_size])
        for rows in buckets.values()
        for start in range(0, len(rows), batch_size)
    ]
    return [batches[i] for i in np.random.default_rng(seed).permutation(len(batches))]


def has_padding_mask(inputs: Inputs) -> bool:
    """Whether `unpadded` may make several runs of one."""
    return _axes(inputs) is not None


def unpadded(feeds: dict[str, Array], inputs: Inputs) -> list[dict[str, Array]]:
    """A run as runs without padding, one for each extent of the sequences in it.

    What a network computes at padded positions is arbitrary and ranges must not see it. The mask keeps padding out of
    all other positions, so a sequence alone gives what it gives in a padded batch.

    Args:
        feeds: One run. It stays as it is without an input `attention_mask` `[B, L]` of dynamic axes, and where the
            mask of a sequence is no single stretch of ones.
        inputs: What the model takes.
    """
    axes = _axes(inputs)
    if axes is None or bool(feeds[MASK].all()):
        return [feeds]
    extents: dict[tuple[int, int], list[int]] = {}
    for row, mask in enumerate(feeds[MASK].astype(bool)):
        kept = np.flatnonzero(mask)
        if not kept.size or kept[-1] - kept[0] + 1 != kept.size:
            return [feeds]
        extents.setdefault((int(kept[0]), int(kept[-1]) + 1), []).append(row)
    batch, length = axes
    return [
        {info.name: _cut(feeds[info.name], info, {batch: rows, length: range(start, stop)}) for info in inputs}
        for (start, stop), rows in extents.items()
    ]


def _axes(inputs: Inputs) -> tuple[str, str] | None:
    """The names of the batch and the length of the mask; None without one."""
    shape = next((info.shape for info in inputs if info.name == MASK and info.dtype.kind in "biu"), None)
    match shape:
        case (str(batch), str(length)) if batch != length:
            return batch, length
        case _:
            return None


def _cut(array: Array, info: TensorInfo, kept: Mapping[str, Iterable[int]]) -> Array:
    for axis, dim in enumerate(info.shape or ()):
        if isinstance(dim, str) and dim in kept:
            array = array.take(list(kept[dim]), axis=axis)
    return array


def _row(value: object, name: str) -> object:
    """One sequence with a batch axis; what is no array stays as it is."""
    array = as_array(value)
    if array is None or array.ndim == 0:
        return value
    if array.ndim > 1 and len(array) != 1:
        raise DataError(f"{name} has shape {list(array.shape)}", rule="a sample is one sequence")
    return array[None] if array.ndim == 1 else array


def _stacked(rows: list[dict[str, object]]) -> dict[str, object]:
    return {
        name: np.concatenate([row[name] for row in rows]) if isinstance(first, np.ndarray) else first
        for name, first in rows[0].items()
    }
