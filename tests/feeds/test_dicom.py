"""DICOM series made with SimpleITK, read back where they lie in the patient."""

import locale

import numpy as np
import pytest

from fptq.errors import DataError, MissingExtra
from fptq.feeds import find_samples, open_feeds, read_scan
from fptq.feeds.dicom import find_series
from fptq.graph.model import TensorInfo
from fptq.tasks import open_cases

SPACING = (0.7, 0.9, 2.5)  # of the fixture `series`


def volume(shape=(6, 5, 4), seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


@pytest.mark.parametrize("names", ["{}.dcm", "{}"])
def test_a_series_is_a_scan_in_hounsfield_units_near_ras(series, tmp_path, names):
    voxels = volume()
    scan = read_scan(series(tmp_path / "ct", voxels, names=names))
    # Axes of the file lead to the left and the back: RAS+ has both the other way round.
    np.testing.assert_array_equal(scan.volume, voxels[::-1, ::-1])
    assert scan.name == "ct"
    np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), SPACING)
    last = np.array([5, 4, 0, 1.0])
    np.testing.assert_allclose((scan.affine @ last)[:3], [10, 20, 0])  # the file's first voxel, in RAS


def test_the_locale_of_the_process_stays(series, tmp_path):
    folder = series(tmp_path / "ct", volume())
    kept = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    read_scan(folder)
    assert locale.setlocale(locale.LC_ALL) == kept


def test_a_series_with_turned_axes(series, tmp_path):
    voxels = volume()
    scan = read_scan(series(tmp_path / "ct", voxels, tilted=True))
    np.testing.assert_allclose(np.diag(scan.affine[:3, :3]), [SPACING[1], SPACING[0], SPACING[2]])
    np.testing.assert_array_equal(scan.volume, voxels.transpose(1, 0, 2)[::-1, ::-1, ::-1])


def test_folders_of_series_are_samples(series, tmp_path):
    for name in ("b", "a"):
        series(tmp_path / "scans" / name, volume(), names="{}")
    (tmp_path / "scans" / "notes").mkdir()
    (tmp_path / "scans" / "notes" / "readme.txt").write_text("x")
    found = find_samples(tmp_path / "scans")
    assert [path.name for path in found] == ["a", "b"]
    assert find_samples(tmp_path / "scans" / "a") == (tmp_path / "scans" / "a",)
    info = TensorInfo(name="x", dtype=np.dtype(np.float32), shape=(1, 1, 6, 5, 4))
    (first, _) = open_feeds(tmp_path / "scans", (info,))
    np.testing.assert_array_equal(first["x"][0, 0], read_scan(found[0]).volume)
    assert [case.name for case in open_cases(tmp_path / "scans")] == ["a", "b"]


def test_two_series_in_one_folder_are_refused(series, tmp_path):
    series(tmp_path / "ct", volume())
    series(tmp_path / "ct", volume(), uid="1.2.3.5", names="other_{}.dcm")
    with pytest.raises(DataError, match=r"holds 2 DICOM series.*one series"):
        read_scan(tmp_path / "ct")


def test_a_missing_slice_is_named(series, tmp_path):
    folder = series(tmp_path / "ct", volume((6, 5, 7)))
    (folder / "IM0003.dcm").unlink()
    with pytest.raises(DataError, match=r"IM0002\.dcm and IM0004\.dcm are 5\.00 mm apart, the others 2\.50 mm"):
        read_scan(folder)


def test_files_that_are_no_dicom_are_refused(tmp_path):
    pytest.importorskip("SimpleITK")
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "a.dcm").write_bytes(b"x" * 300)
    with pytest.raises(DataError, match="holds 0 DICOM series"):
        read_scan(tmp_path / "ct")


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    assert find_series(tmp_path) == (tmp_path / "ct",)
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(MissingExtra, match=r"fptq\[dicom\]"):
        read_scan(tmp_path / "ct")
