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
"""Called with a function that takes what the model takes and returns what the model returns; returns a number or a
mapping of names to numbers."""


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
        return Scores(entries=tuple(self._score(str(name), value) for name, value in named.items()))

    def _score(self, name: str, value: object) -> Score:
        if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
            kind = f"{type(value).__module__}.{type(value).__name__}"
            has_item = callable(getattr(value, "item", None))
            raise MetricError(
                f"{self._name} returned {name} = a {kind}",
                rule="a metric returns a number or a mapping of names to numbers",
                remedy="Return value.item()" if has_item else "Return a float",
            )
        if not math.isfinite(value):
            raise MetricError(f"{self._name} returned {name} = {value}", rule="a metric is a finite number")
        better = self.higher_is_better
        up = better.get(name, True) if isinstance(better, Mapping) else better
        return Score(name=name, value=float(value), higher_is_better=up)

    @property
    def _name(self) -> str:
        return getattr(self.metric, "__name__", type(self.metric).__name__)
