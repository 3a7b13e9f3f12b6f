from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fptq.search.budget
from fptq.errors import ConfigError
from fptq.search.budget import QUANTITIES, Amount, Budget, shown


@pytest.mark.parametrize(
    ("text", "cost", "value", "unit"),
    [
        ("0.3x", "size", 0.3, "x"),
        (".5 X", "latency", 0.5, "x"),
        ("3.5MB", "size", 3.5e6, "B"),
        ("512 kib", "size", 524288.0, "B"),
        ("40ms", "latency", 40.0, "ms"),
        ("0.04 s", "latency", 40.0, "ms"),
        ("250µs", "latency", 0.25, "ms"),
        ("1.2e3 GBOPs", "bops", 1.2e12, "BOPs"),
        ("7G", "bops", 7e9, "BOPs"),
    ],
)
def test_amounts_are_read_in_the_units_people_use(text: str, cost: str, value: float, unit: str) -> None:
    amount = Amount.parse(text, cost=cost)
    assert (amount.value, amount.unit) == (pytest.approx(value), unit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3.5", "max_size = '3.5' has no unit. units are B, kB, MB, GB, and x for a fraction of the float network."),
        ("40ms", "max_size = '40ms' has the unknown unit 'ms'."),
        ("0,3x", "max_size = '0,3x' is no amount. an amount is a number and a unit. Write 3.5MB or 0.3x."),
        ("", "max_size = '' is no amount"),
        ("nanMB", "max_size = 'nanMB' is no amount"),
        ("٣MB", "is no amount"),
        ("30%", "unknown unit '%'"),
        ("-3MB", "the limit -3e+06B is out of range. a limit is positive and finite."),
        ("0x", "the limit 0x is out of range"),
        ("1e999MB", "out of range"),
        ("30x", "For 30 times less write 0.0333x."),
    ],
)
def test_what_is_no_amount_says_what_is(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Amount.parse(text, cost="size")
    assert message in str(error.value)


def test_relative_limits_are_fractions_of_the_float_network() -> None:
    budget = Budget.parse(max_size="0.25x", max_latency="40ms", max_bops="0.5x")
    assert budget.limits({"size": 8e6, "latency": 100.0, "bops": 1e12}) == {
        "size": 2e6,
        "latency": 40.0,
        "bops": 5e11,
    }


@pytest.mark.parametrize(
    ("given_", "seconds"), [("90s", 90.0), ("10m", 600.0), ("1h30m", 5400.0), ("1.5 min", 90.0), (20, 20.0)]
)
def test_durations(given_: str | float, seconds: float) -> None:
    assert Budget.parse(time_budget=given_).time_budget == seconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_budget": "10"}, "time_budget = '10' is no duration. units are s, m and h."),
        ({"time_budget": "10 parsecs"}, "is no duration"),
        ({"time_budget": "0s"}, "time_budget = 0 s is out of range"),
        ({"max_drop": "0.5%"}, "max_drop = '0.5%' has the unit '%'. a drop is in the unit of the metric"),
        ({"max_drop": "0.1x"}, "has the unit 'x'"),
        ({"max_drop": -0.1}, "max_drop = -0.1 is out of range"),
        ({"max_weight": "3MB"}, "unknown budget 'max_weight'. there are max_size, max_latency"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, str | float], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Budget.parse(**options)
    assert message in str(error.value)


def test_an_amount_of_another_cost_contradicts() -> None:
    with pytest.raises(ConfigError, match="max_latency = 3e\\+06B contradicts its unit"):
        Budget(max_latency=Amount(value=3e6, unit="B"))


def test_limits_that_nothing_can_measure_contradict() -> None:
    with pytest.raises(ConfigError, match=r"max_drop = 0\.01 without a metric"):
        Budget(max_drop=0.01).check(has_metric=False, has_engine=True)
    latency = Budget.parse(max_latency="0.5x")
    with pytest.raises(ConfigError, match=r"max_latency = 0\.5x without an engine"):
        latency.check(has_metric=True, has_engine=False)
    with pytest.raises(ConfigError, match=r"limits what was not measured\. known here: size"):
        latency.limits({"size": 1.0})
    latency.check(has_metric=False, has_engine=True)


@given(st.sampled_from(sorted(QUANTITIES)), st.floats(1e-6, 1e18))
def test_an_amount_as_shown_can_be_copied_and_is_not_below_the_value(cost: str, value: float) -> None:
    read = Amount.parse(shown(cost, value), cost=cost).value
    assert value <= read <= value * 1.0011


def test_round_amounts_are_shown_as_they_are() -> None:
    assert [shown("size", 3.5e6), shown("latency", 40.0), shown("bops", 1.2e11)] == ["3.5MB", "40ms", "120GBOPs"]
    assert [shown("size", 0.0), shown("parameters", 12.5)] == ["0B", "12.5"]


def test_examples_of_the_docstrings() -> None:
    assert doctest.testmod(fptq.search.budget).failed == 0
