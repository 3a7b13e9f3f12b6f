"""What was decided about activations that lose much, with what decided it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fptq.engines.benchmark import Timings
from fptq.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Latency of a network, relative to the one with uniform quantizers alone, under the load where it is most.

    Attributes:
        ratio: The median over paired rounds.
        at_most: The upper limit of that, by a sign test (90 %).
        more: Latency over that of the best so far, minus 1.
        rounds: Rounds that were timed, of all loads; 0 where the numbers are estimates.
    """

    ratio: float
    at_most: float
    more: float
    rounds: int = 0

    @classmethod
    def measured(cls, timings: Timings, *, uniform: Timings, best: Timings) -> Cost:
        """From runs that took turns."""
        return cls(
            ratio=1 / min(timings.speedups_over(uniform)),
            at_most=1 / min(timings.sure_speedups_over(uniform)),
            more=1 / min(timings.speedups_over(best)) - 1,
            rounds=sum(len(timing.samples) for timing in timings.by_load),
        )


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One offer.

    Attributes:
        policy: Name of the policy.
        detail: Which of its forms.
        sqnr_db: What it leaves of the activation itself [dB].
        estimate: The latency that it was expected to add, as a share of that with uniform quantizers.
        after_db: Output SQNR with it on held-out samples [dB]; None where it was not run.
        cost: Its latency; None where it was not timed.
        kept: Whether the result has it.
        reason: Why it was kept, or why not.
    """

    policy: str
    detail: str
    sqnr_db: float
    estimate: float
    after_db: float | None = None
    cost: Cost | None = None
    kept: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One activation.

    Attributes:
        value: Its name.
        readers: The products that read it.
        sqnr_db: What the uniform quantizer leaves of it [dB].
        before_db: Output SQNR before, on held-out samples [dB].
        attempts: The offers, in order.
    """

    value: str
    readers: tuple[str, ...]
    sqnr_db: float
    before_db: float
    attempts: tuple[Attempt, ...]

    @property
    def winner(self) -> Attempt | None:
        """The offer that was kept; None where the uniform quantizer stays."""
        return next((attempt for attempt in self.attempts if attempt.kept), None)


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """All of them.

    Attributes:
        limit: Latency that they may add together, as a share of that with uniform quantizers.
        cost: Of the network with all that was kept; None where nothing was.
        uniform_ms: Median latency of a sample with uniform quantizers, in the last comparison [ms]; None where none was
            timed.
        made: One for each activation, the worst first.
        replayed: Whether a plan decided, and nothing was timed.
    """

    limit: float
    cost: Cost | None = None
    uniform_ms: float | None = None
    made: tuple[Decision, ...] = ()
    replayed: bool = False

    def to_json(self) -> list[dict[str, str]]:
        """What a replay needs: which policy stands where."""
        kept = ((decision, decision.winner) for decision in self.made)
        return [
            {"value": decision.value, "policy": winner.policy, "detail": winner.detail}
            for decision, winner in kept
            if winner is not None
        ]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A decision of a plan that is replayed."""

    value: str
    policy: str
    detail: str


def choices_of(document: Mapping[str, Any]) -> tuple[Choice, ...]:
    """The choices of a plan; none where it has been written without any.

    Raises:
        ConfigError: They are not readable.
    """
    rows: Iterable[Mapping[str, str]] = document.get("policies", ())
    try:
        return tuple(Choice(**row) for row in rows)
    except TypeError as error:
        raise ConfigError(f"not a plan: {error}", remedy="Give a plan.json that fptq wrote") from error
