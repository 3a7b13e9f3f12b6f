import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from fptq.tasks.metrics import SurfaceDistances, dice, volume_difference


def hd95(*masks_and_spacing):
    return SurfaceDistances.between(*masks_and_spacing).hd95


def surface_dice(first, second, tolerance, spacing=None):
    return SurfaceDistances.between(first, second, spacing).surface_dice(tolerance)


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


def ball(radius, spacing=(1.0, 1.0, 1.0), reach=14):
    axes = np.meshgrid(*(np.arange(-reach, reach + 1) * s for s in spacing), indexing="ij")
    return sum(np.square(axis) for axis in axes) <= radius**2


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.0, 1.2)])
def test_balls_in_balls_are_as_far_apart_as_their_radii(spacing):
    inner, outer = ball(6, spacing), ball(9, spacing)
    voxel = max(spacing)
    assert surface_dice(inner, outer, 3 + voxel, spacing) == 1.0
    assert surface_dice(inner, outer, 3 - 1.5 * voxel, spacing) == 0.0
    assert hd95(inner, outer, spacing) == pytest.approx(3, abs=voxel)
    assert surface_dice(inner, inner, 0, spacing) == 1.0
    exact = 4 / 3 * np.pi * (9**3 - 6**3) / 1000
    assert volume_difference(inner, outer, spacing) == pytest.approx(exact, rel=0.03)


def test_half_of_a_shifted_plate_is_near():
    """Two plates of one voxel, one of them with a step of four voxels in its middle."""
    first, second = np.zeros((12, 20), bool), np.zeros((12, 20), bool)
    first[3] = True
    second[3, :10], second[7, 10:] = True, True
    # Of the second plate 10 voxels lie on the first and 10 are 4 away; of the first those beyond the step see its edge.
    backward = 10
    forward = 10 + sum(offset <= 2 for offset in range(1, 11))
    assert surface_dice(first, second, 2.0) == pytest.approx((forward + backward) / 40)


def test_what_is_empty_has_no_distance_but_a_surface_dice_and_a_volume():
    full, empty = box((4, 4), (0, 2), (0, 2)), np.zeros((4, 4), bool)
    for pair in ((full, empty), (empty, full)):
        assert surface_dice(*pair, 1.0) == 0.0
        assert math.isnan(hd95(*pair))
        assert volume_difference(*pair) == 4
        assert volume_difference(*pair, (10.0, 10.0, 5.0)) == 2.0
    assert math.isnan(surface_dice(empty, empty, 1.0))
    assert math.isnan(hd95(empty, empty))
    assert volume_difference(empty, empty) == 0


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_the_surface_dice_is_that_of_monai(tolerance):
    metrics, torch = pytest.importorskip("monai.metrics"), pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    first, second = (generator.random((12, 12, 12)) < 0.3 for _ in range(2))
    batch = [torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in (first, second)]
    theirs = metrics.compute_surface_dice(*batch, class_thresholds=[tolerance], spacing=(1.0, 1.5, 2.0))
    assert surface_dice(first, second, tolerance, (1.0, 1.5, 2.0)) == pytest.approx(float(theirs[0, 0]), abs=1e-6)
