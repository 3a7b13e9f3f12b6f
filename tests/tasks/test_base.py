import math

import numpy as np
import pytest
from scipy import stats

from fptq.tasks import Score, Scores, interval, paired_drop, signed_rank


def score(values, *, up=True, name="dice"):
    return Score(name=name, value=float(np.nanmean(values)), higher_is_better=up, cases=tuple(map(float, values)))


def test_pairing_removes_what_cases_share():
    generator = np.random.default_rng(0)
    hard = generator.uniform(0.4, 0.9, size=30)
    drop = paired_drop(score(hard), score(hard - 0.01 - generator.normal(0, 0.001, 30)))
    assert drop.low < drop.value < drop.high
    assert drop.low > 0.009
    assert drop.high < 0.011
    assert drop.cases == 30


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        before = generator.normal(size=40)
        drop = paired_drop(score(before), score(before - 0.1 + generator.normal(0, 0.2, 40)), seed=seed, resamples=400)
        covered += drop.low <= 0.1 <= drop.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_distance_drops_when_it_rises():
    before, after = score([1.0, 2.0, 3.0], up=False), score([2.0, 3.0, 4.0], up=False)
    assert paired_drop(before, after).value == 1.0
    assert paired_drop(after, before).value == -1.0


def test_undefined_cases_are_left_out_and_one_case_has_no_interval():
    drop = paired_drop(score([0.9, math.nan]), score([0.8, 0.5]))
    assert drop.cases == 1
    assert drop.value == pytest.approx(0.1)
    assert math.isnan(drop.low)


def test_perplexities_are_averaged_by_their_logarithms():
    def perplexity(logs):
        value = float(np.exp(np.mean(logs)))
        return Score(
            name="ppl", value=value, higher_is_better=False, cases=tuple(np.exp(logs)), average="geometric mean"
        )

    logs = np.random.default_rng(0).normal(2, 0.5, 50)
    before, after = perplexity(logs), perplexity(logs + 0.01)
    drop = paired_drop(before, after)
    assert drop.value == pytest.approx(after.value - before.value)
    # Every sequence is worse by the same factor: what is left is how large the perplexities are.
    assert drop.low > 0
    low, high = interval(before)
    assert low < before.value < high
    assert drop.low == pytest.approx(low * math.expm1(0.01), rel=0.02)


def test_the_interval_of_a_score():
    low, high = interval(score([0.1, 0.5, 0.9, math.nan]))
    assert 0.1 <= low < 0.5 < high <= 0.9
    assert math.isnan(interval(score([0.5]))[0])


def test_the_same_seed_gives_the_same_interval():
    a, b = score([0.1, 0.5, 0.9]), score([0.2, 0.4, 0.7])
    assert paired_drop(a, b, seed=3) == paired_drop(a, b, seed=3)


def test_different_metrics_do_not_pair():
    with pytest.raises(ValueError, match="do not pair"):
        paired_drop(score([1.0]), score([1.0], name="hd95"))


def test_scores_by_name():
    scores = Scores(entries=(score([0.5]), score([3.0], name="hd95")))
    assert scores.primary is scores["dice"]
    assert "hd95" in scores
    with pytest.raises(KeyError, match="there are dice, hd95"):
        scores["iou"]
    assert Scores(entries=()).primary is None


@pytest.mark.parametrize("count", [2, 5, 12, 60])
def test_the_signed_rank_test_is_scipys(count):
    generator = np.random.default_rng(count)
    before, after = generator.random(count), generator.random(count)
    expected = stats.wilcoxon(before, after).pvalue
    assert signed_rank(score(before), score(after)) == pytest.approx(expected)
    assert signed_rank(score(after), score(before)) == pytest.approx(expected)


def test_the_signed_rank_test_of_five_losses_by_hand():
    """All signs alike: one of the 2^5 ways on each side."""
    assert signed_rank(score([0.9, 0.8, 0.7, 0.6, 0.5]), score([0.89, 0.78, 0.67, 0.56, 0.45])) == 2 / 2**5


def test_the_signed_rank_test_without_a_difference_and_without_cases():
    assert signed_rank(score([0.9, 0.8]), score([0.9, 0.8])) == 1.0
    assert math.isnan(signed_rank(score([0.9, math.nan]), score([0.8, 0.8])))
    assert math.isnan(signed_rank(score([]), score([])))
    with pytest.raises(ValueError, match="do not pair"):
        signed_rank(score([1.0]), score([1.0, 2.0]))


def test_the_interval_of_a_drop_is_scipys_percentile_bootstrap():
    generator = np.random.default_rng(1)
    before = generator.random(25)
    after = before - generator.normal(0.02, 0.05, 25)
    drop = paired_drop(score(before), score(after), resamples=20000)
    expected = stats.bootstrap(
        (before - after,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert drop.low == pytest.approx(expected.low, abs=1e-3)
    assert drop.high == pytest.approx(expected.high, abs=1e-3)
