"""Everything fptq raises on purpose.

    FptqError
    ├── ModelError           the network: unreadable, unsupported, nothing to quantize, NaN weights
    │   └── ParityError      a conversion changed what the network computes
    ├── DataError            calibration, validation or label data
    ├── ConfigError          options, recipe files, contradictory settings
    │   └── BudgetError      no choice of formats meets the budget
    ├── MetricError          the user's metric raised or returned no number
    ├── EngineError          an inference engine refused or failed
    │   └── MissingExtra     a package that an optional feature needs is not installed
    ├── AssetError           a demo network or scan could not be fetched or has the wrong checksum
    └── OutputError          results could not be written

Each says *what* (the name and value at fault), *which rule* was broken and *what to do*, in one line.
"""

from __future__ import annotations

from collections.abc import Mapping


class FptqError(Exception):
    """An error for the user: what happened, the rule behind it, the way out.

    Args:
        what: The name and the value at fault.
        rule: The rule that was broken; empty when `what` says it already.
        remedy: What to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, rule: str = "", remedy: str = "") -> None:
        self.what, self.rule, self.remedy = what, rule, remedy
        parts = (part.strip().rstrip(".") for part in (what, rule, remedy) if part)
        super().__init__(". ".join(parts) + ".")


class ModelError(FptqError):
    """The network cannot be read, is not supported, or has nothing to quantize."""

    exit_code = 3


class ParityError(ModelError):
    """A conversion changed what the network computes."""


class DataError(FptqError):
    """Calibration, validation or label data are missing, unreadable or of the wrong kind."""

    exit_code = 4


class ConfigError(FptqError):
    """An option or a recipe file is wrong or contradicts another one."""

    exit_code = 2


class BudgetError(ConfigError):
    """No choice of formats meets the budget.

    Args:
        what: The limits that cannot be met.
        minimum: What each limited cost can be brought down to when the others do not matter, by its name.
        nearest: Limits that can be met together, with the least relative excess over those that were asked for.
        rule: The rule that was broken.
        remedy: What to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        minimum: Mapping[str, float],
        nearest: Mapping[str, float],
        rule: str = "",
        remedy: str = "",
    ) -> None:
        self.minimum, self.nearest = dict(minimum), dict(nearest)
        super().__init__(what, rule=rule, remedy=remedy)


class MetricError(FptqError):
    """The user's metric raised, or returned something that is not a number."""

    exit_code = 5


class EngineError(FptqError):
    """An inference engine refused the model or failed while running it."""

    exit_code = 6


class MissingExtra(EngineError):
    """A package that an optional feature needs is not installed.

    Args:
        package: Its name.
        extra: The extra of fptq that installs it.
        purpose: What needs it; the subject of "... needs it".
        then: A second command, for what an extra cannot install.
    """

    def __init__(self, package: str, *, extra: str, purpose: str, then: str = "") -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{package} is not installed",
            rule=f"{purpose} needs it",
            remedy=f"Install it with: pip install 'fptq[{extra}]'" + (f" && {then}" if then else ""),
        )


class AssetError(FptqError):
    """A demo asset could not be fetched, or is not the file it should be."""

    exit_code = 7


class OutputError(FptqError):
    """Results could not be written."""

    exit_code = 8


def in_one_line(error: Exception) -> str:
    """An error of another package: its kind and the first lines of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:2]])
