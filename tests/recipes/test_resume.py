"""A folder of scans that is interrupted, changed, or does not fit on the disk."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest

import fptq
from fptq.errors import DataError, OutputError
from fptq.feeds import read_scan, scratch
from fptq.recipes import predict

OPTIONS = {"engine": "onnxruntime", "threads": 1, "gate": "off", "observer": "minmax"}
SIDE = 8
SHAPE = (40, 21, 18)


def scans(folder, count=2, *, shape=SHAPE):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        data = rng.normal(100, 20, shape).astype(np.float32)
        nibabel.Nifti1Image(data, np.diag([-1, -1, 2, 1.0])).to_filename(folder / f"s{index}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def out(net, made, tmp_path):
    """A saved result for segmentation into three classes."""
    if not made:
        n = net((1, 1, SIDE, SIDE, SIDE))
        n.conv(1, 8, rank=3)
        n("Relu")
        n.conv(8, 3, rank=3, kernel=1)
        made["result"] = fptq.quantize(
            n.model().graph_model,
            calibration=scans(tmp_path / "calib", 1, shape=(SIDE,) * 3),
            task="segmentation",
            preprocess={"window": (40, 160)},
            cache=tmp_path / "cache",
            **OPTIONS,
        )
    return made["result"].save(tmp_path / "out")


def windows(told):
    """The windows that a call computed, by scan, from its progress."""
    return sum(": windows" in what for _, _, what in told)


def labels(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_finished_scans_are_not_predicted_again(out, tmp_path):
    data = scans(tmp_path / "new")
    first = predict(out, data, output=tmp_path / "o")
    times = [path.stat().st_mtime_ns for path in first]
    first[1].unlink()
    told = []
    assert predict(out, data, output=tmp_path / "o", progress=lambda *now: told.append(now)) == first
    assert told[0] == (1, 2, "prediction")
    assert told[-1] == (2, 2, "prediction")
    assert first[0].stat().st_mtime_ns == times[0]
    assert first[1].stat().st_mtime_ns > times[1]
    assert predict(out, data, output=tmp_path / "o") == first  # nothing is left to do
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["s0.nii.gz", "s1.nii.gz"]


def test_a_result_of_other_options_or_another_scan_is_not_taken_for_finished(out, tmp_path):
    data = scans(tmp_path / "new", 1)
    (made,) = predict(out, data, output=tmp_path / "o")
    before = made.read_bytes()
    with pytest.raises(OutputError, match=r"s0\.nii\.gz exists"):
        predict(out, data, output=tmp_path / "o", overlap=0.25)
    os.utime(data / "s0.nii.gz", ns=(1, 1))
    with pytest.raises(OutputError, match="--overwrite"):
        predict(out, data, output=tmp_path / "o")
    assert made.read_bytes() == before
    predict(out, data, output=tmp_path / "o", overwrite=True)
    assert predict(out, data, output=tmp_path / "o") == (made,)


@pytest.mark.parametrize("half", [False, True])
def test_a_killed_process_is_gone_on_from(out, tmp_path, monkeypatch, half):
    """A real process, killed by the system while windows are computed; this one finishes its work."""
    data = scans(tmp_path / "new", 1, shape=(90, 40, 40))
    limit = "from fptq.feeds import scratch; scratch.LARGE = 0; " if half else ""
    call = f"predict({str(out)!r}, {str(data)!r}, output={str(tmp_path / 'o')!r})"
    code = f"{limit}from fptq.recipes import predict; {call}"
    counters = tmp_path / "o" / ".s0.nii.gz.part" / "counters"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    while process.poll() is None and done_in(counters) < 300:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    done, told = done_in(counters), []
    assert not (tmp_path / "o" / "s0.nii.gz").exists()
    monkeypatch.setattr(scratch, "LARGE", 0 if half else 2**28)
    (resumed,) = predict(out, data, output=tmp_path / "o", progress=lambda *now: told.append(now))
    (whole,) = predict(out, data, output=tmp_path / "p")
    np.testing.assert_array_equal(labels(resumed), labels(whole))
    assert len(np.unique(labels(whole))) > 1
    total = next(number for _, number, what in told if "windows" in what)
    assert done >= 300
    # The window whose sums were staged when the process died needs no call either.
    assert total - done - 1 <= windows(told) <= total - done
    assert list((tmp_path / "o").iterdir()) == [resumed]


def done_in(counters):
    """Windows that a run has finished, from its state."""
    try:
        return struct.unpack("<3q", counters.read_bytes())[1]
    except (OSError, struct.error):
        return 0


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_at_the_end_leaves_no_result_and_costs_no_window(out, tmp_path, monkeypatch):
    data = scans(tmp_path / "new", 1)
    with monkeypatch.context() as full:
        full.setattr("nibabel.Nifti1Image.to_filename", no_space)
        with pytest.raises(OutputError, match=r"s0\.nii\.gz could not be written: No space left") as caught:
            predict(out, data, output=tmp_path / "o")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "o").iterdir()] == [".s0.nii.gz.part"]
    told = []
    (made,) = predict(out, data, output=tmp_path / "o", progress=lambda *now: told.append(now))
    assert windows(told) == 0
    np.testing.assert_array_equal(labels(made), labels(predict(out, data, output=tmp_path / "p")[0]))
    assert list((tmp_path / "o").iterdir()) == [made]


def test_what_is_made_anew_does_not_go_on_from_what_was_left(out, tmp_path):
    data = scans(tmp_path / "new", 1)

    def stop(done, total, what):
        if "windows" in what and done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(out, data, output=tmp_path / "o", progress=stop)
    told = []
    predict(out, data, output=tmp_path / "o", overwrite=True, progress=lambda *now: told.append(now))
    assert windows(told) == next(total for _, total, what in told if "windows" in what)


def test_a_disk_that_has_no_room_for_the_sums_is_told_at_once(out, tmp_path, monkeypatch):
    monkeypatch.setattr("fptq.tasks.store.reserve", no_space)
    with pytest.raises(OutputError, match="could not be kept: No space left"):
        predict(out, scans(tmp_path / "new", 1), output=tmp_path / "o")
    assert list((tmp_path / "o").iterdir()) == []


def test_a_scan_with_nan_stops_before_anything_is_written(out, tmp_path):
    data = scans(tmp_path / "new", 1)
    image = nibabel.load(data / "s0.nii.gz")
    voxels = image.get_fdata()
    voxels[3, 4, 5] = np.nan
    nibabel.Nifti1Image(voxels, image.affine).to_filename(data / "s0.nii.gz")
    with pytest.raises(DataError, match=r"s0\.nii\.gz has NaN or Inf values"):
        predict(out, data, output=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_resampled_scan_is_gone_on_from_too(out, tmp_path, monkeypatch):
    """Outputs are interpolated back, so they are kept whole."""
    options = {"preprocess": {"window": (40, 160), "spacing": (1.0, 1.3, 1.5)}}
    data = scans(tmp_path / "new", 1)
    (whole,) = predict(out, data, output=tmp_path / "p", **options)

    def stop(done, total, what):
        if "windows" in what and done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(out, data, output=tmp_path / "o", progress=stop, **options)
    told = []
    (resumed,) = predict(out, data, output=tmp_path / "o", progress=lambda *now: told.append(now), **options)
    total = next(number for _, number, what in told if "windows" in what)
    assert windows(told) == total - 40
    np.testing.assert_array_equal(labels(resumed), labels(whole))
    assert labels(whole).shape == SHAPE


def test_a_dicom_series_becomes_a_label_map_where_it_lies(out, tmp_path, series):
    voxels = np.random.default_rng(1).normal(100, 20, (12, 11, 9)).astype(np.int16)
    for name in ("anna", "bert"):
        series(tmp_path / "new" / name, voxels)
    made = predict(out, tmp_path / "new", output=tmp_path / "o")
    assert [path.name for path in made] == ["anna.nii.gz", "bert.nii.gz"]
    scan = read_scan(tmp_path / "new" / "anna")
    labelled = read_scan(made[0])
    np.testing.assert_allclose(labelled.affine, scan.affine, atol=1e-5)
    assert labelled.volume.shape == (12, 11, 9)
    as_nifti = tmp_path / "nifti"
    as_nifti.mkdir()
    nibabel.Nifti1Image(scan.volume, scan.affine).to_filename(as_nifti / "s.nii")
    (other,) = predict(out, as_nifti, output=tmp_path / "o")
    np.testing.assert_array_equal(labelled.volume, read_scan(other).volume)
    assert predict(out, tmp_path / "new", output=tmp_path / "o") == made
