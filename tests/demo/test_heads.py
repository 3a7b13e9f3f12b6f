from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.demo.heads import AugmentedHeads, HeadCrop, WholeHead, normalized, resampled, tidy
from fptq.feeds import InvertiblePreprocess, Scan

GENERATOR = np.random.default_rng(0)


def sphere(shape, spacing, radius):
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    return (np.square(grid).sum(0) < radius**2).astype(np.float32)


@settings(max_examples=30)
@given(shape=st.tuples(*[st.integers(1, 40)] * 3), side=st.sampled_from([1, 8, 16, 32]))
def test_resampling_equals_nearest_exact_of_torch(shape, side):
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(volume)[None, None], (side,) * 3, mode="nearest-exact")
    np.testing.assert_array_equal(resampled(volume, (side,) * 3), theirs[0, 0].numpy())


def test_intensities_are_scaled_whatever_their_unit():
    volume = GENERATOR.normal(size=(16, 16, 16)).astype(np.float32)
    first, second = normalized(volume), normalized(volume * 300 + 50)
    assert first.mean() == pytest.approx(0.449, abs=1e-5)
    assert first.std(ddof=1) == pytest.approx(0.226, abs=1e-5)
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert np.isfinite(normalized(np.zeros((4, 4, 4), np.float32))).all()


def test_a_whole_head_comes_back():
    mask = sphere((30, 26, 34), (1, 1, 1), 10)
    preprocess = WholeHead(side=64)
    assert isinstance(preprocess, InvertiblePreprocess)
    assert preprocess(mask, np.eye(4)).shape == (1, 64, 64, 64)
    cube = resampled(mask, (64,) * 3)
    back = preprocess.invert(np.stack([1 - cube, cube]), mask, np.eye(4))
    np.testing.assert_array_equal(back[1], mask)


def test_a_crop_holds_the_brain_and_its_margin():
    volume = sphere((60, 50, 40), (1, 1, 1), 12)
    crop = HeadCrop(coarse=resampled(volume, (20,) * 3) > 0, side=32)
    box = crop.box(volume.shape)
    assert volume[box].sum() == volume.sum()
    assert all(24 <= s.stop - s.start <= 34 for s in box)
    cube = resampled(volume[box], (32,) * 3)
    back = crop.invert(np.stack([1 - cube, cube]), volume, np.eye(4))
    assert (back.argmax(0) == volume).mean() > 0.999
    assert crop(volume, np.eye(4)).shape == (1, 32, 32, 32)


def test_an_empty_coarse_mask_keeps_the_whole_head():
    volume = np.zeros((8, 9, 10), np.float32)
    box = HeadCrop(coarse=np.zeros((4, 4, 4), bool)).box(volume.shape)
    assert volume[box].shape == volume.shape


def test_a_mask_is_one_piece_without_holes():
    mask = sphere((20, 20, 20), (1, 1, 1), 7).astype(np.uint8)
    holed = mask.copy()
    holed[10, 10, 10] = 0
    holed[0, 0, 0] = 1
    np.testing.assert_array_equal(tidy(holed), mask)
    assert tidy(np.zeros((4, 4, 4), np.uint8)).sum() == 0


SPACING = (1.0, 1.5, 2.0)
HEADS = AugmentedHeads(
    scan=Scan(volume=sphere((60, 40, 30), SPACING, 15) * 100, affine=np.diag([*SPACING, 1.0]), name="ball"),
    side=32,
    count=4,
)


def test_samples_repeat_and_differ():
    first, second = list(HEADS), list(HEADS)
    assert len(HEADS) == len(first) == 4
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        assert a["image"].shape == (1, 1, 32, 32, 32)
        assert a["image"].dtype == np.float32
    assert not np.array_equal(first[1]["image"], first[2]["image"])
    assert not np.array_equal(replace(HEADS, seed=1).sample(1)["image"], first[1]["image"])
    np.testing.assert_array_equal(first[0]["image"][0], WholeHead(side=32)(HEADS.scan.volume, HEADS.scan.affine))


def test_the_motion_is_rigid():
    still = replace(HEADS, noise=0.0, bias=0.0)
    for index in range(1, 4):
        image = still.sample(index)["image"][0, 0]
        cube = image > (image.min() + image.max()) / 2
        # A rotated and shifted ball keeps its volume: 1 voxel of the cube is 60*40*30*3 / 32^3 mm^3.
        volume = cube.sum() * np.prod((60, 40, 30)) * np.prod(SPACING) / 32**3
        assert volume == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.08)


def test_the_bias_field_is_smooth_and_bounded():
    field = HEADS._bias_field(np.random.default_rng(0))
    assert np.abs(np.log(field)).max() <= HEADS.bias + 1e-6
    assert np.abs(np.diff(np.log(field), axis=0)).max() < 0.1
