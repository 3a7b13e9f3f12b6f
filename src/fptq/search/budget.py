"""What a search may spend: limits as people write them, such as "0.3x", "40ms" or "3.5MB"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fptq.errors import ConfigError

_RELATIVE = "x"
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(\D*)", re.ASCII | re.IGNORECASE)
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    """How one cost is written.

    Attributes:
        unit: Of the numbers that fptq computes with.
        units: Spellings in lower case, each with its size in `unit`; those without a number in `shown` are aliases.
        shown: Units to print, ascending.
        example: An amount.
    """

    unit: str
    units: Mapping[str, float]
    shown: tuple[str, ...]
    example: str


_SIZE = _Quantity(
    unit="B",
    units={"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    shown=("B", "kB", "MB", "GB"),
    example="3.5MB",
)
_LATENCY = _Quantity(
    unit="ms", units={"us": 1e-3, "μs": 1e-3, "ms": 1, "s": 1e3}, shown=("us", "ms", "s"), example="40ms"
)
_BOPS = _Quantity(
    unit="BOPs",
    units={
        f"{prefix}{tail}": size
        for prefix, size in zip("kmgt", (1e3, 1e6, 1e9, 1e12), strict=True)
        for tail in ("", "bops")
    }
    | {"bops": 1},
    shown=("BOPs", "kBOPs", "MBOPs", "GBOPs", "TBOPs"),
    example="120GBOPs",
)
QUANTITIES: Mapping[str, _Quantity] = MappingProxyType({"size": _SIZE, "latency": _LATENCY, "bops": _BOPS})
"""The costs that a budget limits, by name: size [B], latency [ms], bops [BOPs]."""

_ALL = MappingProxyType({**QUANTITIES, "memory": _SIZE})

_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)\s*([a-z]+)\s*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A limit of one cost.

    Attributes:
        value: Positive and finite; at most 1 where it is relative.
        unit: "x" for a fraction of what the float network costs; else "B", "ms" or "BOPs".
    """

    value: float
    unit: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ConfigError(f"the limit {self} is out of range", rule="a limit is positive and finite")
        if self.relative and self.value > 1:
            raise ConfigError(
                f"the limit {self} is above the float network",
                rule="a relative limit is a fraction of what the float network costs",
                remedy=f"For {self.value:g} times less write {1 / self.value:.3g}x",
            )

    @classmethod
    def parse(cls, text: str, *, cost: str) -> Amount:
        """An amount from what a user wrote.

        >>> Amount.parse("3.5MB", cost="size")
        Amount(value=3500000.0, unit='B')
        >>> Amount.parse("0.3x", cost="size").limit(2e6)
        600000.0

        Args:
            text: A number and a unit, or a number and "x".
            cost: "size", "latency", "bops", or "memory".

        Raises:
            ConfigError: It is no amount of this cost.
        """
        quantity, option = _ALL[cost], cost if cost == "memory" else f"max_{cost}"
        value, unit = _number(text, option, f"{quantity.example} or 0.3x")
        if unit in (_RELATIVE, "×"):
            return cls(value=value, unit=_RELATIVE)
        if unit in quantity.units:
            return cls(value=value * quantity.units[unit], unit=quantity.unit)
        raise ConfigError(
            f"{option} = {text!r} has {f'the unknown unit {unit!r}' if unit else 'no unit'}",
            rule=f"units are {', '.join(quantity.shown)}, and x for a fraction of the float network",
            remedy=f"Write it such as {quantity.example} or 0.3x",
        )

    @property
    def relative(self) -> bool:
        """Whether it is a fraction of the float network's cost."""
        return self.unit == _RELATIVE

    def limit(self, float_cost: float) -> float:
        """The limit in the cost's unit, for a float network that costs this much."""
        return self.value * float_cost if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Everything a search may not exceed; what is None is free.

    Attributes:
        max_size: Stored bytes.
        max_latency: Time of one run.
        max_bops: Bit operations of one run.
        max_drop: Loss of the metric against the float network, in the metric's unit, >= 0.
        time_budget: Time that the search itself may take [s], > 0.
    """

    max_size: Amount | None = None
    max_latency: Amount | None = None
    max_bops: Amount | None = None
    max_drop: float | None = None
    time_budget: float | None = None

    def __post_init__(self) -> None:
        for cost, amount in self.amounts.items():
            if amount.unit not in (_RELATIVE, QUANTITIES[cost].unit):
                raise ConfigError(
                    f"max_{cost} = {amount} contradicts its unit",
                    rule=f"it is given in {QUANTITIES[cost].unit} or as a fraction of the float network",
                    remedy=f"Write it such as {QUANTITIES[cost].example} or 0.3x",
                )
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise ConfigError(f"max_drop = {self.max_drop:g} is out of range", rule="a drop is finite and at least 0")
        if self.time_budget is not None and not 0 < self.time_budget < math.inf:
            raise ConfigError(f"time_budget = {self.time_budget:g} s is out of range", rule="a time is positive")

    @classmethod
    def parse(cls, **options: str | float | None) -> Budget:
        """A budget from options as a user writes them.

        >>> Budget.parse(max_size="0.3x", max_drop="0.005", time_budget="1m30s").time_budget
        90.0

        Args:
            options: The attributes as text; numbers too for `max_drop` and `time_budget` [s]; None is free.

        Raises:
            ConfigError: One is unknown or no such amount.
        """
        given = {name: value for name, value in options.items() if value is not None}
        unknown = [name for name in given if name not in cls.__dataclass_fields__]
        if unknown:
            raise ConfigError(f"unknown budget {unknown[0]!r}", rule=f"there are {', '.join(cls.__dataclass_fields__)}")
        costs = {f"max_{cost}": cost for cost in QUANTITIES}
        amounts = {name: Amount.parse(str(given[name]), cost=cost) for name, cost in costs.items() if name in given}
        return cls(
            **amounts,
            max_drop=_drop(given["max_drop"]) if "max_drop" in given else None,
            time_budget=_seconds(given["time_budget"]) if "time_budget" in given else None,
        )

    @property
    def amounts(self) -> dict[str, Amount]:
        """The limits of costs, by the name of the cost."""
        given = {"size": self.max_size, "latency": self.max_latency, "bops": self.max_bops}
        return {cost: amount for cost, amount in given.items() if amount is not None}

    def limits(self, float_costs: Mapping[str, float]) -> dict[str, float]:
        """The limits in bytes, ms and BOPs.

        Args:
            float_costs: What the float network costs, by the name of the cost.

        Raises:
            ConfigError: A cost is limited that nothing is known about.
        """
        missing = [cost for cost in self.amounts if cost not in float_costs]
        if missing:
            raise ConfigError(
                f"max_{missing[0]} = {self.amounts[missing[0]]} limits what was not measured",
                rule=f"known here: {', '.join(float_costs) or 'no cost'}",
                remedy="Measure it, such as on an engine for latency, or drop the limit",
            )
        return {cost: amount.limit(float_costs[cost]) for cost, amount in self.amounts.items()}

    def check(self, *, has_metric: bool, has_engine: bool) -> None:
        """Refuse limits that contradict what else was asked for.

        Args:
            has_metric: Whether the network can be scored.
            has_engine: Whether latencies can be measured.

        Raises:
            ConfigError: They do.
        """
        if self.max_drop is not None and not has_metric:
            raise ConfigError(
                f"max_drop = {self.max_drop:g} without a metric",
                rule="a drop is a loss of the metric on validation data",
                remedy="Give a metric or labels, or limit size, latency or BOPs instead",
            )
        if self.max_latency is not None and not has_engine:
            raise ConfigError(
                f"max_latency = {self.max_latency} without an engine",
                rule="latency is measured on the engine that runs the model",
                remedy="Choose an engine, or limit size or BOPs instead",
            )


def shown(cost: str, value: float) -> str:
    """A cost as `Amount.parse` reads it, rounded up: a limit that is copied from a message can be met.

    >>> shown("size", 1234567)
    '1.235MB'

    Args:
        cost: Its name; the unit is left out where it is no cost of a budget.
        value: Any finite number.
    """
    quantity = QUANTITIES.get(cost)
    if quantity is None:
        return _rounded_up(value, 1.0)
    sizes = {unit: quantity.units[unit.lower()] for unit in quantity.shown}
    unit = next((u for u in reversed(quantity.shown) if abs(value) >= sizes[u]), quantity.shown[0])
    return f"{_rounded_up(value, sizes[unit])}{unit}"


def _rounded_up(value: float, unit: float) -> str:
    """The shortest decimal of a few digits that is not below `value` when it is read back and scaled."""
    scaled = value / unit
    if scaled == 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(abs(scaled))) - _DIGITS + 1)
    whole = math.ceil(scaled / step * (1 - math.copysign(1e-12, scaled)))
    text = f"{whole * step:.{_DIGITS}g}"
    return text if float(text) * unit >= value else f"{(whole + 1) * step:.{_DIGITS}g}"


def _number(text: str, option: str, example: str) -> tuple[float, str]:
    """The number and the unit, in lower case."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{option} = {text!r} is no amount", rule="an amount is a number and a unit", remedy=f"Write {example}"
        )
    return float(match[1]), match[2].strip().casefold()


def _drop(given: str | float) -> float:
    value, unit = _number(str(given), "max_drop", "0.005")
    if unit:
        raise ConfigError(
            f"max_drop = {given!r} has the unit {unit!r}",
            rule="a drop is in the unit of the metric, as a plain number",
            remedy="Write it such as 0.005",
        )
    return value


def _seconds(given: str | float) -> float:
    """A duration [s] such as "90s" or "1h30m"; a plain number is in seconds where it is no text."""
    if not isinstance(given, str):
        return float(given)
    text = given.strip().lower()
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text) or any(unit not in _SECONDS for _, unit in parts):
        raise ConfigError(
            f"time_budget = {given!r} is no duration",
            rule="units are s, m and h",
            remedy="Write it such as 90s, 10m or 1h30m",
        )
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
