"""The measured gate: what does not pay on this machine is taken back.

A placement is a guess until it has been timed. The gate times whole networks, never single layers, on a sample and,
where sizes are free, on a larger load: the float model (fp32 and the engine's own default) and every variant take
turns, the best one stays, layers that run slower than their float selves are taken back together, and what is left
must beat the float model or go.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fptq.calibrate import Statistics
from fptq.engines import CompileOptions, Engine, Session
from fptq.engines.benchmark import under_loads
from fptq.engines.loads import loads, sizes
from fptq.engines.node_times import node_times
from fptq.errors import EngineError, ModelError
from fptq.graph.model import Model
from fptq.graph.rest import LARGE, float_weights, settle
from fptq.graph.write import save
from fptq.plan.materialize import materialize
from fptq.plan.plan import Refusal
from fptq.search.candidates import Candidate, Candidates
from fptq.search.trade import NOISE, Contender, is_better, preferred
from fptq.tasks import compare
from fptq.types import Feeds, Progress, silent

STORAGE_COST = 0.05
"""Storing the weights of float layers as integers may cost this fraction of the latency while int8 stays ahead."""
_FLOATS = ("float f32", "float default")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One contender of the gate.

    Attributes:
        name: What was tried.
        median_ms: Median latency of one sample [ms].
        speedup: Over the faster of the two float forms, timed in the same rounds: the geometric mean over the loads.
        speedups: The same under each load.
        sqnr_db: Output SQNR against the float model; None for the float model itself.
        chosen: Whether it went on to the next step.
    """

    name: str
    median_ms: float
    speedup: float
    speedups: tuple[float, ...]
    sqnr_db: float | None
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the gate decided.

    Attributes:
        candidate: The placement that stays; what was taken back is among its plan's refusals.
        trials: Everything that was timed, in order.
        notes: Decisions in words.
        pays: Whether integer kernels are faster than float here.
        sizes: Of what was timed beside the sample, such as "3 x 260"; empty where nothing was.
    """

    candidate: Candidate
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]
    pays: bool
    sizes: str

    @property
    def latency_ms(self) -> float:
        """Median latency of what stays [ms]."""
        return next(trial.median_ms for trial in reversed(self.trials) if trial.chosen)


@dataclass(kw_only=True)
class Gate:
    """A measuring table for one model on one engine.

    Attributes:
        engine: The target.
        float_model: The network as the user gave it (canonical, not rewritten).
        candidates: What can be made of it.
        statistics: The calibration's statistics for all of them.
        samples: A few samples: the first one is timed, and a larger load made of it where the network takes any size;
            all of them judge the output error.
        folder: For the files that are compiled.
        threads: CPU threads.
        rounds: Timed rounds of each comparison.
        seconds: Time limit of each comparison [s].
        progress: Told after every timed round.
    """

    engine: Engine
    float_model: Model
    candidates: Candidates
    statistics: Statistics
    samples: tuple[Feeds, ...]
    folder: Path
    threads: int
    rounds: int = 15
    seconds: float = 40.0
    progress: Progress = silent
    _loads: tuple[Feeds, ...] = ()
    _trials: list[Trial] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)
    _floats: dict[str, Session] = field(default_factory=dict)
    _serial: Iterable[int] = field(default_factory=itertools.count)

    def choose(self) -> Outcome:
        """Measure, take back, measure again."""
        float_path = self._write(self.float_model)
        weights = float_weights(self.float_model)
        for name in _FLOATS:
            if self._floats and self.engine.computes_in_f32:
                self._floats[name] = self._floats[_FLOATS[0]]  # a second one would hold the weights once more
            else:
                options = replace(self._options(name.split()[1]), weights=weights)
                self._floats[name] = self.engine.compile(float_path, options)
        self._loads = loads(self.samples[0], self.float_model.inputs, self._floats[_FLOATS[0]])
        best = self._best_variant()
        if best is not None:
            best = self._confirmed(self._with_stored_weights(self._without_losers(best)))
        if best is not None:
            return self._outcome(best, pays=True)
        self._notes.append(
            f"int8 kernels of {self.engine.name} are not faster than its float kernels for this network: "
            "it computes in float, and weights are stored as int8"
        )
        return self._outcome(self._stored_only(), pays=False)

    def _outcome(self, candidate: Candidate, *, pays: bool) -> Outcome:
        return Outcome(
            candidate=candidate,
            trials=tuple(self._trials),
            notes=tuple(self._notes),
            pays=pays,
            sizes=sizes(self._loads[-1], self.float_model.inputs) if len(self._loads) > 1 else "",
        )

    def _best_variant(self) -> Candidate | None:
        """The variant with the best trade of time for accuracy; None when float is faster than that."""
        made: dict[str, Candidate] = {}
        for name in self.candidates.plans():
            made[name] = self.candidates.make(name, self.statistics)
        contest = self._contest(made)
        if not contest:
            return None
        best = preferred(contest)
        pays = contest[best].speedup > 1.0
        self._record(contest, chosen=best if pays else None)
        return made[best] if pays else None

    def _without_losers(self, best: Candidate) -> Candidate:
        """The candidate without the layers that run slower in int8, when that is faster or finer on the whole."""
        losers = self._losers(best)
        if not losers:
            return best
        try:
            lighter = self.candidates.make(best.variant, self.statistics, losers)
        except ModelError:
            return best
        name = f"{best.variant}, {len(losers)} layers taken back"
        contest = self._contest({best.variant: best, name: lighter})
        gains = name in contest and is_better(contest[name], contest[best.variant])
        self._record(contest, chosen=name if gains else best.variant)
        return lighter if gains else best

    def _with_stored_weights(self, best: Candidate) -> Candidate:
        """Int8 storage for the weights of float layers, where the engine expands them at little or no cost."""
        stored = self.candidates.stored(best, "")
        if stored is best:
            return best
        name = f"{best.variant}, all weights stored as int8"
        contest = self._contest({best.variant: best, name: stored})
        if name not in contest:
            return best
        cost = 1 - contest[name].speedup / contest[best.variant].speedup
        worth = cost <= STORAGE_COST and contest[name].speedup > 1.0
        self._record(contest, chosen=name if worth else best.variant)
        if not worth:
            self._notes.append(
                f"weights of float layers stay float: {self.engine.name} would take {cost:.0%} longer to expand them"
            )
        return stored if worth else best

    def _confirmed(self, best: Candidate) -> Candidate | None:
        """The candidate if it still beats float when it is measured alone beside it; None otherwise."""
        name = f"{best.variant}, confirmed"
        contest = self._contest({name: best})
        pays = name in contest and contest[name].speedup > 1.0 - NOISE
        self._record(contest, chosen=name if pays else None)
        return best if pays else None

    def _stored_only(self) -> Candidate:
        """Every weight as int8, everything computed in float."""
        reason = f"measured: {self.engine.name} computes this network faster in float"
        stored = self.candidates.stored(None, reason)
        name = "float kernels, weights stored as int8"
        contest = self._contest({name: stored})
        self._record(contest, chosen=name)
        if name in contest and contest[name].speedup < 1 - 2 * NOISE:
            self._notes.append(
                f"expanding the stored weights costs {1 / contest[name].speedup - 1:.0%} of the float latency: "
                "use the float model where time matters more than size"
            )
        return stored

    def _contest(self, entries: Mapping[str, Candidate]) -> dict[str, Contender]:
        """Time candidates beside both float forms; those that the engine refuses are noted and left out."""
        sessions: dict[str, Session] = dict(self._floats)
        accuracy: dict[str, float] = {}
        for name, candidate in entries.items():
            try:
                path = self._write(materialize(self.candidates.model, candidate.encoding))
                settle(self.candidates.model)  # graphs and sessions of earlier contests wait for the collector
                sessions[name] = self.engine.compile(path, self._options("default"))
                accuracy[name] = self._sqnr(sessions[name], path)
            except EngineError as error:
                self._notes.append(f"{name}: {error}")
                sessions.pop(name, None)
        timings = under_loads(sessions, self._loads, rounds=self.rounds, seconds=self.seconds, progress=self.progress)
        f32, default = (timings[name] for name in _FLOATS)
        base = default if default.speedup_over(f32) > 1 else f32
        return {
            name: Contender(timings=timings[name], speedups=timings[name].speedups_over(base), sqnr_db=accuracy[name])
            for name in entries
            if name in accuracy
        }

    def _losers(self, best: Candidate) -> tuple[Refusal, ...]:
        """Layers of the plan that took longer in int8 than in the engine's default float."""
        quantized = self.engine.compile(
            self._write(materialize(self.candidates.model, best.encoding)), self._options("default")
        )
        int8 = node_times(self.candidates.model, quantized.profile(self.samples[0]))
        floats = node_times(self.float_model, self._floats["float default"].profile(self.samples[0]))
        layers = {placement.consumer for placement in best.encoding.plan.weights}
        losers = []
        for node in self.candidates.model.graph:
            name = str(node.name)
            if name in layers and int8.get(name, 0.0) > floats.get(name, math.inf) * (1 + 5 * NOISE):
                reason = f"measured on {self.engine.name}: {int8[name]:.3g} ms in int8, {floats[name]:.3g} ms in float"
                losers.append(Refusal(node=name, op=node.op_type, reason=reason))
        return tuple(losers)

    def _sqnr(self, session: Session, path: Path) -> float:
        if not self.engine.computes_in_f32:
            session = self.engine.compile(path, self._options("f32"))
        return compare(self._floats["float f32"], session, self.samples).sqnr_db

    def _record(self, contest: Mapping[str, Contender], *, chosen: str | None) -> None:
        for name, entry in contest.items():
            self._trials.append(
                Trial(
                    name=name,
                    median_ms=entry.timings.median_ms,
                    speedup=entry.speedup,
                    speedups=entry.speedups,
                    sqnr_db=entry.sqnr_db,
                    chosen=name == chosen,
                )
            )

    def _options(self, float_precision: str) -> CompileOptions:
        return CompileOptions(threads=self.threads, float_precision=float_precision)

    def _write(self, model: Model) -> Path:
        path = self.folder / f"gate_{next(iter(self._serial))}.onnx"
        save(model, path, limit=LARGE)
        return path
