import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.errors import ConfigError, DataError
from fptq.feeds import InvertiblePreprocess, PreprocessSpec

GENERATOR = np.random.default_rng(0)
VOLUME = GENERATOR.normal(100, 30, size=(9, 8, 7)).astype(np.float32)


def test_nothing_asked_changes_nothing():
    spec = PreprocessSpec()
    assert isinstance(spec, InvertiblePreprocess)
    np.testing.assert_array_equal(spec(VOLUME, np.eye(4)), VOLUME[None])


def test_orientation_flips_and_permutes_exactly():
    np.testing.assert_array_equal(PreprocessSpec(orientation="LPS")(VOLUME, np.eye(4))[0], VOLUME[::-1, ::-1])
    np.testing.assert_array_equal(
        PreprocessSpec(orientation="SLA")(VOLUME, np.eye(4))[0], VOLUME[::-1].transpose(2, 0, 1)
    )


def test_size_crops_and_pads_around_the_centre_exactly():
    out = PreprocessSpec(size=(5, 8, 11), pad_value=-1.0)(VOLUME, np.eye(4))[0]
    np.testing.assert_array_equal(out[:, :, 2:9], VOLUME[2:7])
    assert (out[:, :, :2] == -1).all()
    assert (out[:, :, 9:] == -1).all()


def test_multiples_are_padded_up():
    assert PreprocessSpec(multiple_of=4)(VOLUME, np.eye(4)).shape == (1, 12, 8, 8)


def test_spacing_keeps_a_linear_field_in_place():
    x = np.arange(20, dtype=np.float32)
    volume = np.broadcast_to(x[:, None, None], (20, 6, 6)).copy()
    out = PreprocessSpec(spacing=(1.0, 1.0, 1.0))(volume, np.diag([2.0, 1, 1, 1]))[0]
    assert out.shape == (40, 6, 6)
    # The first voxel of 2 mm spans the first two of 1 mm, whose centres lie half a millimetre either side.
    np.testing.assert_allclose(out[1:-1, 0, 0], (np.arange(40) * 0.5 - 0.25)[1:-1], atol=1e-5)


def test_intensities():
    windowed = PreprocessSpec(window=(50, 150))(VOLUME, np.eye(4))
    np.testing.assert_allclose(windowed[0], np.clip((VOLUME - 50) / 100, 0, 1), rtol=1e-6)
    assert windowed.dtype == np.float32
    by_rank = PreprocessSpec(percentiles=(5, 95))(VOLUME, np.eye(4))
    assert 0.03 < (by_rank == 0).mean() < 0.07
    scored = PreprocessSpec(zscore="volume")(VOLUME, np.eye(4))
    assert abs(scored.mean()) < 1e-5
    assert abs(scored.std() - 1) < 1e-5
    masked = np.where(VOLUME > 100, VOLUME, 0)
    scored = PreprocessSpec(zscore="nonzero")(masked, np.eye(4))[0]
    assert (scored[masked == 0] == 0).all()
    assert abs(scored[masked != 0].mean()) < 1e-5


def test_a_constant_volume_stays_finite():
    spec = PreprocessSpec(percentiles=(1, 99), zscore="volume")
    assert np.isfinite(spec(np.full((4, 4, 4), 7, np.float32), np.eye(4))).all()


@settings(max_examples=25, deadline=None)
@given(
    orientation=st.sampled_from(["RAS", "LPS", "PIR", "SAL"]),
    spacing=st.sampled_from([None, (1.0, 1.0, 1.0), (0.5, 0.8, 1.5)]),
    multiple=st.sampled_from([1, 4]),
)
def test_a_mask_comes_back_to_the_scan(orientation, spacing, multiple):
    affine = np.diag([1.2, 0.9, 1.0, 1.0])
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (24, 22, 20)), indexing="ij"))
    ball = (np.square(grid - np.array([12, 10, 9])[:, None, None, None]).sum(0) < 49).astype(np.float32)
    spec = PreprocessSpec(orientation=orientation, spacing=spacing, multiple_of=multiple)
    logits = spec(np.stack([1 - ball, ball]), affine)
    back = spec.invert(logits, ball, affine).argmax(0)
    assert back.shape == ball.shape
    assert 2 * (back * ball).sum() / (back.sum() + ball.sum()) > 0.93


def test_what_was_cropped_away_is_background():
    spec = PreprocessSpec(size=(3, 3, 3))
    outputs = np.stack([np.zeros((3, 3, 3)), np.ones((3, 3, 3))]).astype(np.float32)
    assert spec.invert(outputs, VOLUME, np.eye(4)).argmax(0).sum() <= 27


def test_wrong_settings_are_refused():
    for settings_ in (
        {"orientation": "RAL"},
        {"orientation": "XYZ"},
        {"window": (1.0, 0.0)},
        {"window": (0.0, 1.0), "percentiles": (1.0, 99.0)},
        {"percentiles": (1.0, 101.0)},
        {"zscore": "slice"},
        {"spacing": (1.0, 0.0, 1.0)},
        {"multiple_of": 0},
    ):
        with pytest.raises(ConfigError):
            PreprocessSpec(**settings_)
    with pytest.raises(DataError, match="shape"):
        PreprocessSpec()(np.zeros((4, 4)), np.eye(4))
