"""The first samples of a source."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from fptq.types import Feeds, FeedSource


@dataclass(frozen=True)
class Part:
    """The first samples of a source.

    Attributes:
        source: All samples.
        count: How many of them, at most as many as there are.
    """

    source: FeedSource
    count: int

    def __iter__(self) -> Iterator[Feeds]:
        return itertools.islice(iter(self.source), self.count)

    def __len__(self) -> int:
        return min(self.count, len(self.source))
