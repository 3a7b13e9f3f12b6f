"""Scans of any orientation, dtype and size as volumes near RAS+, and label maps back on their grids."""

import errno
import itertools

import nibabel
import numpy as np
import pytest

from fptq.errors import DataError, OutputError
from fptq.feeds import read_scan, scratch
from fptq.feeds.scans import label_image

SHAPE = (5, 6, 7)


def affine_of(codes):
    """The affine of axes with these codes."""
    affine = np.eye(4)
    for axis, code in enumerate(codes):
        row, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[code]
        affine[:3, axis] = 0
        affine[row, axis] = sign * (1.0, 1.5, 2.0)[axis]
    affine[:3, 3] = (10, -20, 30)
    return affine


def save(path, data, codes="RAS"):
    nibabel.Nifti1Image(data, affine_of(codes)).to_filename(path)
    return path


def values(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_any_orientation_is_read_as_nibabel_turns_it(tmp_path, monkeypatch, codes, suffix, large):
    path = save(tmp_path / f"s{suffix}", values(), codes)
    if large:
        monkeypatch.setattr(scratch, "LARGE", 0)
        monkeypatch.setattr("fptq.feeds.scans._PART", 60)
    scan = read_scan(path)
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    np.testing.assert_array_equal(scan.volume, expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(scan.affine, expected.affine)
    assert isinstance(scan.volume, np.memmap) == large
    assert scan.volume.flags.c_contiguous


@pytest.mark.parametrize("codes", ["".join(c) for c in itertools.product("RL", "AP", "SI")] + ["SPL", "IRA"])
def test_labels_go_back_to_the_grid_that_they_came_from(tmp_path, codes):
    data = (values() > 100).astype(np.float32)
    path = save(tmp_path / "s.nii", data, codes)
    image = label_image(read_scan(path).volume.astype(np.uint8), scan=path, made_by="me")
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_array_equal(image.affine, affine_of(codes))
    assert image.header["descrip"].item() == b"me"


@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.uint8])
def test_other_dtypes_and_scaled_integers(tmp_path, dtype):
    data = values().clip(0, 255).astype(dtype)
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(2, -50)
    image.to_filename(tmp_path / "s.nii")
    stored = nibabel.load(tmp_path / "s.nii")
    np.testing.assert_allclose(read_scan(tmp_path / "s.nii").volume, stored.get_fdata(), rtol=1e-6)
    assert read_scan(tmp_path / "s.nii").volume.dtype == np.float32


def test_several_volumes_become_channels(tmp_path):
    data = values((*SHAPE, 2))
    path = save(tmp_path / "s.nii", data, "LPS")
    np.testing.assert_array_equal(read_scan(path).volume, np.moveaxis(data[::-1, ::-1], -1, 0))
    one = save(tmp_path / "one.nii", data[..., :1], "LPS")
    assert read_scan(one).volume.shape == SHAPE


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    data = values().astype(np.float64)
    data[1, 2, 3] = bad
    with pytest.raises(DataError, match="has NaN or Inf values"):
        read_scan(save(tmp_path / "s.nii", data))


def test_what_is_no_volume_is_refused(tmp_path):
    nibabel.Nifti1Image(np.zeros((4, 5), np.float32), np.eye(4)).to_filename(tmp_path / "flat.nii")
    with pytest.raises(DataError, match="2 axes"):
        read_scan(tmp_path / "flat.nii")
    whole = save(tmp_path / "s.nii.gz", values((30, 30, 30))).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_scan(tmp_path / "cut.nii.gz")


def test_no_room_for_a_large_volume_is_one_line(tmp_path, monkeypatch):
    def full(file, nbytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = save(tmp_path / "s.nii", values())
    monkeypatch.setattr(scratch, "LARGE", 0)
    monkeypatch.setattr(scratch, "reserve", full)
    with pytest.raises(OutputError, match=r"do not fit into .*No space left.*TMPDIR"):
        read_scan(path)
