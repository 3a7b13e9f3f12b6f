"""The part of a report about activations that one scale does not fit: what was tried, what won where, and why."""

from __future__ import annotations

from fptq.report import text
from fptq.report.records import Count, Number, Record


class PolicyTrial(Record):
    """A policy that was offered for an activation.

    Attributes:
        policy: Its name: "pieces", "two regions", "per token", "float input" or "smoothing".
        detail: Which of its forms.
        local_db: What it leaves of the activation itself: SQNR [dB]; null where it leaves it as it is.
        estimate: Latency that it was expected to add, as a share of that with uniform quantizers.
        after_db: SQNR of the output with it, on samples held out [dB]; null where it was not run.
        latency: Of the network with it, divided by that with uniform quantizers; the median over paired rounds.
        latency_at_most: The upper limit of that, by a sign test (90 %).
        more: Latency that it adds to the best before it, as a share.
        rounds: Rounds that were timed; 0 where latencies are estimates.
        kept: Whether the result has it.
        reason: Why it was kept, or why not.
    """

    policy: str
    detail: str
    local_db: Number = None
    estimate: Number = None
    after_db: Number = None
    latency: Number = None
    latency_at_most: Number = None
    more: Number = None
    rounds: Count = 0
    kept: bool = False
    reason: str = ""


class PolicyDecision(Record):
    """An activation that loses much with one scale, and what was decided.

    Attributes:
        tensor: Its name.
        readers: The products that read it.
        module: Where the first of them is in the user's model; empty where unknown.
        local_db: What the uniform quantizer leaves of it: SQNR [dB].
        before_db: SQNR of the output before, on samples held out [dB].
        trials: What was offered, what promised most for its time first.
    """

    tensor: str
    readers: tuple[str, ...]
    module: str = ""
    local_db: Number = None
    before_db: Number = None
    trials: tuple[PolicyTrial, ...] = ()

    @property
    def winner(self) -> PolicyTrial | None:
        """What was kept; None where the uniform quantizer stays."""
        return next((trial for trial in self.trials if trial.kept), None)

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.module or self.tensor


class Policies(Record):
    """What was decided about the activations that lose most.

    Attributes:
        budget: Latency that all of it may add, as a share of that with uniform quantizers.
        uniform_ms: Median latency with uniform quantizers, in the last comparison [ms].
        latency: Of the result, divided by that with uniform quantizers; null where nothing was kept or timed.
        latency_at_most: The upper limit of that, by a sign test (90 %).
        decisions: One for each activation, the worst first.
        replayed: Whether a plan decided, and nothing was timed.
    """

    budget: Number
    uniform_ms: Number = None
    latency: Number = None
    latency_at_most: Number = None
    decisions: tuple[PolicyDecision, ...] = ()
    replayed: bool = False


def conclusion(policies: Policies) -> str:
    """What won where, in one sentence."""
    kept = [(one, winner) for one in policies.decisions if (winner := one.winner) is not None]
    count = len(policies.decisions)
    looked = "the activation that loses most" if count == 1 else f"the {count} activations that lose most"
    if not kept:
        return (
            f"Of {looked}, all keep the uniform quantizer."
            if count > 1
            else f"Of {looked}, the uniform quantizer stays."
        )
    names = "; ".join(f"{winner.policy} for {one.name}{_gain(one, winner)}" for one, winner in kept)
    return f"Of {looked}, {len(kept)} got another quantizer: {names}.{_price(policies)}"


def _gain(decision: PolicyDecision, winner: PolicyTrial) -> str:
    own = f"its own SQNR {text.decibels(decision.local_db)} → {text.decibels(winner.local_db)} dB, "
    output = f"the output's {_fine(decision.before_db)} → {_fine(winner.after_db)} dB"
    return f" ({own if winner.local_db is not None else ''}{output})"


def _fine(level: float | None) -> str:
    """A level with two decimals: what a single activation brings is less than one decimal shows."""
    return text.DASH if level is None else f"{level:.2f}"


def _price(policies: Policies) -> str:
    if policies.replayed:
        return " A plan decided; nothing was timed."
    if policies.latency is None:
        return ""
    timed = any(trial.rounds for one in policies.decisions for trial in one.trials)
    said = f" Together they take {policies.latency:.3f} of the uniform latency"
    limit = f"{1 + (policies.budget or 0):.2f} was allowed"
    return f"{said} (at most {policies.latency_at_most:.3f}; {limit})." if timed else f"{said}, estimated; {limit}."
