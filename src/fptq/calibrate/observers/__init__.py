"""Estimators of quantizer parameters: the tables of what there is."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from fptq.calibrate.observers.base import Observer, WeightObserver
from fptq.calibrate.observers.entropy import Entropy
from fptq.calibrate.observers.lp import Lp
from fptq.calibrate.observers.minmax import MinMax
from fptq.calibrate.observers.moving_average import MovingAverage
from fptq.calibrate.observers.percentile import Percentile
from fptq.errors import ConfigError

__all__ = [
    "OBSERVERS",
    "WEIGHT_OBSERVERS",
    "Entropy",
    "Lp",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "WeightObserver",
    "observer",
    "weight_observer",
]

_Made = TypeVar("_Made")

OBSERVERS: Mapping[str, Callable[..., Observer]] = MappingProxyType(
    {
        "minmax": MinMax,
        "moving_average": MovingAverage,
        "percentile": Percentile,
        "entropy": Entropy,
        "lp": Lp,
    }
)
"""Observers of activations by name."""

WEIGHT_OBSERVERS: Mapping[str, Callable[..., WeightObserver]] = MappingProxyType({"minmax": MinMax, "lp": Lp})
"""Observers of weights by name."""


def observer(name: str, numbers: Mapping[str, float] = MappingProxyType({})) -> Observer:
    """The observer of activations called `name`.

    Args:
        name: A key of `OBSERVERS`.
        numbers: Its own settings, such as `{"percentile": 99.9}`.

    Raises:
        ConfigError: There is no such observer, or it has no such setting, or the value is out of range.

    >>> observer("percentile", {"percentile": 99.9})
    Percentile(percentile=99.9)
    """
    return _made(name, numbers, OBSERVERS)


def weight_observer(name: str, numbers: Mapping[str, float] = MappingProxyType({})) -> WeightObserver:
    """The observer of weights called `name`, a key of `WEIGHT_OBSERVERS`; see `observer`."""
    return _made(name, numbers, WEIGHT_OBSERVERS)


def _made(name: str, numbers: Mapping[str, float], table: Mapping[str, Callable[..., _Made]]) -> _Made:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no observer is called {name!r}", rule=f"there are {', '.join(table)}", remedy=remedy)
    try:
        return table[name](**numbers)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"observer {name!r} cannot take {dict(numbers)}", rule=str(error)) from error
