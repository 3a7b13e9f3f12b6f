import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.report.records import Score
from fptq.report.text import DASH, change, number, percent, percent_change, score


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (-0.0, "0"), (9.999, "10.0"), (99.95, "100"), (0.1, "0.100"), (123456, "123,000"), (-4.2, "−4.20")],
)
def test_three_significant_digits(value, expected):
    assert number(value) == expected


@given(st.floats(-1e300, 1e300))
def test_a_written_number_is_the_number_to_three_digits(value):
    written = float(number(value).replace("−", "-").replace(",", ""))
    assert written == pytest.approx(value, rel=5.1e-3)


def test_what_was_not_measured_is_a_dash():
    assert number(None) == score(None) == percent(None) == percent_change(None, 1.0) == DASH
    assert change(Score(value=1), None) == change(None, Score(value=1)) == DASH


def test_nothing_reads_as_all_or_zero_that_is_not():
    assert percent(1 - 1e-9) == "> 99.99 %"
    assert percent(1e-9) == "1.0e−7 %"
    assert change(Score(value=0.5), Score(value=0.50001)) == "< 0.0001"
    assert score(-0.00001) == "0.0000"
