"""Scores of classes, row by row: how a network is asked for them, and how they stand beside labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fptq.errors import EngineError, ModelError
from fptq.types import Array


def row_by_row(call: Callable[[Array], Array], samples: Sequence[Array]) -> Array:
    """A network's answers for some samples: at once, or one by one where it does not take them so.

    Some exporters name a dynamic batch and write a fixed one into a Reshape.

    Args:
        call: From a batch to one row for each sample in it.
        samples: Each with a batch axis of one.

    Raises:
        ModelError: There are more or fewer rows than samples.
        EngineError: The network fails on a single sample.
    """
    try:
        found = call(np.concatenate(samples))
        if len(found) == len(samples):
            return found
    except EngineError:
        if len(samples) == 1:
            raise
    rows = np.concatenate([call(sample) for sample in samples])
    if len(rows) != len(samples):
        raise ModelError(f"{len(rows)} rows of outputs for {len(samples)} samples", rule="a sample has one answer")
    return rows


def places_of(labels: Array, outputs: Array) -> list[int]:
    """How many classes come before a row's own; all of them where an output is not a number.

    Args:
        labels: `i64[N]`.
        outputs: `f64[N, K]`; of equal outputs the first counts.
    """
    own = np.take_along_axis(outputs, labels[:, None], axis=1)
    before = (outputs > own) | ((outputs == own) & (np.arange(outputs.shape[1]) < labels[:, None]))
    places = np.where(np.isnan(outputs).any(1), outputs.shape[1], before.sum(1))
    return [int(place) for place in places]


def losses_of(labels: Array, outputs: Array, *, probabilities: bool) -> list[float]:
    """-log p of each row's class [nat], p at least 1e-7."""
    if not probabilities:
        with np.errstate(all="ignore"):
            shifted = np.exp(outputs - outputs.max(1, keepdims=True))
            outputs = shifted / shifted.sum(1, keepdims=True)
    own = np.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]
    return [float(loss) for loss in -np.log(np.clip(np.nan_to_num(own), 1e-7, 1.0))]


def are_probabilities(outputs: Array) -> bool:
    """Whether rows are distributions; half precision shifts their sum a little."""
    return bool(outputs.min() >= 0 and (np.abs(outputs.sum(1) - 1) < 0.01).all())
