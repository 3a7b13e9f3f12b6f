"""The choices of a mixed-precision search: a predicted loss and costs for every item in every format."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fptq.errors import ConfigError
from fptq.search.budget import shown

ROUNDING = 1e-12
"""A sum may exceed its limit by this fraction: that is rounding."""
_NAMED = 4
"""Assignments of at most so many items are printed in full."""

Floats = NDArray[np.float64]
Columns = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One item in one format.

    Attributes:
        loss: Predicted loss, in any unit that adds up over items.
        costs: What it costs, by name.
    """

    loss: float
    costs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """Every choice there is.

    Attributes:
        items: Names of what is decided: layers, or groups that are tied.
        formats: Names such as "float", "int8", "int4", from the highest precision to the lowest.
        loss: f64[items, formats]; NaN or infinite where an item has no such format.
        costs: f64[items, formats] by name; anything where an item has no such format.

    Raises:
        ConfigError: Shapes or names do not agree, an item has no format, or a cost is not finite.
    """

    items: tuple[str, ...]
    formats: tuple[str, ...]
    loss: Floats
    costs: Mapping[str, Floats]

    def __post_init__(self) -> None:
        if not self.items or not self.formats:
            raise ConfigError("there is nothing to choose", rule="a search needs at least one layer and one format")
        for names in (self.items, self.formats):
            repeated = [name for name, count in Counter(names).items() if count > 1]
            if repeated:
                raise ConfigError(f"{repeated[0]!r} appears twice", rule="names of items and of formats are unique")
        object.__setattr__(self, "loss", self._checked("loss", self.loss))
        costs = {name: self._checked(name, cost) for name, cost in self.costs.items()}
        object.__setattr__(self, "costs", MappingProxyType(costs))
        self._check_cells()

    def _check_cells(self) -> None:
        for item, row in zip(self.items, self.allowed, strict=True):
            if not row.any():
                raise ConfigError(f"{item} has no format", rule="every item can take at least one")
        for name, cost in self.costs.items():
            wrong = self.allowed & ~np.isfinite(cost)
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise ConfigError(
                    f"{name} of {self.items[row]} as {self.formats[column]} is {cost[row, column]}",
                    rule="costs are finite",
                    remedy="Give the format a loss of NaN where the item cannot take it",
                )

    @classmethod
    def of(cls, choices: Mapping[str, Mapping[str, Choice]], formats: Iterable[str]) -> Options:
        """The table of choices by item and format; items need not have the same formats.

        Args:
            choices: By item, then by format.
            formats: All of them, from the highest precision to the lowest.

        Raises:
            ConfigError: A choice has a format that is not listed, or lacks a cost that another one has.
        """
        formats = tuple(formats)
        names = tuple(dict.fromkeys(n for row in choices.values() for choice in row.values() for n in choice.costs))
        loss = np.full((len(choices), len(formats)), math.nan)
        costs = {name: np.full_like(loss, math.nan) for name in names}
        for index, (item, row) in enumerate(choices.items()):
            for name, choice in row.items():
                if name not in formats:
                    raise ConfigError(f"{item} has the format {name!r}", rule=f"there are {', '.join(formats)}")
                column = formats.index(name)
                loss[index, column] = choice.loss
                for cost, value in choice.costs.items():
                    costs[cost][index, column] = value
        return cls(items=tuple(choices), formats=formats, loss=loss, costs=costs)

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """bool[items, formats]: where an item has the format."""
        return np.isfinite(self.loss)

    def _checked(self, name: str, values: Floats) -> Floats:
        array = np.array(values, np.float64)
        if array.shape != (len(self.items), len(self.formats)):
            raise ConfigError(
                f"{name} has the shape {array.shape}",
                rule=f"{len(self.items)} items and {len(self.formats)} formats need one value each",
            )
        array.flags.writeable = False
        return array


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A format for every item. Assignments are equal when these are.

    Attributes:
        items: Names.
        formats: Of each item.
        loss: Sum of the predicted losses.
        costs: Sums by name, all that are known.
        gap: A better one has at most this fraction less loss; NaN where nobody proved that.
    """

    items: tuple[str, ...]
    formats: tuple[str, ...]
    loss: float = field(compare=False)
    costs: Mapping[str, float] = field(compare=False)
    gap: float = field(default=math.nan, compare=False)

    def __getitem__(self, item: str) -> str:
        return self.formats[self.items.index(item)]

    def __str__(self) -> str:
        if len(self.items) <= _NAMED:
            return ", ".join(f"{item} as {name}" for item, name in zip(self.items, self.formats, strict=True))
        counts = sorted(Counter(self.formats).items())
        costs = (f"{name} {shown(name, value)}" for name, value in self.costs.items())
        return ", ".join([*(f"{count} x {name}" for name, count in counts), *costs])

    def as_dict(self) -> dict[str, str]:
        """Formats by item."""
        return dict(zip(self.items, self.formats, strict=True))

    def meets(self, limits: Mapping[str, float]) -> bool:
        """Whether no cost exceeds its limit by more than rounding."""
        return all(limit == math.inf or within(self.costs[name], limit) for name, limit in limits.items())


def monotone(loss: Floats) -> Floats:
    """Losses that do not rise with precision: each one is at least that of every higher precision.

    Estimates are noisy, and a lower precision that looks better by chance would be chosen for that. Raising it
    never promises more than was estimated.

    Args:
        loss: f64[items, formats], from the highest precision to the lowest; NaN or infinite where not allowed.
    """
    known = np.where(np.isfinite(loss), loss, -math.inf)
    return np.where(np.isfinite(loss), np.maximum.accumulate(known, axis=-1), loss)


def checked_limits(table: Options, limits: Mapping[str, float]) -> dict[str, float]:
    """The limits that limit anything."""
    for name, limit in limits.items():
        if name not in table.costs:
            raise ConfigError(
                f"{name} is limited to {limit:g} but has no costs",
                rule=f"known here: {', '.join(table.costs) or 'none'}",
            )
        if math.isnan(limit) or limit == -math.inf:
            raise ConfigError(f"the limit of {name} is {limit}", rule="a limit is a number")
    return {name: limit for name, limit in limits.items() if limit < math.inf}


def within(cost: float, limit: float) -> bool:
    """Whether a cost exceeds its limit by no more than rounding."""
    return cost <= limit + ROUNDING * max(abs(cost), abs(limit))


def least_cost(table: Options, name: str) -> float:
    """Sum of the items' least costs."""
    return math.fsum(np.where(table.allowed, table.costs[name], math.inf).min(1))


def assigned(table: Options, columns: Columns, *, gap: float = math.nan) -> Assignment:
    """The assignment of a column to every row.

    Args:
        table: The choices.
        columns: i64[items].
        gap: See `Assignment`.
    """
    rows = np.arange(len(table.items))
    return Assignment(
        items=table.items,
        formats=tuple(table.formats[column] for column in columns),
        loss=math.fsum(table.loss[rows, columns]),
        costs={name: math.fsum(cost[rows, columns]) for name, cost in table.costs.items()},
        gap=gap,
    )
