"""What the report says about activations that one scale does not fit."""

from __future__ import annotations

import json

from fptq.report.html import render
from fptq.report.policies import Policies, conclusion
from fptq.report.report import Report


def test_the_conclusion_says_what_won_where_and_why(report: Report) -> None:
    assert report.policies is not None
    assert conclusion(report.policies) == (
        "Of the 2 activations that lose most, 1 got another quantizer: per token for layers.3.contract (its own SQNR "
        "29.7 → 37.2 dB, the output's 41.96 → 42.18 dB). Together they take 1.011 of the uniform latency "
        "(at most 1.030; 1.15 was allowed)."
    )


def test_a_conclusion_without_a_winner_or_without_timings(report: Report) -> None:
    assert report.policies is not None
    won, stayed = report.policies.decisions
    none = Policies(budget=0.15, decisions=(stayed, stayed))
    assert conclusion(none) == "Of the 2 activations that lose most, all keep the uniform quantizer."
    one = Policies(budget=0.15, decisions=(stayed,))
    assert conclusion(one) == "Of the activation that loses most, the uniform quantizer stays."
    estimated = won.model_copy(update={"trials": (won.trials[1].model_copy(update={"rounds": 0}),)})
    guessed = Policies(budget=0.15, latency=1.012, latency_at_most=1.012, decisions=(estimated,))
    assert conclusion(guessed).endswith("Together they take 1.012 of the uniform latency, estimated; 1.15 was allowed.")
    replayed = Policies(budget=0.15, decisions=(won,), replayed=True)
    assert conclusion(replayed).endswith("A plan decided; nothing was timed.")


def test_an_activation_left_as_it_is_has_no_noise_of_its_own(report: Report) -> None:
    assert report.policies is not None
    won = report.policies.decisions[0]
    left = won.trials[1].model_copy(update={"local_db": None, "policy": "float input"})
    only = Policies(budget=0.15, decisions=(won.model_copy(update={"trials": (left,)}),))
    assert "float input for layers.3.contract (the output's 41.96 → 42.18 dB)" in conclusion(only)


def test_the_page_shows_every_offer_with_its_reason(report: Report) -> None:
    page = render(report)
    assert 'id="policies"' in page
    for text in (
        "per token gains more for its time",
        "expected to add 20.0%",
        "at most 1.030",
        "rows scaled to [-0.0625, 1]",
    ):
        assert text in page
    assert 'id="policies"' not in render(report.model_copy(update={"policies": None}))


def test_decisions_survive_the_file_and_older_files_have_none(report: Report, tmp_path) -> None:
    path = report.save(tmp_path)
    assert Report.load(path).policies == report.policies
    data = json.loads(path.read_text())
    del data["policies"]
    path.write_text(json.dumps(data))
    assert Report.load(path).policies is None
