from fptq.report.records import Agreement, Latency, Variant
from fptq.report.view import bar_groups, cards, comparisons, realized_share


def test_the_table_has_scores_and_costs_of_the_three(report):
    rows = {row.label: row for row in comparisons(report)}
    assert list(rows)[:2] == ["Dice", "HD95"]
    latency = rows["Latency, median [ms]"]
    assert (latency.float, latency.default, latency.quantized, latency.change) == ("309", "222", "158", "−49 %")
    assert rows["HD95"].float.endswith(" mm")


def test_what_was_not_measured_has_no_row_and_no_card(build_report):
    bare = Variant(precision="fp32", size_mb=4)
    empty = {"speedup": None, "compression": None, "agreement": Agreement(), "drops": (), "placements": ()}
    report = build_report(float=bare, float_default=None, quantized=Variant(precision="int8", size_mb=1), **empty)
    assert [row.label for row in comparisons(report)] == ["File size [MB]"]
    assert cards(report) == ()
    assert [group.title for group in bar_groups(report)] == ["File size"]


def test_bars_share_one_scale_and_the_tick_fits(report):
    latency = bar_groups(report)[0]
    assert [bar.role for bar in latency.bars] == ["float", "default", "quantized"]
    assert all(0 < bar.length <= bar.tick <= 1 for bar in latency.bars)
    assert max(bar.tick for bar in latency.bars) == 1


def test_a_variant_that_was_not_timed_has_an_empty_bar(build_report):
    timed = Variant(precision="int8", latency_ms=Latency(median=2.0, runs=3))
    report = build_report(float=Variant(precision="fp32"), float_default=None, quantized=timed)
    lengths = [bar.length for bar in bar_groups(report)[0].bars]
    assert lengths == [0, 1]


def test_coverage_counts_only_what_the_engine_told(report):
    assert realized_share(report) == (55, 59)
    assert {card.label: card.value for card in cards(report)}["Ran on integers"] == "55 of 59"
