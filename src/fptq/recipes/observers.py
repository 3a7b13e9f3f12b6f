"""Which observers a recipe means."""

from __future__ import annotations

from typing import TypeAlias

from fptq.calibrate import CalibrationOptions, CollectOptions, observer, weight_observer
from fptq.config import Recipe

Pair: TypeAlias = tuple[str, str]
"""Names of the activations' and the weights' observer."""

_FIRST = "lp"
_OTHERS = ("minmax",)
"""Observers of activations that are compared with the first one, where the recipe leaves the choice."""


def first_pair(recipe: Recipe) -> Pair:
    """The recipe's observers, the first choice where several are compared."""
    return (_FIRST if recipe.observer == "auto" else recipe.observer), "minmax"


def other_observers(recipe: Recipe) -> tuple[str, ...]:
    """Observers of activations that are compared with the first choice."""
    return _OTHERS if recipe.observer == "auto" and recipe.recipe != "fast" else ()


def calibration_options(recipe: Recipe, pair: Pair, threads: int = 1) -> CalibrationOptions:
    """A pair with the recipe's numbers.

    The `lp` observer of weights minimises the squared error: nothing but the weight itself is rounded there.
    """
    numbers: dict[str, dict[str, float]] = {"percentile": {"percentile": recipe.percentile}, "lp": {"p": recipe.p}}
    return CalibrationOptions(
        observer=observer(pair[0].replace("-", "_"), numbers.get(pair[0], {})),
        weight_observer=weight_observer(pair[1], {"p": 2.0} if pair[1] == "lp" else {}),
        run=CollectOptions(threads=threads),
    )
