import math

import pytest

from fptq.recipes.drops import drops, worst_case
from fptq.tasks import Score, Scores


def scores(dice=(), agreement=(), **more):
    entries = [Score(name=name, value=1.0, cases=tuple(values), **more) for name, values in {"dice": dice}.items()]
    agreements = (Score(name="agreement_dice", value=1.0, cases=tuple(agreement)),) if agreement else ()
    return Scores(entries=(*(entries if dice else ()), *agreements))


@pytest.mark.parametrize(
    ("before", "after", "agreement", "index", "why"),
    [
        ((0.9, 0.8, 0.7), (0.89, 0.7, 0.69), (0.5, 0.9, 0.9), 1, "lost most, dice 0.8000 → 0.7000"),
        ((0.9, math.nan, 0.7), (0.9, 0.5, 0.69), (0.9, 0.9, 0.9), 2, "lost most"),
        ((0.9, 0.8), (0.91, 0.8), (0.99, 0.98), 1, "agrees least with float, agreement_dice 0.9800"),
        ((), (), (math.nan, 0.98, 0.97), 2, "agrees least"),
    ],
)
def test_the_worst_case_is_the_one_that_lost_most(before, after, agreement, index, why):
    found, said = worst_case(scores(before), scores(after, agreement))
    assert found == index
    assert why in said


def test_the_worst_case_of_a_distance_is_the_one_that_grew_most():
    before, after = (
        Scores(entries=(Score(name="hd95", value=2, cases=cases, higher_is_better=False),))
        for cases in ((1.0, 4.0), (3.0, 3.0))
    )
    assert worst_case(before, after)[0] == 0


def test_drops_have_an_interval_and_a_test():
    (drop,) = drops(scores((0.9, 0.8, 0.7, 0.6)), scores((0.89, 0.78, 0.67, 0.56)), seed=0)
    assert drop.value == pytest.approx(0.025)
    assert drop.low <= drop.value <= drop.high
    assert drop.p_value == 2 / 2**4
    assert drops(None, None, seed=0) == ()
    (alone,) = drops(scores((0.9,)), scores((0.8,)), seed=0)
    assert (alone.low, alone.p_value, alone.cases) == (None, None, 1)
