import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fptq.report.tensors import Histogram

COUNTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=300)


@given(counts=COUNTS, bins=st.integers(1, 150))
def test_joining_bins_keeps_total_and_ends(counts, bins):
    edges = np.linspace(-3, 5, len(counts) + 1)
    joined = Histogram.of(edges, counts, bins=bins)
    assert sum(joined.counts) == sum(counts)
    assert len(joined.counts) <= bins
    assert (joined.edges[0], joined.edges[-1]) == (edges[0], edges[-1])


@given(counts=COUNTS, low=st.floats(-4, 6), width=st.floats(0, 10))
def test_share_outside_is_a_share_and_all_is_inside_the_ends(counts, low, width):
    histogram = Histogram.of(np.linspace(-3, 5, len(counts) + 1), counts)
    assert 0 <= histogram.share_outside(low, low + width) <= 1
    assert histogram.share_outside(-3, 5) == pytest.approx(0, abs=1e-9)


def test_share_outside_of_samples():
    values = np.random.default_rng(0).normal(size=20_000)
    counts, edges = np.histogram(values, 400)
    measured = Histogram.of(edges, counts, bins=400).share_outside(-1.0, 2.0)
    assert measured == pytest.approx(np.mean((values < -1) | (values > 2)), abs=2e-3)


@pytest.mark.parametrize(
    ("edges", "counts", "problem"),
    [
        ((0, 1), (1, 2), "need 3 edges"),
        ((0, 1, 1), (1, 2), "ascend"),
        ((0, 1, float("inf")), (1, 2), "finite"),
        ((0, 1, 2), (1, -2), "negative"),
    ],
)
def test_what_is_not_a_histogram_is_refused(edges, counts, problem):
    with pytest.raises(ValidationError, match=problem):
        Histogram(edges=edges, counts=counts)
