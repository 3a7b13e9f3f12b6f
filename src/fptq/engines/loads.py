"""What networks are timed on: a sample, and a larger load where sizes are free.

One sample alone flatters whatever moves memory, as its activations stay in the caches, and hides what grows with the
square of a length. A file of any size is run at other sizes, so both decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fptq.engines.base import Session
from fptq.errors import EngineError
from fptq.graph.model import TensorInfo
from fptq.types import Array, Feeds

MOST = 16
"""Samples at once, at most."""
_SECONDS = 0.2
"""What one run of the larger load may take: every contender does dozens."""


def loads(sample: Feeds, inputs: Sequence[TensorInfo], session: Session) -> tuple[Feeds, ...]:
    """The sample, and a larger load where the network takes any size and there is time for it.

    Of the larger load every free size but the batch is twice the sample's, and there are up to `MOST` samples at once:
    as many as run in 0.2 s.

    Args:
        sample: One run's inputs.
        inputs: What the network takes; a name in place of a size says that it is free.
        session: Of a network that will be timed: it says how long a run takes.
    """
    session.time(sample)
    seconds = session.time(sample)
    larger = sample
    free = {axis for info in inputs for axis in _free_axes(info) if axis > 0}
    if free and seconds * 2 ** len(free) <= _SECONDS:
        larger = _if_it_runs(session, {**sample, **{i.name: _doubled(sample[i.name], i) for i in inputs}}, sample)
    batched = [info.name for info in inputs if 0 in _free_axes(info)]
    if batched and all(len(sample[name]) == 1 for name in batched):
        count = min(MOST, int(_SECONDS / session.time(larger)))
        if count > 1:
            many = {name: np.repeat(larger[name], count, axis=0) for name in batched}
            larger = _if_it_runs(session, {**larger, **many}, larger)
    return (sample,) if larger is sample else (sample, larger)


def sizes(load: Feeds, inputs: Sequence[TensorInfo]) -> str:
    """The shape of the first input whose size is free, such as "3 x 260"; empty where none is."""
    return next((" x ".join(map(str, load[info.name].shape)) for info in inputs if _free_axes(info)), "")


def _free_axes(info: TensorInfo) -> list[int]:
    return [axis for axis, size in enumerate(info.shape or ()) if isinstance(size, str)]


def _doubled(array: Array, info: TensorInfo) -> Array:
    for axis in _free_axes(info):
        if axis > 0:
            array = np.concatenate([array, array], axis)
    return array


def _if_it_runs(session: Session, feeds: Feeds, otherwise: Feeds) -> Feeds:
    """The feeds; others where the network fails on them: a size that is called free may depend on another one."""
    try:
        session(feeds)
    except EngineError:
        return otherwise
    return feeds
