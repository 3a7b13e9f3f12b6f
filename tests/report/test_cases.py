from fptq.report.cases import case_tables, drop_rows
from fptq.report.records import Agreement, Drop, Score, Variant
from fptq.report.view import comparisons


def test_the_worst_case_comes_first_whichever_way_is_good(report):
    tables = case_tables(report)
    assert [(table.score, table.unit) for table in tables] == [("Dice", ""), ("HD95", "mm")]
    for table in tables:
        assert len(table.rows) == 12
        assert [row.drop for row in table.rows] == sorted((row.drop for row in table.rows), reverse=True)
        assert table.rows[0].drop > 0


def classes(count, value=0.9):
    """Scores of a segmentation into so many classes."""
    names = ["dice", *(f"dice_{k}" for k in range(count)), "surface_dice", *(f"surface_dice_{k}" for k in range(count))]
    return {name: Score(value=value, per_case={"a": value, "b": value + 0.01}) for name in names}


def test_scores_of_classes_come_last_and_leave_the_first_table_where_they_are_many(build_report):
    few, many = (
        build_report(
            float=Variant(precision="f32", scores=classes(count)),
            quantized=Variant(precision="int8", scores=classes(count, 0.8)),
            float_default=None,
            drops=tuple(Drop(score=name, value=0.1) for name in classes(count)),
        )
        for count in (2, 20)
    )
    for made in (few, many):
        assert [table.part for table in case_tables(made)][:3] == [False, False, True]
        assert [row.score for row in drop_rows(made)][:2] == ["dice", "surface_dice"]
    assert [row.label for row in comparisons(few)][:3] == ["dice", "dice_0", "dice_1"]
    assert [row.label for row in comparisons(many)][:2] == ["dice", "surface_dice"]
    assert not any(row.label.startswith("dice_") for row in comparisons(many))


def test_the_agreement_with_float_stands_beside_the_score_that_it_is_of(build_report):
    agreement = Agreement(scores={"agreement_dice": Score(value=0.99, per_case={"a": 0.98, "b": 1.0})})
    made = build_report(
        float=Variant(precision="f32", scores=classes(0)),
        quantized=Variant(precision="int8", scores=classes(0, 0.8)),
        agreement=agreement,
    )
    first, second = case_tables(made)
    assert first.agreement == "agreement_dice"
    assert [row.agreement for row in first.rows] == [0.98, 1.0]
    assert second.agreement == ""


def test_a_drop_shows_its_interval_and_its_test(build_report):
    drops = (
        Drop(score="Dice", value=0.004, low=0.001, high=0.007, p_value=0.0021, cases=12),
        Drop(score="HD95", value=0.5, cases=1),
    )
    first, second = drop_rows(build_report(drops=drops))
    assert (first.drop, first.interval, first.p_value) == ("0.0040", "0.0010\xa0…\xa00.0070", "0.0021")
    assert (second.drop, second.interval, second.p_value) == ("0.5000 mm", "–", "–")
