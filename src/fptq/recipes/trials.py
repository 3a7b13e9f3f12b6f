"""Candidates and encodings, measured on the engine: time for the gate, output error for what may lower it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fptq.calibrate import Statistics
from fptq.engines import CompileOptions, Engine, Session
from fptq.engines.benchmark import Timings, under_loads
from fptq.engines.loads import loads
from fptq.errors import EngineError
from fptq.graph.model import Model
from fptq.graph.rest import LARGE, float_weights, is_large, settle
from fptq.graph.write import save
from fptq.plan import Encoding, materialize
from fptq.recipes.problem import Problem
from fptq.recipes.refine import EFFORTS
from fptq.search import Candidates, Gate, Outcome
from fptq.tasks import compare
from fptq.types import Feeds, Progress

_LOG = logging.getLogger(__name__)

_JUDGES = 3
"""Held-out samples that judge the gate's candidates."""
_ROUNDS = 21
"""Timed rounds of policies that take turns with the uniform network."""
_REMEMBERED = 64_000_000
"""Bytes of float outputs that are kept for the next comparison: beyond, the float network runs again."""


@dataclass(kw_only=True)
class Trials:
    """Measures candidates and encodings on the engine.

    Attributes:
        problem: The float network and its held-out samples.
        engine: The engine.
        folder: For the files that are compiled.
    """

    problem: Problem
    engine: Engine
    folder: Path
    _reference: _Reference | None = None

    def gate(self, candidates: Candidates, statistics: Statistics, progress: Progress) -> Outcome:
        """The placement that pays."""
        return Gate(
            engine=self.engine,
            float_model=self.problem.model,
            candidates=candidates,
            statistics=statistics,
            samples=self.problem.held_out[:_JUDGES],
            folder=self.folder,
            threads=self.problem.threads,
            seconds=self.problem.recipe.gate_seconds / 4,
            progress=progress,
        ).choose()

    def sqnr(self, model: Model, encoding: Encoding) -> float:
        """Output SQNR against the float network, on held-out samples [dB]."""
        return self.sqnrs(model, encoding, self.judges)[0]

    def each_sqnr(self, model: Model, encoding: Encoding) -> tuple[float, ...]:
        """The same on each of them for itself [dB]."""
        return self.sqnrs(model, encoding, *([feeds] for feeds in self.judges))

    def sqnrs(self, model: Model, encoding: Encoding, *samples: Sequence[Feeds]) -> tuple[float, ...]:
        """The same on several sets of samples, which must outlive this [dB]."""
        if self._reference is None:
            weights = float_weights(self.problem.model)
            self._reference = _Reference(compiled=lambda: self._session(self.problem.model, "float", weights=weights))
        if is_large(self.problem.model):
            self._reference.run_ahead([feeds for part in samples for feeds in part])
        session = self._session(materialize(model, encoding), "judged")
        return tuple(compare(self._reference, session, some).sqnr_db for some in samples)

    def times(self, networks: Mapping[str, tuple[Model, Encoding]], progress: Progress) -> dict[str, Timings]:
        """Latencies of networks that take turns, as they will run; those that the engine refuses are left out."""
        sessions: dict[str, Session] = {}
        for number, (name, (model, encoding)) in enumerate(networks.items()):
            path = self.folder / f"timed_{number}.onnx"
            save(materialize(model, encoding), path, limit=LARGE)
            weights = float_weights(self.problem.model)
            options = CompileOptions(threads=self.problem.threads, float_precision="default", weights=weights)
            try:
                sessions[name] = self.engine.compile(path, options)
            except EngineError as error:
                _LOG.warning("%s: %s", name, error)
        seconds = self.problem.recipe.gate_seconds / 8
        timed_on = loads(self.problem.held_out[0], self.problem.model.inputs, next(iter(sessions.values())))
        return under_loads(sessions, timed_on, rounds=_ROUNDS, seconds=seconds, progress=progress)

    @property
    def judges(self) -> Sequence[Feeds]:
        """The held-out samples that an output error is measured on."""
        return self.problem.held_out[: EFFORTS[self.problem.recipe.recipe].judges]

    def _session(self, model: Model, name: str, *, weights: str = "held") -> Session:
        """A session; the file of an older one of that name is replaced, which is over by then."""
        path = self.folder / f"{name}.onnx"
        save(model, path, limit=LARGE)
        settle(self.problem.model)  # graphs and sessions of earlier trials wait for the collector
        return self.engine.compile(path, CompileOptions(threads=self.problem.threads, weights=weights))


@dataclass(kw_only=True)
class _Reference:
    """The float network on the engine, which need not run again on a sample while its outputs are small.

    Samples are known by identity: those of the problem, and others that are compared, outlive this.
    """

    compiled: Callable[[], Session]
    _session: Session | None = None
    _outputs: dict[int, Feeds] = field(default_factory=dict)
    _bytes: int = 0

    def __call__(self, feeds: Feeds) -> Feeds:
        if id(feeds) in self._outputs:
            return self._outputs[id(feeds)]
        self._session = self._session or self.compiled()
        outputs = self._session(feeds)
        size = sum(array.nbytes for array in outputs.values())
        if self._bytes + size <= _REMEMBERED:
            self._bytes += size
            # Copies: an engine's own arrays may keep all that it has allocated.
            self._outputs[id(feeds)] = {name: array.copy() for name, array in outputs.items()}
        return outputs

    def run_ahead(self, samples: Iterable[Feeds]) -> None:
        """Close the session, if what it says of these samples can be remembered."""
        for feeds in samples:
            self(feeds)
            if id(feeds) not in self._outputs:
                return
        self._session = None
