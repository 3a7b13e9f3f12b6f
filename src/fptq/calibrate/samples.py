"""What a calibration sample must be, and how one is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from fptq.errors import DataError
from fptq.graph.model import Model, TensorInfo
from fptq.types import Array, Feeds, FeedSource

_Item = TypeVar("_Item")


def sample_hash(feeds: Feeds) -> str:
    """SHA-256 of a sample's names, dtypes, shapes and bytes: the same in any order and any process."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes() if array.dtype.hasobject else array.data)
    return digest.hexdigest()


def checked_samples(model: Model, feeds: FeedSource) -> Iterator[tuple[str, Feeds]]:
    """Each sample with its hash; a sample that the network does not take is refused when its turn comes."""
    for number, sample in enumerate(feeds, start=1):
        check_sample(model, sample, number)
        yield sample_hash(sample), sample


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, each made in a thread while the one before it is used: reading and hashing cost no time."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, items, _END)
        while not isinstance(item := coming.result(), _End):
            coming = pool.submit(next, items, _END)
            yield item


class _End:
    """What stands behind the last item."""


_END = _End()


def check_sample(model: Model, feeds: Feeds, number: int) -> None:
    """Refuse a sample that the network does not take.

    Args:
        model: The network.
        feeds: The sample.
        number: Its place in the walk, from 1, for the message.

    Raises:
        DataError: An input is missing, unknown, of another dtype or shape, or not finite.
    """
    expected = {info.name: info for info in model.inputs}
    if feeds.keys() != expected.keys():
        raise DataError(
            f"sample {number} has the inputs {sorted(feeds)}",
            rule=f"the network takes {', '.join(map(str, model.inputs))}",
            remedy="Name the arrays as the network's inputs",
        )
    for name, info in expected.items():
        _check_input(np.asarray(feeds[name]), info, number)


def _check_input(array: Array, info: TensorInfo, number: int) -> None:
    if array.dtype != info.dtype or not _fits(array.shape, info):
        raise DataError(
            f"sample {number}: input {info.name!r} is {array.dtype}[{', '.join(map(str, array.shape))}]",
            rule=f"the network takes {info}",
            remedy="Convert the data, or export the network with a dynamic axis",
        )
    if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
        raise DataError(
            f"sample {number}: input {info.name!r} holds NaN or an infinity",
            rule="calibration data are finite",
            remedy="Mask or drop these samples",
        )


def _fits(shape: tuple[int, ...], info: TensorInfo) -> bool:
    if info.shape is None:
        return True
    return len(shape) == len(info.shape) and all(
        not isinstance(wanted, int) or wanted == size for size, wanted in zip(shape, info.shape, strict=True)
    )
