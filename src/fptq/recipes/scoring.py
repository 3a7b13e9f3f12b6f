"""Scores of quantized networks for accuracy control: by the user's own metric, on the engine, each once and for all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import fptq
from fptq.cache import Cache, CacheEntry, cache_key
from fptq.engines.cpu import detect
from fptq.errors import MetricError
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan.encoding import Encoding, plan_to_json
from fptq.recipes.costs import Target
from fptq.recipes.study import Realized
from fptq.tasks import ProteinTask, Scores, SegmentationTask, Task
from fptq.tasks.fingerprint import fingerprint

_LOG = logging.getLogger(__name__)
_KIND, _VERSION = "evaluation", 1


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores networks by one task, always on the same cases.

    Attributes:
        task: What scores.
        floats: f64[cases]: scores of the float network, higher is better.
        metric: Name of the score that decides.
        defined: bool[all cases]: those that count, where the float network's score is a number.
        fingerprint: Of the task; None: scores are not kept between runs.
        target: Where networks run.
        folder: For their files.
        store: The cache.
    """

    task: Task
    floats: NDArray[np.float64]
    metric: str
    defined: NDArray[np.bool_]
    fingerprint: str | None
    target: Target
    folder: Path
    store: Cache

    @classmethod
    def open(cls, task: Task, model: Model, *, target: Target, folder: Path, store: Cache) -> Scorer:
        """Score the float network.

        Args:
            task: What scores; of a segmentation Dice alone, of proteins the accuracy.
            model: The float network.
            target: Where networks run.
            folder: For their files.
            store: The cache.

        Raises:
            MetricError: The task gives no score, or no case has one.
        """
        if isinstance(task, SegmentationTask):
            task = replace(task, metrics=("dice",))  # surfaces take longer than the network
        if isinstance(task, ProteinTask):
            task = replace(task, metrics=("accuracy",))  # the others take more runs or decide nothing
        path = folder / "scored_float.onnx"
        save(model, path)
        exact = target.engine.compile(path, replace(target.options, float_precision="f32"))
        signed, name = _signed(task.evaluate(exact))
        defined = np.isfinite(signed)
        if not defined.any():
            raise MetricError(f"{name} is not defined for any case", rule="a drop is measured on at least one case")
        known = fingerprint(task)
        if known is None:
            _LOG.info("scores are not kept between runs: the metric reads what fptq cannot tell apart")
        return cls(
            task=task,
            floats=signed[defined],
            metric=name,
            defined=defined,
            fingerprint=known,
            target=target,
            folder=folder,
            store=store,
        )

    def scores(self, realized: Realized) -> NDArray[np.float64]:
        """f64[cases]: the scores of a network, kept in the store as soon as they are known."""
        path = self.folder / "scored.onnx"
        save(realized.network, path)
        signed, _ = _signed(self.task.evaluate(self.target.engine.compile(path, self.target.options)))
        if signed.size != self.defined.size:
            raise MetricError(
                f"the metric gave {signed.size} scores",
                rule=f"it gave {self.defined.size} for the float network, and they are compared one by one",
            )
        found = signed[self.defined]
        # A case that is defined for the float network alone has neither mask nor label now: nothing is lost there.
        found = np.where(np.isnan(found), self.floats, found)
        if self.fingerprint is not None:
            self.store.put(_KIND, self._key(realized), CacheEntry(arrays={"scores": found}, meta={}))
        return found

    def known(self, realized: Realized) -> NDArray[np.float64] | None:
        """Scores from the store; None where there are none."""
        if self.fingerprint is None:
            return None
        entry = self.store.get(_KIND, self._key(realized))
        return None if entry is None else np.asarray(entry.arrays["scores"])

    def _key(self, realized: Realized) -> str:
        """Everything that a score depends on; the float network's own scores stand for what nobody can see."""
        engine = self.target.engine
        versions = (_VERSION, fptq.__version__, engine.name, engine.version(), detect().name, self.target.threads)
        return cache_key(versions, realized.model.sha256, _numbers(realized.encoding), self.fingerprint, self.floats)


def _numbers(encoding: Encoding) -> tuple[object, ...]:
    params = [(str(p), params.scale, params.zero_point) for p, params in encoding.params.items()]
    return (plan_to_json(replace(encoding.plan, refusals=())), params, sorted(map(str, encoding.codes)))


def _signed(scores: Scores) -> tuple[NDArray[np.float64], str]:
    """The primary score by case, or as a whole where it has none; negated where lower is better."""
    primary = scores.primary
    if primary is None:
        raise MetricError(
            "the task gives no score", rule="a drop is a loss of a score", remedy="Give labels or a metric"
        )
    values: Sequence[float] = primary.cases or (primary.value,)
    sign = 1.0 if primary.higher_is_better else -1.0
    return sign * np.asarray(values, np.float64), primary.name
