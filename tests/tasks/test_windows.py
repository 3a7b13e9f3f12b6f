import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.tasks.windows import WindowGrid, gaussian


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.8]),
)
def test_shares_of_all_windows_sum_to_one_everywhere(lengths, overlap):
    shape, size = zip(*lengths, strict=True)
    grid = WindowGrid(shape=shape, size=size, overlap=overlap)
    total, covers = np.zeros(grid.padded), np.zeros(grid.padded, int)
    for index in range(len(grid)):
        region = tuple(slice(s, s + n) for s, n in zip(grid.start(index), size, strict=True))
        total[region] += grid.shares(index)
        covers[region] += 1
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert covers.max() == grid.cover


def test_windows_overlap_at_least_as_asked_and_lie_evenly():
    grid = WindowGrid(shape=(600, 96, 100), size=(96, 96, 96), overlap=0.5)
    first, second, third = grid.starts
    assert (first[0], first[-1]) == (0, 504)
    assert set(np.diff(first)) <= {45, 46}
    assert second == (0,)
    assert third == (0, 4)
    assert len(grid) == grid.rows * grid.per_row == 12 * 2


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_planes_are_entered_and_finished_once(overlap):
    grid = WindowGrid(shape=(37, 9), size=(8, 4), overlap=overlap)
    for tell in (grid.entered, grid.finished):
        planes = [p for row in range(grid.rows) for p in range(*tell(row))]
        assert planes == list(range(37))
    for row, later in itertools.combinations(range(grid.rows), 2):
        assert grid.starts[0][later] >= grid.finished(row)[1]


def test_a_small_volume_is_padded_around_its_centre():
    image = np.arange(1, 7, dtype=np.float32).reshape(1, 2, 3)
    grid = WindowGrid(shape=(2, 3), size=(5, 3), overlap=0.5)
    cut = grid.cut(image, 0)
    assert cut.shape == (1, 5, 3)
    np.testing.assert_array_equal(cut[:, 1:3], image)
    assert cut.sum() == image.sum()


def test_the_weights_are_those_of_monai():
    """MONAI lifts weights below 1e-3, which no voxel under a second window has to rely on."""
    torch = pytest.importorskip("torch")
    data = pytest.importorskip("monai.data.utils")
    theirs = data.compute_importance_map((12, 9), mode="gaussian", sigma_scale=0.125, dtype=torch.float64).numpy()
    ours = np.multiply.outer(gaussian(12), gaussian(9))
    np.testing.assert_allclose(np.maximum(ours / ours.max(), 1e-3), theirs / theirs.max(), atol=2e-3)
