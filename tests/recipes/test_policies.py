"""Activations that lose most are tried with other policies; what gains most for its time, within the budget, stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

import fptq
from fptq.calibrate import collect, needed, observer
from fptq.config import Recipe
from fptq.engines import DEPLOYABLE
from fptq.engines.benchmark import Timing, Timings
from fptq.errors import ConfigError
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import PROFILES, Encoding, place
from fptq.recipes.policies import POLICIES
from fptq.recipes.policies.contest import FEW_OFFERS, LATENCY_BUDGET, Clock, Contest, Networks
from fptq.recipes.policies.decisions import Choice, Decision, Decisions, choices_of
from fptq.recipes.policies.spots import Spot, worst_spots
from fptq.recipes.refine import EFFORTS
from fptq.recipes.workbench import Bench, Refined, unrefined

BOTH = [pytest.param(name, marks=pytest.mark.engine(name)) for name in DEPLOYABLE]
WIDE = 64
Score = Callable[[Model, Encoding], float]


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 32, 16)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def spiky(net: Callable) -> Model:
    """Layers of one size; between two of them, two channels reach far beyond the others, for few tokens."""
    n = net((1, 32, 16))
    n("MatMul", n.stored(16, WIDE))
    n("Sigmoid")
    factors, powers = n.stored(WIDE), n.stored(WIDE)
    stands_out = np.isin(np.arange(WIDE), (5, 40))
    factors.const_value = ir.tensor(np.where(stands_out, 3, 1).astype(np.float32), name=factors.name)
    powers.const_value = ir.tensor(np.where(stands_out, 5, 1).astype(np.float32), name=powers.name)
    n("Mul", factors)
    n("Pow", powers)
    weight = n.stored(WIDE, WIDE)
    content = query.constant(weight)
    assert content is not None  # what reaches far is worth little
    weight.const_value = ir.tensor(content * np.where(stands_out, 0.05, 1).astype("f4")[:, None], name=weight.name)
    n("MatMul", weight)
    n("Relu")
    n("MatMul", n.stored(WIDE, WIDE))
    n("Relu")
    n("MatMul", n.stored(WIDE, WIDE))
    return n.model()


def bench_for(
    model: Model,
    score: Score,
    started: Callable,
    *,
    engine: str = "onnxruntime",
    found_by: str = "lp",
    **options: object,
) -> Bench:
    recipe = Recipe.of({"threads": 1, "engine": engine, "recipe": "best", **options})
    problem, start = started(model, samples(8), recipe, observers=[found_by])
    return Bench(problem=problem, effort=EFFORTS[recipe.recipe], score=score, progress=lambda *_: None, best=start)


def decided(
    model: Model, score: Score, started: Callable, *, clock: Clock | None = None, limit: float = 1.0, **options: object
) -> tuple[Refined, Decisions]:
    bench = bench_for(model, score, started, **options)  # type: ignore[arg-type]
    decisions = Contest(bench=bench, clock=clock, limit=limit).decide()
    return bench.best, decisions


def spot_of(bench: Bench, value: str) -> Spot:
    return next(spot for spot in worst_spots(bench.best, bench.problem.calibration, 9) if spot.cut.value == value)


def policies_in(encoding: Encoding) -> dict[str, str]:
    """What stands where, by the names that rewrites give."""
    suffixes = {"_tail": "two regions", "_pieces": "pieces", "_per_token": "per token"}
    return {
        p.value.removesuffix(suffix): policy
        for p in encoding.plan.activations
        for suffix, policy in suffixes.items()
        if p.value.endswith(suffix)
    }


def wanting(*policies: str) -> Score:
    """30 dB, and ten more for every activation that has one of these policies."""
    return lambda model, encoding: 30.0 + 10.0 * sum(one in policies for one in policies_in(encoding).values())


def steady(ms: float) -> Timing:
    return Timing(samples=(ms,) * 7, waited=(0.0,) * 7)


def clock(*loads: Mapping[str, float], **ratios: float) -> Clock:
    """Latencies by policy, relative to the uniform network, under every load; steady as no machine is."""

    def time(networks: Networks) -> Mapping[str, Timings]:
        found = {}
        for name, (_, encoding) in networks.items():
            policies = [policy.replace(" ", "_") for policy in policies_in(encoding).values()]
            factors = [np.prod([load.get(policy, 1.0) for policy in policies]) for load in (*loads, ratios)]
            found[name] = Timings(by_load=tuple(steady(10.0 * float(factor)) for factor in factors))
        return found

    return time


def first(decisions: Decisions) -> Decision:
    return decisions.made[0]


def reasons(decision: Decision) -> dict[str, str]:
    return {attempt.policy: attempt.reason for attempt in decision.attempts}


def test_every_policy_is_in_the_table_and_in_every_profile_that_was_measured() -> None:
    assert not PROFILES["tensorrt"].policies, "what they cost on a GPU has not been measured"
    for profile in (PROFILES["onnxruntime"], PROFILES["openvino"]):
        assert {cost.policy for cost in profile.policies} == set(POLICIES)
        assert all(cost.source and cost.overhead >= 0 for cost in profile.policies)


def test_the_worst_activation_comes_first(spiky, started) -> None:
    bench = bench_for(spiky, wanting(), started)
    spots = worst_spots(bench.best, bench.problem.calibration, 2)
    assert spots[0].cut.value == "v3"
    assert spots[0].sqnr_db < spots[1].sqnr_db
    assert spots[0].rows.shape == (6 * 32, WIDE)


@pytest.mark.parametrize("policy", ["pieces", "two regions", "per token", "float input"])
def test_an_offer_leaves_what_it_says(spiky, started, policy: str) -> None:
    bench = bench_for(spiky, wanting(), started)
    spot = spot_of(bench, "v3")
    offers = list(POLICIES[policy](spot, bench))
    assert offers
    for offer in offers:
        assert offer.policy == policy
        made = offer.make(bench.best)
        assert made is not None
        assert made.encoding.model_sha256 == made.model.sha256
    assert max(offer.sqnr_db for offer in offers) > spot.sqnr_db + 3 or policy == "per token"


def test_pieces_and_tails_are_of_the_channels_that_reach_farthest(spiky, started) -> None:
    bench = bench_for(spiky, wanting(), started)
    spot = spot_of(bench, "v3")
    (offer,) = POLICIES["pieces"](spot, bench)
    made = offer.make(bench.best)
    assert made is not None
    channels = query.constant(made.model.graph.initializers["v3_channels_2"])
    assert channels is not None
    assert channels.tolist() == [5, 40]
    tail = next(iter(POLICIES["two regions"](spot, bench)))
    assert tail.detail == "tail of 2 of 64 channels"
    made = tail.make(bench.best)
    assert made is not None
    end = query.constant(made.model.graph.initializers["v3_high"])
    assert end is not None  # the others may reach half as far again on other samples
    assert float(end) == pytest.approx(1.5 * np.delete(spot.high, [5, 40]).max(), rel=0.01)


def test_signed_codes_are_not_joined_where_the_engine_reads_them_wrong(spiky, started) -> None:
    bench = bench_for(spiky, wanting(), started, engine="openvino")
    spot = spot_of(bench, "v3")
    assert list(POLICIES["pieces"](spot, bench))
    signed = next(variant for variant in PROFILES["openvino"].variants if variant.activation.signed)
    plan = place(spiky, PROFILES["openvino"], signed)
    statistics = collect(spiky, needed(plan, [observer("lp")]), bench.problem.calibration)
    bench.best = unrefined(spiky, plan, statistics=statistics, recipe=bench.problem.recipe)
    assert not list(POLICIES["pieces"](spot_of(bench, "v3"), bench))


def test_the_cheaper_of_two_that_gain_the_same_wins(spiky, started) -> None:
    times = clock(pieces=1.02, two_regions=1.08, per_token=1.3)
    found, decisions = decided(
        spiky, wanting("pieces", "two regions", "per token"), started, clock=times, limit=LATENCY_BUDGET
    )
    winner = first(decisions).winner
    assert winner is not None
    assert winner.policy == "pieces"
    assert policies_in(found.encoding)["v3"] == "pieces"
    assert winner.after_db == first(decisions).before_db + 10
    assert winner.cost is not None
    assert (winner.cost.ratio, winner.cost.rounds) == (pytest.approx(1.02), 7)
    assert "pieces for v3 (" in found.encoding.rewrites[0]
    assert found.encoding.model_sha256 == found.model.sha256


@pytest.mark.parametrize(("gaining", "kept"), [(3, True), (2, False)])
def test_what_gains_on_a_few_samples_only_is_chance(spiky, started, gaining: int, kept: bool) -> None:
    def each(_: Model, encoding: Encoding) -> list[float]:
        gain = float("per token" in policies_in(encoding).values())
        return [30.0 + (gain if number < gaining else -gain) for number in range(4)]

    bench = bench_for(spiky, wanting("per token"), started)
    decisions = Contest(bench=bench, clock=clock(per_token=1.0), judges=each, limit=LATENCY_BUDGET).decide()
    assert (first(decisions).winner is not None) == kept
    if not kept:
        assert reasons(first(decisions))["per token"] == "2 of 4 held-out samples gain by it: chance"


def test_the_best_so_far_runs_once_however_many_candidates_there_are(spiky, started) -> None:
    judged: list[Encoding] = []

    def each(_: Model, encoding: Encoding) -> list[float]:
        judged.append(encoding)
        return [30.0 + len(policies_in(encoding))] * 4

    bench = bench_for(spiky, wanting("pieces", "two regions", "per token"), started)
    decisions = Contest(bench=bench, clock=clock(), judges=each, limit=1.0).decide()
    gaining = [
        [attempt for attempt in one.attempts if attempt.after_db is not None and attempt.after_db > one.before_db]
        for one in decisions.made
    ]
    assert max(map(len, gaining)) > 1
    assert all(one.winner is not None for one, found in zip(decisions.made, gaining, strict=True) if found)
    assert len(judged) == sum(len(found) + 1 for found in gaining if found)


def test_what_may_take_more_than_the_budget_goes(spiky, started) -> None:
    times = clock(per_token=LATENCY_BUDGET + 1.01)
    found, decisions = decided(spiky, wanting("per token"), started, clock=times, limit=LATENCY_BUDGET)
    assert policies_in(found.encoding) == {}
    assert decisions.cost is None
    assert any("is allowed" in one.reason for one in first(decisions).attempts if one.policy == "per token")


def test_what_is_free_alone_and_dear_in_a_batch_goes(spiky, started) -> None:
    times = clock({"per_token": 1.0}, per_token=LATENCY_BUDGET + 1.01)
    _, decisions = decided(spiky, wanting("per token"), started, clock=times, limit=LATENCY_BUDGET)
    tried = next(one for one in first(decisions).attempts if one.policy == "per token")
    assert not tried.kept
    assert tried.cost is not None
    assert tried.cost.ratio == pytest.approx(LATENCY_BUDGET + 1.01)
    assert tried.cost.rounds == 14


def test_all_policies_together_stay_within_the_budget(spiky, started) -> None:
    times = clock(per_token=1.045, pieces=1.045, two_regions=1.045)
    score = wanting("per token", "pieces", "two regions")
    found, decisions = decided(spiky, score, started, clock=times, limit=0.10)
    kept = [one for one in decisions.made if one.winner is not None]
    assert len(kept) == len(policies_in(found.encoding)) == 2
    assert decisions.cost is not None
    assert decisions.cost.ratio == pytest.approx(1.045**2)
    assert decisions.cost.at_most <= 1.10


@pytest.mark.parametrize(
    ("gain", "ratio", "kept"),
    [(0.4, 1.0, False), (2.1, 1.0, False), (2.3, 1.0, True), (5.9, 1.10, False), (6.1, 1.10, True)],
    ids=["as good as none", "expected to take 6.2 %", "worth 6.3 %", "worth 9.9 %", "worth 10.1 %"],
)
def test_a_gain_may_take_what_the_gate_would_give_for_it(spiky, started, gain: float, ratio: float, kept: bool) -> None:
    def score(model: Model, encoding: Encoding) -> float:
        return 30 + gain * ("per token" in policies_in(encoding).values())

    _, decisions = decided(spiky, score, started, clock=clock(per_token=ratio), limit=0.5)
    assert (first(decisions).winner is not None) == kept
    assert ("are not worth" in reasons(first(decisions))["per token"]) != kept


def test_what_does_not_help_leaves_no_trace(spiky, started) -> None:
    found, decisions = decided(spiky, lambda model, encoding: 30.0, started)
    assert decisions.made
    assert all(one.winner is None for one in decisions.made)
    assert all(attempt.reason for one in decisions.made for attempt in one.attempts)
    assert found.model is spiky
    assert found.encoding.rewrites == ()


def test_what_is_expected_to_cost_too_much_is_not_run(spiky, started) -> None:
    _, decisions = decided(spiky, wanting("per token"), started, limit=0.0)
    attempts = [attempt for one in decisions.made for attempt in one.attempts if attempt.policy != "smoothing"]
    assert attempts
    assert all(attempt.after_db is None for attempt in attempts)


def test_what_the_engine_refuses_is_said(spiky, started) -> None:
    def refusing(networks: Networks) -> Mapping[str, Timings]:
        return {"uniform": Timings(by_load=(steady(1.0),))}

    _, decisions = decided(spiky, wanting("per token"), started, clock=refusing)
    assert "the engine refuses it" in [attempt.reason for one in decisions.made for attempt in one.attempts]


def test_the_quick_recipe_runs_a_few_offers_on_two_activations(spiky, started) -> None:
    runs: list[Encoding] = []

    def score(model: Model, encoding: Encoding) -> float:
        runs.append(encoding)
        return 30.0

    _, decisions = decided(spiky, score, started, recipe="auto")
    assert len(decisions.made) == 2
    assert len(runs) <= 1 + 2 * FEW_OFFERS
    assert "smoothing" not in reasons(first(decisions))


def test_the_fast_recipe_runs_nothing(spiky, started) -> None:
    found, decisions = decided(spiky, lambda model, encoding: 30.0, started, recipe="fast")
    assert decisions.made == ()
    assert found.model is spiky


def test_an_observer_without_histograms_is_left_its_ranges(spiky, started) -> None:
    _, decisions = decided(spiky, wanting("per token"), started, found_by="minmax", observer="minmax")
    assert decisions.made == ()


def test_one_norm_is_smoothed_where_its_channels_differ(net, started) -> None:
    n = net((1, 32, 16))
    scale = n.stored(16, scale=1.0)
    scale.const_value = ir.tensor(np.where(np.arange(16) == 3, 30, 1).astype(np.float32), name=scale.name)
    n("LayerNormalization", scale, n.stored(16), axis=-1)
    n("MatMul", n.stored(16, WIDE))
    n("Relu")
    n("MatMul", n.stored(WIDE, WIDE))
    model = n.model()
    bench = bench_for(model, lambda *_: 30.0, started)
    spot = spot_of(bench, "v0")
    (offer,) = POLICIES["smoothing"](spot, bench)
    made = offer.make(bench.best)
    assert made is not None
    before, after = (found.encoding.params[spot.cut.placements[0]].scale for found in (bench.best, made))
    assert float(after) < 0.5 * float(before)
    assert offer.sqnr_db > spot.sqnr_db + 3
    assert bench.computes_the_same("smoothing", made.model)
    # Behind a Relu there is no norm to divide.
    assert not list(POLICIES["smoothing"](spot_of(bench, "v2"), bench))


def test_a_replay_repeats_choices_without_a_clock(spiky, started) -> None:
    found, decisions = decided(spiky, wanting("pieces", "per token"), started, clock=clock())
    document = json.loads(json.dumps({"policies": decisions.to_json()}))

    def refuse(networks: Networks) -> Mapping[str, Timing]:
        raise AssertionError("nothing is timed")

    bench = bench_for(spiky, lambda model, encoding: 30.0, started)
    again = Contest(bench=bench, clock=refuse).replay(choices_of(document))
    assert again.replayed
    assert policies_in(bench.best.encoding) == policies_in(found.encoding)
    assert bench.best.model.sha256 == found.model.sha256
    assert all(one.winner is not None and one.winner.reason == "the plan says so" for one in again.made)
    gone = Choice(value="no such tensor", policy="pieces", detail="")
    assert Contest(bench=bench, clock=refuse).replay([gone]).made == ()
    with pytest.raises(ConfigError, match="not a plan"):
        choices_of({"policies": [{"tensor": "x"}]})


@pytest.mark.parametrize("engine", BOTH)
def test_a_policy_rescues_an_activation_with_spikes(spiky, tmp_path, engine: str) -> None:
    save(spiky, tmp_path / "net.onnx")
    options = {"engine": engine, "threads": 1, "gate": "off", "cache": tmp_path / "cache"}
    made = fptq.quantize(tmp_path / "net.onnx", calibration=samples(10), recipe=Recipe(recipe="best", **options))
    decisions = made.prepared.policies
    assert decisions is not None
    rescued = next(one for one in decisions.made if one.value == "v3")
    assert rescued.winner is not None
    assert rescued.winner.after_db is not None
    assert rescued.winner.after_db > rescued.before_db + 3
    assert any(f"{rescued.winner.policy} for v3 " in line for line in made.report.rewrites)
    without = fptq.quantize(tmp_path / "net.onnx", calibration=samples(10), recipe=Recipe(recipe="fast", **options))
    assert made.report.agreement.sqnr_db > without.report.agreement.sqnr_db + 3
    folder = made.save(tmp_path / "out")
    plan = json.loads((folder / "plan.json").read_text())
    assert not any(suffix in row["placement"] for row in plan["placements"] for suffix in ("_tail", "_pieces"))
    again = fptq.quantize(
        tmp_path / "net.onnx",
        calibration=samples(10),
        recipe=Recipe(recipe="best", plan=folder / "plan.json", **options),
    )
    assert set(again.encoding.plan.specs) == set(made.encoding.plan.specs)
    assert again.model.sha256 == made.model.sha256
