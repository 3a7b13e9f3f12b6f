"""The one reconstruction loop."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fptq.cache import Cache, cache_key
from fptq.errors import ConfigError
from fptq.execute import Executor, Overlay
from fptq.execute.objective import natural
from fptq.graph.placement import Placement
from fptq.plan.encoding import Encoding
from fptq.reconstruct.activations import groups_of
from fptq.reconstruct.blocks import blocks_of
from fptq.reconstruct.crops import views_of
from fptq.reconstruct.flow import Flow
from fptq.reconstruct.frontier import Frontier
from fptq.reconstruct.inputs import Key, Values
from fptq.reconstruct.method import METHODS, Method
from fptq.reconstruct.result import Checkpoints, Log, Reconstructed, ReconstructionOptions
from fptq.reconstruct.rows import separate
from fptq.reconstruct.sweep import Sweep, Work, stages_of
from fptq.reconstruct.whole import STAGE, Whole
from fptq.types import Feeds, FeedSource, Progress, silent


def reconstruct(
    executor: Executor,
    encoding: Encoding,
    feeds: FeedSource,
    *,
    method: Method = METHODS["auto"],
    options: ReconstructionOptions | None = None,
    store: Cache | None = None,
    progress: Progress = silent,
) -> Reconstructed:
    """Learn how weights are rounded, and scales, so that the quantized network computes what the float one does.

    The blocks of the network are taken in the order of execution; each learns with what the ones before it have become.
    No result of a block is worse than nearest rounding by the method's own loss. An interrupted run (Ctrl-C) returns
    what was reached; with a store, the next run goes on there.

    Args:
        executor: The whole float network; its device is used.
        encoding: Scales and zero points that calibration found.
        feeds: Unlabelled samples; batches are taken apart and large volumes cut where the network allows it.
        method: What is learned, and by which loss; see `METHODS`.
        options: Seed, memory and the rest.
        store: Keeps the result of every block.
        progress: Told the iterations that are done, with the block and its loss.

    Returns:
        The encoding with learned codes and scales, and how each block went.

    Raises:
        ConfigError: The encoding quantizes no weight, or belongs to another network.
        DataError: There is no sample.
    """
    options = options or ReconstructionOptions()
    _check(executor, encoding)
    views = views_of(executor, feeds, crop=options.crop, seed=options.seed)
    if views.large:
        method = replace(method, batch_size=min(method.batch_size, options.volume_batch))
    samples = _Samples(executor=executor, feeds=views.source)
    work = _work(samples, encoding, method, options, store)
    if views.note is not None:
        work.log.note(views.note)
    run = _Run(work=replace(work, progress=progress), samples=samples, encoding=encoding)
    try:
        run.everything()
    except KeyboardInterrupt:
        return run.result(interrupted=True)
    return run.result(interrupted=False)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    executor: Executor
    feeds: FeedSource

    def fingerprint(self) -> str:
        return cache_key([cache_key(dict(sample)) for sample in self.feeds])

    def fill(self, values: Values, overlay: Overlay) -> None:
        """Keep the network's inputs, as they are and as the quantized network sees them."""
        counts: list[int] = []

        def rows() -> Iterator[dict[Key, torch.Tensor]]:
            for parts in separate(self.executor, self.feeds):
                values.count = len(self.feeds) * len(parts)  # what has to be stored is estimated from it
                counts.append(len(parts))
                yield from (self._row(sample, overlay) for sample in parts)

        values.add(rows())
        values.count = sum(counts)

    def _row(self, sample: Feeds, overlay: Overlay) -> dict[Key, torch.Tensor]:
        row: dict[Key, torch.Tensor] = {}
        for name in self.executor.input_names:
            tensor = torch.from_numpy(np.ascontiguousarray(sample[name]))
            seen = overlay(Placement(name), tensor) if tensor.is_floating_point() else tensor
            row |= {("float", name): tensor, ("quantized", name): seen}
        return row


@dataclass(kw_only=True)
class _Run:
    """All sweeps, then the stage of all blocks together."""

    work: Work
    samples: _Samples
    encoding: Encoding
    sweep: Sweep | None = None

    def everything(self) -> None:
        work, done = self.work, 0
        for stage in stages_of(work.method, self.encoding.plan):
            with self._values(stage.placements) as values:
                frontier = Frontier(executor=work.executor, flow=Flow.of(work.executor.model), values=values)
                self.sweep = Sweep(work=work, stage=stage, frontier=frontier, encoding=self.encoding, done=done)
                self.sweep.walk()
            self.encoding, self.sweep = self.sweep.encoding, None
            done += stage.iterations * len(work.blocks)
        if work.method.global_iterations:
            self._tune()

    def result(self, *, interrupted: bool) -> Reconstructed:
        encoding = self.encoding if self.sweep is None else self.sweep.encoding
        if interrupted:
            self.work.log.note(f"interrupted after {len(self.work.log.units)} units; the others keep nearest rounding")
        return Reconstructed(
            encoding=encoding,
            units=tuple(self.work.log.units),
            notes=tuple(self.work.log.notes),
            interrupted=interrupted,
        )

    def _tune(self) -> None:
        key = self.work.checkpoints.key(self.encoding, STAGE, 0)
        stored = self.work.checkpoints.load(key, self.encoding)
        if stored is None:
            with self._values(frozenset(self.encoding.plan.specs)) as values:
                stored = Whole.of(self.work, self.encoding, values).tune()
            self.work.checkpoints.save(key, stored[0], stored[0].plan.specs, stored[1])
        self.encoding = stored[0]
        self.work.log.units.append(stored[1])
        self.work.progress(self.work.total, self.work.total, f"learning: {STAGE}")

    @contextmanager
    def _values(self, placements: Collection[Placement]) -> Iterator[Values]:
        options = self.work.options
        with tempfile.TemporaryDirectory(prefix="fptq-", dir=options.folder) as folder:
            values = Values(count=len(self.samples.feeds), memory=options.memory, folder=Path(folder))
            self.samples.fill(values, Overlay(encoding=self.encoding, only=placements))
            yield values


def _work(
    samples: _Samples, encoding: Encoding, method: Method, options: ReconstructionOptions, store: Cache | None
) -> Work:
    executor = samples.executor
    blocks = blocks_of(executor.model, encoding.plan, extent=method.unit, pack_size=method.pack_size)
    objective = options.objective or natural(executor.model)
    fingerprint = samples.fingerprint() if store is not None else ""
    each = sum(stage.iterations for stage in stages_of(method, encoding.plan))
    return Work(
        executor=executor,
        method=method,
        options=options,
        objective=objective,
        blocks=blocks,
        groups=groups_of(encoding),
        checkpoints=Checkpoints(store=store, method=method, options=options, samples=fingerprint, objective=objective),
        log=Log(),
        progress=silent,
        total=each * len(blocks) + method.global_iterations,
    )


def _check(executor: Executor, encoding: Encoding) -> None:
    weights = encoding.plan.weights
    if not weights:
        raise ConfigError("the encoding quantizes no weight", rule="reconstruction learns how weights are rounded")
    missing = sorted(placement.value for placement in weights if placement.value not in executor.weights)
    if missing:
        raise ConfigError(
            f"the network stores no tensor {missing[0]!r}",
            rule="an encoding belongs to one network",
            remedy="Calibrate this network",
        )
