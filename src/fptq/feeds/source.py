"""`open_feeds`: a folder, a pattern, a function or an iterable as samples that can be walked again and again."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from fptq.errors import DataError, OutputError
from fptq.feeds.conform import Inputs, as_array, conform
from fptq.feeds.images import Image, image_array
from fptq.feeds.items import FileItems, Items, IterableItems, open_items
from fptq.feeds.lengths import has_padding_mask, unpadded
from fptq.feeds.preprocess import Preprocess, preprocessed
from fptq.feeds.scans import Scan
from fptq.graph.signature import ModuleSignature
from fptq.types import Array, Feeds


def open_feeds(
    source: object,
    inputs: Inputs,
    *,
    preprocess: Preprocess | None = None,
    signature: ModuleSignature | None = None,
    limit: int | None = None,
    spread: int | None = None,
) -> Samples:
    """Samples by input name, read when they are needed, one in memory at a time, without padding.

    Args:
        source: A folder, glob pattern or file of `.npz` (arrays named as the inputs), `.npy`, `.nii`, `.nii.gz`,
            DICOM series (a folder each) or images, which may lie in class folders; `package.module:function`, a
            function that returns an iterable; or an iterable of tensors, arrays, tuples (what is left over, such as
            targets, is ignored) or mappings. An iterator, which can be walked only once, is written to a temporary
            folder first.
        inputs: What the model takes.
        preprocess: Applied to each scan, and to each sample of other kinds that is one array. Scans larger than a
            network of fixed size are cut to one patch around their brightest region. Without a preprocess images are
            prepared as for ImageNet.
        signature: How the module was called: keyword arguments and recorded calls are bound to it, and what is no
            tensor must have the value that it was exported with.
        limit: Most runs to yield.
        spread: Seed of an order of images in class folders whose beginning sees many classes; None: class by class.

    Raises:
        DataError: There is no sample, or one is not what the model takes (some are found only when walked).
        ConfigError: `package.module:function` does not exist.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit}", rule="at least one sample is needed")
    items = open_items(source, spread=spread, limit=limit)
    samples = Samples(_Prepared(items, inputs, preprocess, signature), inputs, limit=limit)
    if isinstance(items, IterableItems) and isinstance(items.iterable, Iterator):
        return _spooled(samples, inputs)
    return samples


def prepared(sample: object, inputs: Inputs, *, preprocess: Preprocess | None, name: str) -> object:
    """A sample after the user's preprocess, which applies to images, scans and samples that are one array."""
    if isinstance(sample, Image):
        return image_array(sample, inputs, preprocess=preprocess)
    if isinstance(sample, Scan):
        return preprocessed(sample.volume, sample.affine, preprocess=preprocess, name=name)
    if preprocess is None:
        return sample
    return preprocessed(_only_array(sample, name), np.eye(4), preprocess=preprocess, name=name)


class Samples:
    """The runs of a source of samples: a `FeedSource`.

    `len` is exact once the samples have been walked; before, it takes the first sample to tell whether samples are
    split into several runs, and walks them all if so.
    """

    def __init__(self, items: Items, inputs: Inputs, *, limit: int | None = None, folder: Path | None = None) -> None:
        self._items, self._inputs, self._limit = items, inputs, limit
        self._count: int | None = None
        # Runs at `close`, at collection and at exit, whichever is first.
        self._clean = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True) if folder else None

    def __iter__(self) -> Iterator[Feeds]:
        count = 0
        with closing(self._runs()) as runs:
            for feeds in islice(runs, self._limit):
                count += 1
                yield feeds
        if not count:
            raise DataError("there is no sample", rule="calibration and validation need at least one")
        self._count = count

    def __len__(self) -> int:
        if self._count is None:
            self._count = self._counted()
        return self._count

    def close(self) -> None:
        """Delete what was written for these samples, if anything was."""
        if self._clean is not None:
            self._clean()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _runs(self) -> Generator[Feeds, None, None]:
        for name, sample in self._items:
            for run in conform(sample, self._inputs, name=name):
                yield from unpadded(run, self._inputs)

    def _counted(self) -> int:
        try:
            known = len(self._items)
        except TypeError:  # an IterableDataset's loader has no length
            return sum(1 for _ in self)
        if has_padding_mask(self._inputs):
            return sum(1 for _ in self)
        first = next(iter(self._items), None)
        if known and first is not None and len(conform(first[1], self._inputs, name=first[0])) == 1:
            return known if self._limit is None else min(known, self._limit)
        return sum(1 for _ in self)


