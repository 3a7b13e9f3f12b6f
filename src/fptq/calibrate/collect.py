"""One float run per sample; nothing is kept but the states of the statistics."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

import fptq
from fptq.cache import Cache, cache_key
from fptq.calibrate.probe import probed
from fptq.calibrate.samples import ahead, checked_samples
from fptq.calibrate.states import Reading
from fptq.calibrate.statistics import Statistic, Statistics
from fptq.errors import DataError, EngineError
from fptq.graph.model import Model
from fptq.graph.rest import let_go, settle, unmapping
from fptq.types import Feeds, FeedSource, Progress, silent

logger = logging.getLogger(__name__)

_FINISHED, _INTERRUPTED = "statistics", "statistics-interrupted"
_FORMAT = 1  # of the states; another number recomputes what older versions have stored

_Measure = Callable[[Feeds, int], Mapping[Statistic, Reading]]


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """How calibration runs.

    Attributes:
        threads: CPU threads of the float run, >= 1.
        checkpoint_s: Seconds between two checkpoints.
    """

    threads: int = 2
    checkpoint_s: float = 5.0


def collect(
    model: Model,
    statistics: Iterable[Statistic],
    feeds: FeedSource,
    *,
    options: CollectOptions | None = None,
    store: Cache | None = None,
    progress: Progress = silent,
) -> Statistics:
    """Run the float network over the samples and keep what was asked for.

    Samples are known by their content: those in the store are not run again, in whatever order they come, and a
    sample that comes twice counts once. An interrupted run leaves what it has seen in the store.

    Args:
        model: The float network.
        statistics: What to know about which tensors; none needs no data.
        feeds: The samples, one run each.
        options: Threads and checkpoints.
        store: Where interrupted and finished statistics are kept; None: nowhere.
        progress: Told after every sample.

    Raises:
        DataError: There is no sample, or one that the network does not take, or a tensor is not finite.
        EngineError: ONNX Runtime failed.
    """
    asked = tuple(dict.fromkeys(statistics))
    if not asked:
        return Statistics()
    options = options or CollectOptions()
    walk = _Walk(model=model, asked=asked, options=options, shelf=_Shelf.of(model, asked, store), progress=progress)
    return walk.over(feeds)


@dataclass(frozen=True, kw_only=True)
class _Shelf:
    """The place of one network's statistics in the store.

    A finished set and an interrupted one are kept apart: either may belong to other data than this run's, and is
    usable only when this run has all of its samples.
    """

    store: Cache | None
    key: str

    @classmethod
    def of(cls, model: Model, asked: tuple[Statistic, ...], store: Cache | None) -> _Shelf:
        if store is None:
            return cls(store=None, key="")
        import onnxruntime

        key = cache_key(_FORMAT, fptq.__version__, onnxruntime.__version__, model.sha256, frozenset(asked))
        return cls(store=store, key=key)

    def get(self, kind: str) -> Statistics:
        entry = None if self.store is None else self.store.get(kind, self.key)
        return Statistics() if entry is None else Statistics.from_entry(entry)

    def interrupt(self, statistics: Statistics) -> None:
        if self.store is not None:
            self.store.put(_INTERRUPTED, self.key, statistics.to_entry())

    def finish(self, statistics: Statistics) -> None:
        if self.store is not None:
            self.store.put(_FINISHED, self.key, statistics.to_entry())
            self.store.discard(_INTERRUPTED, self.key)


@dataclass(kw_only=True)
class _Walk:
    """One collection under way; `fresh` is what it has run itself."""

    model: Model
    asked: tuple[Statistic, ...]
    options: CollectOptions
    shelf: _Shelf
    progress: Progress
    fresh: Statistics = field(default_factory=Statistics)
    interrupted: Statistics = field(default_factory=Statistics)
    measure: _Measure | None = None

    def over(self, feeds: FeedSource) -> Statistics:
        finished, self.interrupted = self.shelf.get(_FINISHED), self.shelf.get(_INTERRUPTED)
        known = finished.samples | self.interrupted.samples
        settle(self.model)  # the key of the store has read the weights
        try:
            seen = self._pass(feeds, lambda sample: sample not in known)
            if not seen:
                raise DataError("there is no calibration sample", rule="at least one is needed")
            usable = _usable((finished, self.interrupted), seen)
            missing = seen - usable.samples - self.fresh.samples
            if missing:
                logger.info("running %d samples again: they are stored together with other data", len(missing))
                self._pass(feeds, missing.__contains__)
        except BaseException:  # Ctrl-C included: what was seen so far is kept
            self._checkpoint()
            raise
        result = usable.merged(self.fresh)
        self.measure = None
        settle(self.model)
        self.shelf.finish(result)
        return result

    def _pass(self, feeds: FeedSource, wanted: Callable[[str], bool]) -> frozenset[str]:
        """Run the wanted samples; returns the hashes of all."""
        seen: set[str] = set()
        total, saved = len(feeds), time.monotonic()
        self.progress(0, total, "calibrate")
        for number, (name, sample) in enumerate(ahead(checked_samples(self.model, feeds)), start=1):
            if wanted(name) and name not in self.fresh.samples:
                self.fresh = self.fresh.merged(Statistics.of(self._run(sample, number), name))
                if time.monotonic() - saved > self.options.checkpoint_s:
                    self._checkpoint()
                    saved = time.monotonic()
            seen.add(name)
            self.progress(number, total, "calibrate")
        return frozenset(seen)

    def _run(self, sample: Feeds, number: int) -> Mapping[Statistic, Reading]:
        if self.measure is None:
            self.measure = _compiled(self.model, self.asked, self.options.threads)
        return self.measure(sample, number)

    def _checkpoint(self) -> None:
        if self.fresh.samples & self.interrupted.samples:  # run again, as they were stored with other data
            self.interrupted = Statistics()
        if self.fresh.samples:
            self.shelf.interrupt(self.interrupted.merged(self.fresh))


def _usable(stored: tuple[Statistics, ...], seen: frozenset[str]) -> Statistics:
    """What was stored of these samples and no others."""
    usable = Statistics()
    for part in stored:
        if part.samples <= seen and not part.samples & usable.samples:
            usable = usable.merged(part)
    return usable


def _compiled(model: Model, asked: tuple[Statistic, ...], threads: int) -> _Measure:
    """A function from a sample to its readings, in ONNX Runtime."""
    import onnxruntime

    graph_model, probes = probed(model, asked)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The default order runs the reductions last, with every activation alive until then.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    # From the second run on, a planned block for all activations would lie beside what the first run has allocated.
    options.enable_mem_pattern = False
    try:
        # Through a file: networks may be larger than one protobuf message, and the engine then maps the weights.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            ir.save(graph_model, path, external_data="weights.bin", callback=unmapping())
            let_go(model)  # the session has weights of its own
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise EngineError(f"ONNX Runtime cannot compile the network: {error}") from error
    names = [output.name for output in session.get_outputs()]

    def measure(sample: Feeds, number: int) -> Mapping[Statistic, Reading]:
        try:
            outputs = dict(zip(names, session.run(names, dict(sample)), strict=True))
        except Exception as error:
            raise EngineError(f"sample {number}: ONNX Runtime failed: {error}") from error
        readings = {(probe.value, probe.axis): probe.read(outputs, number) for probe in probes}
        return {statistic: readings[statistic.value, statistic.axis] for statistic in asked}

    return measure
