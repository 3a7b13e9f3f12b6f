import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fptq.report.report import Report
from fptq.report.search import Point, Search, Sensitivity, SensitivityRow, Tried

LEVELS = st.none() | st.floats(-300, 300)


@given(local=LEVELS, accumulated=LEVELS)
def test_the_own_share_is_a_share(local, accumulated):
    share = SensitivityRow(layer="a", loss={}, local_db=local, accumulated_db=accumulated).own_share
    assert (share is None) == (local is None or accumulated is None)
    assert share is None or 0 <= share <= 1


def test_three_decibels_below_half_is_made_here():
    assert SensitivityRow(layer="a", loss={}, local_db=30, accumulated_db=26.9897).own_share == pytest.approx(0.5)


@given(loss=st.dictionaries(st.text(max_size=4), st.floats(), max_size=3), passes=st.none() | st.booleans())
def test_any_record_survives_json(loss, passes):
    row = SensitivityRow(layer="a", loss=loss, precision="float")
    sensitivity = Sensitivity(
        objective="kl", method="leave-one-in", samples=1, formats=("w8a8",), compared="w8a8", rows=(row,)
    )
    search = Search(objective="kl", cost="size", points=(Point(costs=loss, passes=passes),))
    for record in (sensitivity, search):
        assert type(record).model_validate_json(record.model_dump_json()) == record


def test_a_report_without_a_search_loads_as_before(report, tmp_path):
    path = report.save(tmp_path)
    data = json.loads(path.read_text())
    for field in ("sensitivity", "search", "tried"):
        del data[field]
    path.write_text(json.dumps(data))
    loaded = Report.load(path)
    assert (loaded.sensitivity, loaded.search, loaded.tried) == (None, None, ())


def test_shares_need_the_float_cost():
    search = Search(objective="kl", cost="size", float_costs={"size": 8.0, "bops": 0}, points=())
    assert search.relative("size", 2.0) == 0.25
    assert search.relative("size", None) is search.relative("bops", 1.0) is search.relative("latency", 1.0) is None
    assert search.chosen is None


def test_a_gain_needs_both_ends():
    assert Tried(name="a", before_db=30, after_db=31.5).gain_db == 1.5
    assert Tried(name="a", before_db=30).gain_db is None


def test_an_objective_that_is_none_is_refused():
    with pytest.raises(ValidationError, match="objective"):
        Search(objective="cosine", cost="size", points=())
