"""Every way to quantize one model for one engine that is worth measuring, from one set of statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fptq.calibrate import CalibrationOptions, Statistic, Statistics, needed, solve
from fptq.calibrate.observers import Observer
from fptq.errors import ModelError
from fptq.graph.model import Model
from fptq.plan.encoding import Encoding
from fptq.plan.hoist import if_readers_leave
from fptq.plan.place import place, place_weights
from fptq.plan.plan import Plan, Refusal
from fptq.plan.policy import Policy
from fptq.plan.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A placement with its numbers.

    Attributes:
        variant: Name of the profile's variant it comes from; "storage" when nothing is computed in integers.
        encoding: The quantizers.
        taken_back: Nodes left in float because that was faster, with the measured reason.
    """

    variant: str
    encoding: Encoding
    taken_back: tuple[Refusal, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The candidates of a model on an engine.

    Attributes:
        model: The float network, rewritten for the engine.
        profile: The engine.
        policy: What the user asked for.
        options: Observers.
    """

    model: Model
    profile: Profile
    policy: Policy
    options: CalibrationOptions

    def plans(self) -> dict[str, Plan]:
        """Plans by variant, the most accurate first; variants that come out equal are listed once.

        There is none where no node qualifies for an integer kernel: weights can still be stored as integers.

        Raises:
            ModelError: There is no weight to store either.
        """
        plans: dict[str, Plan] = {}
        for variant in self.profile.variants:
            try:
                plan = place(self.model, self.profile, variant, self.policy)
            except ModelError:
                if not place_weights(self.model, self.profile, self.policy).specs:
                    raise
                continue
            if not any(plan.specs == other.specs and plan.ties == other.ties for other in plans.values()):
                plans[variant.name] = plan
        return plans

    def statistics_needed(self, observers: Iterable[Observer] = ()) -> tuple[Statistic, ...]:
        """What one pass over the calibration data must collect for all of them, whichever layers are taken back.

        Args:
            observers: Further estimators that will be compared, beside that of the options.
        """
        plans = list(self.plans().values())
        plans += [if_readers_leave(self.model, plan, self.profile) for plan in plans]
        asked = (needed(plan, [self.options.observer, *observers]) for plan in plans)
        return tuple(dict.fromkeys(statistic for group in asked for statistic in group))

    def make(self, variant: str, statistics: Statistics, taken_back: tuple[Refusal, ...] = ()) -> Candidate:
        """The candidate of a variant, without the nodes that were taken back.

        Raises:
            ModelError: Nothing is left to quantize.
        """
        chosen = next(v for v in self.profile.variants if v.name == variant)
        back = {refusal.node: "float" for refusal in taken_back}
        precision = {**self.policy.precision, **{_literal(node): wanted for node, wanted in back.items()}}
        policy = replace(self.policy, precision=precision)
        plan = place(self.model, self.profile, chosen, policy)
        kept = tuple(refusal for refusal in plan.refusals if refusal.node not in back)
        plan = replace(plan, refusals=(*kept, *taken_back))
        encoding = solve(self.model, plan, statistics, options=self.options)
        return Candidate(variant=variant, encoding=encoding, taken_back=taken_back)

    def stored(self, candidate: Candidate | None, reason: str) -> Candidate:
        """The candidate, with the weights of its float layers stored as integers too.

        Args:
            candidate: What to complete; None: nothing is computed in integers.
            reason: Why the layers of a `None` candidate stay float.

        """
        weights = place_weights(self.model, self.profile, self.policy)
        if candidate is None:
            refusals = tuple(Refusal(node=r.node, op=r.op, reason=reason) for r in _weighted(self.model, weights))
            plan = replace(weights, refusals=(*weights.refusals, *refusals))
            return Candidate(variant="storage", encoding=solve(self.model, plan, _NOTHING, options=self.options))
        taken = {placement.value for placement in candidate.encoding.plan.weights}
        extra = weights.only(*(p for p in weights.specs if p.value not in taken))
        if not extra.specs:
            return candidate
        added = solve(self.model, extra, _NOTHING, options=self.options)
        return replace(candidate, encoding=_union(candidate.encoding, added))


_NOTHING = Statistics(states={})


def _literal(name: str) -> str:
    """A glob that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _weighted(model: Model, plan: Plan) -> tuple[Refusal, ...]:
    consumers = {placement.consumer for placement in plan.weights}
    return tuple(
        Refusal(node=str(node.name), op=node.op_type, reason="") for node in model.graph if node.name in consumers
    )


def _union(first: Encoding, second: Encoding) -> Encoding:
    plan = replace(
        first.plan,
        specs={**first.plan.specs, **second.plan.specs},
        weights=first.plan.weights | second.plan.weights,
    )
    return replace(first, plan=plan, params={**first.params, **second.params})