@dataclass(frozen=True)
class _Prepared:
    """Items after the user's preprocess."""

    items: Items
    inputs: Inputs
    preprocess: Preprocess | None
    signature: ModuleSignature | None

    def __iter__(self) -> Iterator[tuple[str, object]]:
        return ((name, self._fitted(name, sample)) for name, sample in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def _fitted(self, name: str, sample: object) -> object:
        value = prepared(sample, self.inputs, preprocess=self.preprocess, name=name)
        if isinstance(sample, Scan):
            return _patch(np.asarray(value), self.inputs)
        return value if self.signature is None else _bound(value, self.signature, name)


def _bound(sample: object, signature: ModuleSignature, name: str) -> object:
    """A call of a module as tensors by input name; samples that are no calls as they are."""
    match sample:
        case Mapping():
            args, kwargs = (), sample
        case (tuple() as args, Mapping() as kwargs):
            pass
        case _:
            return sample
    try:
        return signature.feeds(args, kwargs)
    except DataError as error:
        raise DataError(f"{name}: {error.what}", rule=error.rule, remedy=error.remedy) from error


def _only_array(sample: object, name: str) -> Array:
    values = list(sample.values()) if isinstance(sample, Mapping) else [sample]
    if isinstance(sample, list | tuple) and as_array(sample) is None:
        values = list(sample[:1])  # (x, y) of a data loader
    array = as_array(values[0]) if len(values) == 1 else None
    if array is None:
        raise DataError(
            f"{name} is not one array",
            rule="a preprocess takes one volume",
            remedy="Give samples that are prepared already, without --preprocess",
        )
    return array


def _patch(array: Array, inputs: Inputs) -> Array:
    """A scan cut or zero-padded to a network of fixed spatial size.

    The window is centred on the intensity-weighted centre: patches of empty background give ranges that are too small.
    """
    shape = inputs[0].shape
    sizes = [d for d in shape[2:] if isinstance(d, int)] if shape else []
    rank = len(shape) - 2 if shape else 0
    if len(inputs) != 1 or not sizes or len(sizes) != rank or array.ndim not in (rank, rank + 1):
        return array
    spatial = array.shape[-rank:]
    if list(spatial) == sizes:
        return array
    weights = np.abs(array - array.min()) if array.ndim == rank else np.abs(array - array.min()).sum(0)
    slices, pads = [], []
    for axis, (have, want) in enumerate(zip(spatial, sizes, strict=True)):
        profile = weights.sum(tuple(a for a in range(rank) if a != axis), dtype=np.float64)
        total = profile.sum()
        centre = float(profile @ np.arange(have) / total) if total > 0 else (have - 1) / 2
        start = int(np.clip(round(centre - (want - 1) / 2), 0, max(have - want, 0)))
        slices.append(slice(start, start + want))
        short = max(want - have, 0)
        pads.append((short // 2, short - short // 2))
    lead = array.ndim - rank
    return np.pad(array[(slice(None),) * lead + tuple(slices)], [(0, 0)] * lead + pads)


def _spooled(once: Samples, inputs: Inputs) -> Samples:
    """The runs of an iterator, written to a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="fptq-feeds-"))
    paths: list[Path] = []
    try:
        for index, feeds in enumerate(once):
            paths.append(folder / f"{index}.npz")
            # Saved without names: an input may be called anything, `file` included.
            np.savez(paths[-1], *(feeds[info.name] for info in inputs))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise OutputError(
            f"samples could not be written to {folder}: {error}", remedy="Free disk or set TMPDIR"
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Samples(FileItems(tuple(paths)), inputs, folder=folder)
