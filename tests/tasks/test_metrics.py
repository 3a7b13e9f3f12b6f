import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from fptq.tasks.metrics import dice, hd95


def box(shape, *bounds):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in bounds)] = True
    return mask


def test_dice():
    a, b = box((10,), (0, 4)), box((10,), (2, 6))
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1.0
    assert dice(a, np.zeros(10, bool)) == 0.0
    assert math.isnan(dice(np.zeros(10, bool), np.zeros(10, bool)))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_shift_is_its_own_distance_in_millimetres(rank):
    shape, spacing = (14, 12, 12)[:rank], (2.0, 1.0, 0.5)[:rank]
    first = box(shape, (2, 3), *[(3, 8)] * (rank - 1))
    second = np.roll(first, 3, axis=0)
    assert hd95(first, second) == pytest.approx(3.0)
    assert hd95(first, second, spacing) == pytest.approx(6.0)


def test_an_empty_mask_has_no_distance():
    assert math.isnan(hd95(box((4, 4), (0, 2), (0, 2)), np.zeros((4, 4), bool)))


def test_a_mask_at_the_border_has_a_surface_there():
    whole = np.ones((6, 6), bool)
    assert hd95(whole, whole) == 0.0


@given(seed=st.integers(0, 30))
def test_the_distance_equals_a_brute_force_one(seed):
    generator = np.random.default_rng(seed)
    masks = [generator.random((6, 7, 5)) < 0.3 for _ in range(2)]
    spacing = (1.0, 0.7, 2.0)

    def surface(mask):
        padded = np.pad(mask, 1)
        inner = padded[1:-1, 1:-1, 1:-1].copy()
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~inner) * spacing

    distances = cdist(surface(masks[0]), surface(masks[1]))
    expected = max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))
    assert hd95(*masks, spacing) == pytest.approx(expected)
