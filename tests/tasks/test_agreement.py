import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.errors import ModelError
from fptq.tasks import compare


def feeds(count, shape=(1, 3, 5, 4), seed=0):
    generator = np.random.default_rng(seed)
    return [{"x": generator.normal(size=shape).astype(np.float32)} for _ in range(count)]


def identity(sample):
    return {"y": sample["x"]}


def test_equal_runners():
    agreement = compare(identity, identity, feeds(2))
    assert agreement.sqnr_db == math.inf
    assert agreement.cosine == pytest.approx(1.0)
    assert agreement.max_abs_difference == 0
    assert agreement.argmax_match == 1
    assert agreement.samples == 2


@given(count=st.integers(1, 4), step=st.floats(1e-3, 0.5))
def test_the_sqnr_is_pooled_over_samples(count, step):
    samples = feeds(count)
    for i, sample in enumerate(samples):
        sample["x"] *= 10.0**i
    agreement = compare(identity, lambda s: {"y": np.round(s["x"] / step) * step}, samples)
    whole = np.concatenate([s["x"] for s in samples]).astype(np.float64)
    rounded = np.concatenate([np.round(s["x"] / step) * step for s in samples])
    expected = 10 * np.log10(np.square(whole).sum() / np.square(whole - rounded).sum())
    assert agreement.sqnr_db == pytest.approx(expected, abs=0.01)


def test_the_worst_output_is_quoted():
    def first(sample):
        return {"a": sample["x"], "b": sample["x"]}

    def second(sample):
        return {"a": sample["x"], "b": sample["x"] * 0.9}

    agreement = compare(first, second, feeds(1))
    assert agreement.sqnr_db == agreement.outputs["b"].sqnr_db == pytest.approx(20.0, abs=1e-3)
    assert agreement.outputs["a"].sqnr_db == math.inf


@pytest.mark.parametrize(("shape", "axis"), [((2, 6), 1), ((1, 4, 6), 2), ((1, 3, 4, 5), 1), ((1, 2, 3, 4, 5), 1)])
def test_the_class_axis(shape, axis):
    def swapped(sample):
        # Reversing the class axis moves every argmax unless it is in the middle.
        return {"y": np.flip(sample["x"], axis)}

    (sample,) = feeds(1, shape)
    expected = (sample["x"].argmax(axis) == np.flip(sample["x"], axis).argmax(axis)).mean()
    assert compare(identity, swapped, [sample]).argmax_match == expected
    by_hand = compare(identity, swapped, [sample], class_axes={"y": axis})
    assert by_hand.argmax_match == expected


def test_whole_numbers_are_counted():
    def classes(sample):
        return {"y": (sample["x"] > 0).astype(np.int64)}

    def wrong_quarter(sample):
        out = classes(sample)["y"].copy()
        out.reshape(-1)[:15] += 1
        return {"y": out}

    agreement = compare(classes, wrong_quarter, feeds(1))
    assert agreement.argmax_match == 0.75
    assert math.isnan(agreement.sqnr_db)
    assert agreement.max_abs_difference == 1


def test_an_output_that_overflows_has_no_agreement():
    agreement = compare(identity, lambda s: {"y": np.full_like(s["x"], np.nan)}, feeds(1))
    assert agreement.sqnr_db == -math.inf


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ModelError, match="'y' has shape"):
        compare(identity, lambda s: {"z": s["x"]}, feeds(1))
    with pytest.raises(ModelError, match="NaN or Inf"):
        compare(lambda s: {"y": s["x"] * np.nan}, identity, feeds(1))
