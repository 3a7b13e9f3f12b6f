from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.search.limits import upper_drop, upper_share


@pytest.mark.parametrize(("samples", "skewed"), [(8, False), (20, False), (50, False), (50, True), (100, True)])
def test_the_upper_limit_covers_the_true_drop_as_often_as_stated(samples: int, skewed: bool) -> None:
    """95 % of 2000 synthetic experiments; drops with a tail, where few samples lose much, need more samples."""
    rng = np.random.default_rng(7)
    draws = rng.exponential(1.0, (2000, samples)) if skewed else rng.normal(1.0, 1.0, (2000, samples))
    limits = [upper_drop(row, resamples=500, seed=i) for i, row in enumerate(draws)]
    covered = float(np.mean(np.array(limits) >= 1.0))
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / len(draws)))


@pytest.mark.parametrize(("lost", "gained"), [(0.01, 0.0), (0.02, 0.01), (0.1, 0.05), (0.3, 0.3)])
@pytest.mark.parametrize("samples", [50, 200, 1000])
def test_the_upper_limit_of_right_and_wrong_holds_as_often_as_stated(samples: int, lost: float, gained: float) -> None:
    """Counts are few and whole, so that no rule covers exactly 95 %; what is left must stay near it."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(samples, [lost, gained, 1 - lost - gained], 2000)
    limits = {key: upper_share(*key, samples, 0.95) for key in {(int(a), int(b)) for a, b, _ in counts}}
    covered = np.mean([limits[int(a), int(b)] >= lost - gained for a, b, _ in counts])
    assert covered >= 0.93


@given(st.integers(0, 30), st.integers(0, 30), st.integers(60, 200))
def test_the_limit_of_right_and_wrong_solves_its_equation(lost: int, gained: int, samples: int) -> None:
    limit = upper_share(lost, gained, samples, 0.95)
    assert (lost - gained) / samples < limit < 1
    # The likeliest share of gains, given that the drop is the limit, by a search of its own.
    low, high = max(-limit, 0.0), (1 - limit) / 2
    for _ in range(5):
        shares = np.linspace(low, high, 2001)[1:-1]
        rest = np.maximum(1 - limit - 2 * shares, 1e-300)
        likelihood = lost * np.log(limit + shares) + gained * np.log(shares) + (samples - lost - gained) * np.log(rest)
        at, step = int(likelihood.argmax()), float(shares[1] - shares[0])
        share = float(shares[at])
        low, high = max(low, share - step), min(high, share + step)
    z = NormalDist().inv_cdf(0.95)
    expected = lost - gained + z * math.sqrt(samples * (2 * share + limit * (1 - limit)))
    # The two terms may cancel: their difference is known to no more than a small part of each.
    assert samples * limit == pytest.approx(expected, rel=0.001, abs=1e-5)


@pytest.mark.parametrize(("lost", "gained", "samples"), [(1, 5, 61), (0, 0, 60), (30, 30, 60), (0, 30, 60)])
def test_the_equation_holds_where_its_terms_cancel(lost: int, gained: int, samples: int) -> None:
    test_the_limit_of_right_and_wrong_solves_its_equation.hypothesis.inner_test(lost, gained, samples)


def test_the_limit_of_many_samples_is_that_of_the_normal_distribution() -> None:
    drops = np.random.default_rng(1).normal(0.01, 0.05, 5000)
    expected = drops.mean() + 1.645 * drops.std() / math.sqrt(drops.size)
    assert upper_drop(drops, resamples=4000) == pytest.approx(expected, rel=0.02)


def test_the_same_seed_gives_the_same_limit() -> None:
    drops = np.random.default_rng(1).normal(size=30)
    assert upper_drop(drops) == upper_drop(drops)
    assert upper_drop(drops) != upper_drop(drops, seed=1)
