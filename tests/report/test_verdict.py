import pytest

from fptq.report.records import Agreement, Drop, Score, Variant
from fptq.report.verdict import headline_drop, tone, verdict

SILENT = {
    "speedup_default": None,
    "float_default": None,
    "drops": (),
    "compression": None,
    "agreement": Agreement(),
    "search": None,
}


def test_the_whole_story_is_three_sentences(report):
    assert verdict(report).replace("\xa0", " ") == (
        "On OpenVINO 2026.4.1 the quantized network is 1.96× faster than fp32 (1.40× faster than bf16, the engine's "
        "default), is 3.82× smaller and agrees with the float network at 33.4 dB SQNR. "
        "Of 30 layers, 22 are int8, 5 w4a8 and 3 float, within 0.3× of the float size. "
        "Dice is worse by 0.0006 (95 % interval 0.0004 … 0.0008, 12 cases)."
    )


@pytest.mark.parametrize(
    ("speedup", "default", "words", "kind"),
    [
        (2.0, None, "is 2.00× faster than fp32", "good"),
        (1.01, None, "is as fast as fp32", "neutral"),
        (0.5, None, "is 2.00× slower than fp32", "bad"),
        (2.0, 0.8, "is 2.00× faster than fp32 (1.25× slower than bf16, the engine's default)", "bad"),
        (2.0, 1.0, "is 2.00× faster than fp32 (as fast as bf16, the engine's default)", "neutral"),
    ],
)
def test_speed_is_said_as_it_is(build_report, speedup, default, words, kind):
    bf16 = Variant(precision="bf16") if default else None
    report = build_report(**{**SILENT, "speedup": speedup, "speedup_default": default, "float_default": bf16})
    assert words in verdict(report)
    assert tone(report) == kind


def test_an_interval_around_zero_is_no_finding(build_report):
    drop = Drop(score="Dice", value=0.0002, low=-0.0001, high=0.0005, cases=3)
    assert "cannot be told from no change" in verdict(build_report(drops=(drop,)))


def test_an_improvement_is_called_one(build_report):
    drop = Drop(score="Dice", value=-0.0004, low=-0.0006, high=-0.0001, cases=9)
    said = verdict(build_report(drops=(drop,))).replace("\xa0", " ")
    assert "Dice is better by 0.0004 (95 % interval 0.0001 … 0.0006, 9 cases)." in said


def test_a_drop_is_made_from_scores_where_none_is_given(build_report):
    before, after = Score(value=3.0, higher_is_better=False, unit="mm"), Score(value=3.5, higher_is_better=False)
    floats, ints = Variant(precision="fp32", scores={"HD95": before}), Variant(precision="int8", scores={"HD95": after})
    report = build_report(float=floats, quantized=ints, drops=())
    assert headline_drop(report) == Drop(score="HD95", value=0.5)
    assert verdict(report).endswith("HD95 is worse by 0.5000 (one case: no interval).")


def test_without_labels_the_float_output_is_the_reference(build_report):
    bare = {"float": Variant(precision="fp32"), "quantized": Variant(precision="int8"), "drops": ()}
    assert verdict(build_report(**bare)).endswith("Dice against the float network's own output is 0.9993.")


def test_nothing_measured_and_nothing_lost(build_report):
    bare = {"float": Variant(precision="fp32"), "quantized": Variant(precision="int8"), **SILENT, "speedup": None}
    assert verdict(build_report(**bare)) == "Nothing was measured."
    same = build_report(**{**bare, "agreement": Agreement(max_abs=0.0)})
    assert "returns exactly what the float network returns" in verdict(same)
