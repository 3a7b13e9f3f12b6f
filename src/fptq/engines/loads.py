"""What networks are timed on: a sample, and several at once where a network takes any number.

One sample alone flatters whatever moves memory: its activations stay in the caches. A file of any batch is run with
many, so both decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fptq.engines.base import Session
from fptq.errors import EngineError
from fptq.graph.model import TensorInfo
from fptq.types import Feeds

MOST = 16
"""Samples in the larger load, at most."""
_FEWEST = 4
"""Fewer tell nothing that one does not."""
_SECONDS = 0.3
"""What one run of the larger load may take: every contender does dozens."""


def loads(sample: Feeds, inputs: Sequence[TensorInfo], session: Session) -> tuple[Feeds, ...]:
    """The sample, and as many of it at once as the time allows where the network takes any number.

    Args:
        sample: One run's inputs.
        inputs: What the network takes; a name in place of the first size says that the number is free.
        session: Of the slowest network that will be timed.
    """
    free = [info.name for info in inputs if info.shape and isinstance(info.shape[0], str)]
    if not free or any(len(sample[name]) != 1 for name in free):
        return (sample,)
    session.time(sample)
    count = min(MOST, int(_SECONDS / session.time(sample)))
    if count < _FEWEST:
        return (sample,)
    larger = {**sample, **{name: np.repeat(sample[name], count, axis=0) for name in free}}
    try:
        session(larger)
    except EngineError:  # sizes that are called free need not be independent of others
        return (sample,)
    return sample, larger


def at_once(timed_on: Sequence[Feeds]) -> int:
    """How many times the sample the largest load is."""
    sample, largest = timed_on[0], timed_on[-1]
    return max((len(largest[name]) // len(array) for name, array in sample.items() if array.ndim), default=1)
