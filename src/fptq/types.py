"""The few types that every layer shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]
"""A numpy array of any dtype and shape."""

Feeds = Mapping[str, Array]
"""One run's inputs (or outputs) by name."""

Runner = Callable[[Feeds], Feeds]
"""Anything that computes the network: a float model, the simulation, an engine session."""


class FeedSource(Protocol):
    """Samples that can be walked more than once; each walk starts at the beginning."""

    def __iter__(self) -> Iterator[Feeds]: ...

    def __len__(self) -> int: ...


class Progress(Protocol):
    """Told how long work advances. The CLI draws a bar with it; the default is silent.

    What stands behind a colon in `what` is a detail that changes as the work goes on, such as a layer or a loss.
    """

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """The `Progress` that says nothing."""
