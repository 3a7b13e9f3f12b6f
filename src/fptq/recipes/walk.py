"""The points of a front under accuracy control: measured by the user's own metric, each once and for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fptq.recipes.scoring import Scorer
from fptq.recipes.study import Realized
from fptq.search import Assignment, accuracy
from fptq.types import Progress

WALKED = 32
"""Points that accuracy control bisects: five evaluations."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A front and what measures it.

    Attributes:
        points: From the cheapest to the most accurate.
        scorer: The metric, and the float network's scores.
        realized: The network of a point.
        progress: Told how the walk advances.
    """

    points: Sequence[Assignment]
    scorer: Scorer
    realized: Callable[[Assignment], Realized]
    progress: Progress

    def outcome(self, floor: accuracy.Floor) -> accuracy.Outcome:
        """The cheapest point that keeps the floor."""
        known = {point: scores for point in self.points if (scores := self._known(point)) is not None}
        return accuracy.control(self.points, self._measured(), floats=self.scorer.floats, floor=floor, known=known)

    def spread(self, count: int) -> list[Assignment]:
        """So many of the points, evenly."""
        return [self.points[i] for i in sorted({round(x) for x in np.linspace(0, len(self.points) - 1, count)})]

    def _known(self, point: Assignment) -> NDArray[np.float64] | None:
        return self.scorer.floats if all_float(point) else self.scorer.known(self.realized(point))

    def _measured(self) -> accuracy.Evaluate:
        """The metric, with the progress of the walk."""
        steps, done = math.ceil(math.log2(WALKED)) + 1, 0

        def evaluate(assignment: Assignment) -> NDArray[np.float64]:
            nonlocal done
            self.progress(min(done, steps - 1), steps, "accuracy control")
            scores = self.scorer.scores(self.realized(assignment))
            done += 1
            self.progress(min(done, steps), steps, "accuracy control")
            return scores

        return evaluate


def all_float(assignment: Assignment) -> bool:
    """Whether nothing is quantized."""
    from fptq.analyze.cost import FLOAT

    return set(assignment.formats) == {FLOAT}
