"""A metric of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fptq.errors import FptqError, MetricError
from fptq.tasks.base import Score, Scores
from fptq.types import Runner

Metric = Callable[[Callable[..., Any]], Any]
"""Called with a function that takes what the model takes and returns what the model returns; returns a number, or one
number for each sample, or a mapping of names to these."""

_LISTED = 200


def by_name(runner: Runner) -> Callable[..., Any]:
    """How a model file is called: arrays by name in and out."""
    return runner


@dataclass(frozen=True, kw_only=True)
class MetricTask:
    """Scores by a user's function.

    Attributes:
        metric: The function.
        higher_is_better: Which way is better, for all of its numbers or by name.
        adapt: From a runner to what the metric calls. For a module it is given and returns torch tensors; the
            default passes arrays by name.
    """

    metric: Metric
    higher_is_better: bool | Mapping[str, bool] = True
    adapt: Callable[[Runner], Callable[..., Any]] = by_name

    def evaluate(self, runner: Runner) -> Scores:
        """The numbers that the metric returns for a network; the first is the one that decides.

        Raises:
            MetricError: The metric raised, or returned something that is not a number.
        """
        try:
            result = self.metric(self.adapt(runner))
        except FptqError:
            raise
        except Exception as error:
            raise MetricError(
                f"{self._name} raised {type(error).__name__}: {error}",
                remedy="It is called with a function that runs the model; see the traceback with --debug",
            ) from error
        named = result if isinstance(result, Mapping) else {self._name: result}
        if not named:
            raise MetricError(f"{self._name} returned an empty mapping", rule="a metric returns at least one number")
        entries = tuple(self._score(str(name), value) for name, value in named.items())
        count = max(len(entry.cases) for entry in entries)
        # Names are for the report's table of cases, which nobody reads beyond a few.
        return Scores(entries=entries, cases=tuple(map(str, range(count))) if count <= _LISTED else ())

    def _score(self, name: str, value: object) -> Score:
        better = self.higher_is_better
        up = better.get(name, True) if isinstance(better, Mapping) else better
        if isinstance(value, list | tuple | np.ndarray) and np.ndim(value) == 1 and len(value):
            cases = tuple(self._number(f"{name}[{i}]", one) for i, one in enumerate(value))
            return Score(name=name, value=math.fsum(cases) / len(cases), higher_is_better=up, cases=cases)
        return Score(name=name, value=self._number(name, value), higher_is_better=up)

    def _number(self, name: str, value: object) -> float:
        if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
            kind = f"{type(value).__module__}.{type(value).__name__}"
            has_item = callable(getattr(value, "item", None))
            raise MetricError(
                f"{self._name} returned {name} = a {kind}",
                rule="a metric returns a number, a list of one for each sample, or a mapping of names to these",
                remedy="Return value.item(), or value.tolist() for one number per sample"
                if has_item
                else "Return a float",
            )
        if not math.isfinite(value):
            raise MetricError(f"{self._name} returned {name} = {value}", rule="a metric is a finite number")
        return float(value)

    @property
    def _name(self) -> str:
        return getattr(self.metric, "__name__", type(self.metric).__name__)
