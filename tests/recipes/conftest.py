"""A problem with the first numbers for its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fptq.cache import Cache
from fptq.calibrate import collect, needed, observer
from fptq.config import Recipe
from fptq.graph.model import Model
from fptq.plan import PROFILES, place
from fptq.recipes.problem import Problem
from fptq.recipes.workbench import Refined, unrefined
from fptq.types import Feeds


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., tuple[Problem, Refined]]:
    """The problem of a network on samples, of which the first two are held out, and its numbers by observers' names."""

    def start(
        model: Model, feeds: Sequence[Feeds], recipe: Recipe, *, observers: Sequence[str]
    ) -> tuple[Problem, Refined]:
        problem = Problem(
            model=model,
            calibration=feeds[2:],
            held_out=tuple(feeds[:2]),
            task=None,
            recipe=recipe,
            store=Cache(tmp_path),
        )
        profile = PROFILES[recipe.engine]
        plan = place(model, profile, profile.variants[0])
        statistics = collect(model, needed(plan, [observer(name) for name in observers]), problem.calibration)
        return problem, unrefined(model, plan, statistics=statistics, recipe=recipe)

    return start
