"""Try policies on the activations that lose most, and keep what gains most of the output for its time.

Error and cost are measured on the engine: output SQNR on held-out samples, and the latency of the whole network, the
uniform network, the best so far and the candidates in turns. What does not surely stay within the budget, under every
load, goes, and so does what takes more of the latency than the gate would give for the same gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fptq.engines.benchmark import Timings
from fptq.graph.model import Model
from fptq.plan import PROFILES
from fptq.plan.encoding import Encoding
from fptq.recipes.policies import POLICIES
from fptq.recipes.policies.decisions import Attempt, Choice, Cost, Decision, Decisions
from fptq.recipes.policies.offer import Offer
from fptq.recipes.policies.spots import Spot, spot_at, worst_spots
from fptq.recipes.refine import EFFORTS
from fptq.recipes.workbench import MARGIN, Bench, Refined
from fptq.search.trade import NOISE, worth

LATENCY_BUDGET = 0.15
"""Latency that all policies may add together, as a share of that of uniform int8."""
LEAST_GAIN_DB = 3.0
"""Of the SQNR of the activation itself: what is worth a trial."""
FEW_OFFERS = 3
"""Offers for one activation that are run by recipes that must be quick: those that promise most for their time."""

STEADY = 0.75
"""Share of the held-out samples that must gain, each for itself: a few differ by tenths of a decibel by chance."""

Networks = Mapping[str, tuple[Model, Encoding]]
Clock = Callable[[Networks], Mapping[str, Timings]]
"""Latencies of networks that take turns on the engine; those that it refuses are left out."""

Judges = Callable[[Model, Encoding], Sequence[float]]
"""Output SQNR of an encoding on each held-out sample for itself [dB]."""

_UNIFORM, _BEST = "uniform", "best so far"


@dataclass(kw_only=True)
class Contest:
    """Policies against uniform quantizers.

    Attributes:
        bench: The network that refinement has found, and what judges it.
        judges: Say whether a gain is there on most samples; None: the gain over all of them counts alone.
        clock: Times networks; None: costs are estimates.
        limit: Latency that may be added, as a share.
    """

    bench: Bench
    clock: Clock | None
    judges: Judges | None = None
    limit: float = LATENCY_BUDGET
    _uniform: Refined = field(init=False)
    _uniform_ms: float | None = None
    _cost: Cost | None = None
    _made: list[Decision] = field(default_factory=list)
    _best_judged: Sequence[float] | None = None

    def __post_init__(self) -> None:
        self._uniform = self.bench.best

    def decide(self) -> Decisions:
        """Contest the worst activations, one after the other; `bench.best` is the network that results."""
        count = EFFORTS[self.bench.problem.recipe.recipe].spots
        if count and math.isfinite(self.bench.best_db):
            for spot in worst_spots(self.bench.best, self.bench.problem.calibration, count):
                self._decide(spot)
        return self._decisions(replayed=False)

    def replay(self, choices: Sequence[Choice]) -> Decisions:
        """Do what a plan says; nothing is timed."""
        for choice in choices:
            spot = spot_at(self.bench.best, self.bench.problem.calibration, choice.value)
            if spot is not None:
                self._repeat(spot, choice)
        return self._decisions(replayed=True)

    def _decisions(self, *, replayed: bool) -> Decisions:
        return Decisions(
            limit=self.limit, cost=self._cost, uniform_ms=self._uniform_ms, made=tuple(self._made), replayed=replayed
        )

    def _decide(self, spot: Spot) -> None:
        attempts: list[Attempt] = []
        running: dict[int, Refined] = {}
        most = math.inf if EFFORTS[self.bench.problem.recipe.recipe].calibrates_again else FEW_OFFERS
        for offer in sorted(self._offers(spot), key=lambda offer: -self._promise(spot, offer)):
            attempt, candidate = self._tried(spot, offer, more=most)
            most -= attempt.after_db is not None
            if candidate is not None:
                running[len(attempts)] = candidate
            attempts.append(attempt)
        before = self.bench.best_db
        timed = self._timed({number: attempts[number] for number in running}, running)
        judged = [timed.get(number, attempt) for number, attempt in enumerate(attempts)]
        chosen = self._chosen(judged)
        if chosen is not None:
            judged = [_lost(one, judged[chosen], before) for one in judged]
            judged[chosen] = replace(judged[chosen], kept=True, reason="gains most of the output for its time")
            self._keep(spot, judged[chosen], running[chosen])
        self._made.append(_decision(spot, before, judged))

    def _offers(self, spot: Spot) -> Iterator[Offer]:
        for cost in PROFILES[self.bench.best.encoding.plan.engine].policies:
            yield from POLICIES[cost.policy](spot, self.bench)

    def _promise(self, spot: Spot, offer: Offer) -> float:
        """The share of its own noise that an offer takes away, for the time that it is expected to take."""
        return (1 - 10 ** ((spot.sqnr_db - offer.sqnr_db) / 10)) / max(self._estimate(spot, offer), NOISE)

    def _tried(self, spot: Spot, offer: Offer, *, more: float) -> tuple[Attempt, Refined | None]:
        """The offer as far as it came, and its network where its error is good enough for its time to matter."""
        attempt = Attempt(
            policy=offer.policy, detail=offer.detail, sqnr_db=offer.sqnr_db, estimate=self._estimate(spot, offer)
        )
        spent = self._cost.ratio - 1 if self._cost else 0.0
        if offer.sqnr_db < spot.sqnr_db + LEAST_GAIN_DB:
            return replace(attempt, reason=f"its own SQNR gains less than {LEAST_GAIN_DB:g} dB"), None
        if attempt.estimate > self.limit - spent:
            left = max(self.limit - spent, 0.0)
            return replace(attempt, reason=f"expected to add {attempt.estimate:.1%}, {left:.1%} is left"), None
        if more < 1:
            return replace(attempt, reason=f"not run: {FEW_OFFERS} others promise more for their time"), None
        candidate = self._made_by(spot, offer)
        if candidate is None:
            return replace(attempt, reason="the network would not compute the same"), None
        after = self.bench.score(candidate.model, candidate.encoding)
        attempt, gain = replace(attempt, after_db=after), after - self.bench.best_db
        if not gain >= MARGIN:
            return replace(attempt, reason=f"the output's SQNR changes by {gain:+.2f} dB"), None
        gained = self._gained(candidate)
        if sum(gained) < STEADY * len(gained):
            return replace(attempt, reason=f"{sum(gained)} of {len(gained)} held-out samples gain by it: chance"), None
        return attempt, candidate

    def _gained(self, candidate: Refined) -> list[bool]:
        """Which of the held-out samples gain; what the best so far loses on each is asked once."""
        if self.judges is None:
            return []
        if self._best_judged is None:
            self._best_judged = self.judges(self.bench.best.model, self.bench.best.encoding)
        after = self.judges(candidate.model, candidate.encoding)
        return [new > old for old, new in zip(self._best_judged, after, strict=True)]

    def _made_by(self, spot: Spot, offer: Offer) -> Refined | None:
        best = self.bench.best
        candidate = offer.make(best)
        if candidate is None:
            return None
        name = f"{offer.policy} for {spot.cut.value}"
        same = candidate.model is best.model or self.bench.computes_the_same(name, candidate.model)
        return candidate if same else None

    def _estimate(self, spot: Spot, offer: Offer) -> float:
        """Products are taken to need time by their weights; the rest of the network makes it less."""
        profile = PROFILES[self.bench.best.encoding.plan.engine]
        overhead = next(cost.overhead for cost in profile.policies if cost.policy == offer.policy)
        return spot.weight_share * (overhead + offer.extra)

    def _timed(self, attempts: Mapping[int, Attempt], running: Mapping[int, Refined]) -> dict[int, Attempt]:
        """The attempts with their latency, and with a reason where that is too much."""
        if not running:
            return {}
        if self.clock is None:
            costs = {number: self._estimated(attempt) for number, attempt in attempts.items()}
        else:
            costs = self._measured(self.clock, running)
        return {number: self._priced(attempt, costs.get(number)) for number, attempt in attempts.items()}

    def _estimated(self, attempt: Attempt) -> Cost:
        ratio = (self._cost.ratio if self._cost else 1.0) + attempt.estimate
        return Cost(ratio=ratio, at_most=ratio, more=attempt.estimate)

    def _measured(self, clock: Clock, running: Mapping[int, Refined]) -> dict[int, Cost]:
        networks = {_UNIFORM: self._uniform, **({_BEST: self.bench.best} if self._cost else {})}
        networks |= {str(number): candidate for number, candidate in running.items()}
        timings = clock({name: (one.model, one.encoding) for name, one in networks.items()})
        uniform = timings[_UNIFORM]
        best = timings.get(_BEST, uniform)
        self._uniform_ms = uniform.median_ms
        return {
            number: Cost.measured(timings[str(number)], uniform=uniform, best=best)
            for number in running
            if str(number) in timings
        }

    def _priced(self, attempt: Attempt, cost: Cost | None) -> Attempt:
        if cost is None:
            return replace(attempt, reason="the engine refuses it")
        attempt, gain = replace(attempt, cost=cost), self._gain(attempt)
        if cost.at_most > 1 + self.limit:
            return replace(
                attempt, reason=f"may take {cost.at_most:.3f} of the uniform latency, {1 + self.limit:.3f} is allowed"
            )
        if _charged(attempt) > max(NOISE, worth(gain)):
            return replace(attempt, reason=f"{gain:.2f} dB are not worth {_charged(attempt):.1%} of the latency")
        return attempt

    def _chosen(self, attempts: Sequence[Attempt]) -> int | None:
        """The place of the one that gains most for its time, of those that nothing speaks against."""
        good = {
            number: self._gain(one) / max(_charged(one), NOISE)
            for number, one in enumerate(attempts)
            if not one.reason and one.cost is not None
        }
        return max(good, key=lambda number: good[number], default=None)

    def _gain(self, attempt: Attempt) -> float:
        """Output SQNR over the best so far [dB]."""
        assert attempt.after_db is not None
        return attempt.after_db - self.bench.best_db

    def _keep(self, spot: Spot, attempt: Attempt, candidate: Refined) -> None:
        assert attempt.after_db is not None
        own = f"its own SQNR {spot.sqnr_db:.1f} -> {attempt.sqnr_db:.1f} dB"
        output = f"output SQNR {self.bench.best_db:.2f} -> {attempt.after_db:.2f} dB on held-out samples"
        note = f"{attempt.policy} for {spot.cut.value} ({attempt.detail}; {own}): {output}"
        encoding = replace(candidate.encoding, rewrites=(*candidate.encoding.rewrites, note))
        self.bench.best, self.bench.best_db = replace(candidate, encoding=encoding), attempt.after_db
        self._cost, self._best_judged = attempt.cost, None

    def _repeat(self, spot: Spot, choice: Choice) -> None:
        """What a plan says about an activation; a form that is not offered any more becomes the nearest one."""
        offers = list(POLICIES[choice.policy](spot, self.bench)) if choice.policy in POLICIES else []
        exact = [offer for offer in offers if offer.detail == choice.detail]
        for offer in (exact or offers)[:1]:
            candidate = self._made_by(spot, offer)
            if candidate is None:
                continue
            before = self.bench.best_db
            attempt = Attempt(
                policy=offer.policy,
                detail=offer.detail,
                sqnr_db=offer.sqnr_db,
                estimate=self._estimate(spot, offer),
                after_db=self.bench.score(candidate.model, candidate.encoding),
                kept=True,
                reason="the plan says so",
            )
            self._keep(spot, attempt, candidate)
            self._made.append(_decision(spot, before, [attempt]))


def _charged(attempt: Attempt) -> float:
    """What an attempt takes of the latency: as measured, but no less than expected: noise makes no work free."""
    assert attempt.cost is not None
    return max(attempt.cost.more, attempt.estimate)


def _decision(spot: Spot, before_db: float, attempts: Sequence[Attempt]) -> Decision:
    return Decision(
        value=spot.cut.value,
        readers=spot.cut.readers,
        sqnr_db=spot.sqnr_db,
        before_db=before_db,
        attempts=tuple(attempts),
    )


def _lost(attempt: Attempt, winner: Attempt, before_db: float) -> Attempt:
    """What speaks against an attempt that nothing spoke against but another one."""
    if attempt.reason or attempt is winner:
        return attempt
    return replace(attempt, reason=f"{winner.policy} gains more for its time")
