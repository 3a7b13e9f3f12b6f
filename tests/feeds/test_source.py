import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fptq.errors import ConfigError, DataError
from fptq.feeds import Samples, open_feeds, read_scan
from fptq.graph.model import TensorInfo

X = (TensorInfo(name="x", dtype=np.dtype(np.float32), shape=("batch", 1, 4, 4)),)
FIXED = (TensorInfo(name="x", dtype=np.dtype(np.float32), shape=(1, 1, 4, 4)),)
VOLUME = (TensorInfo(name="x", dtype=np.dtype(np.float32), shape=("n", 1, "a", "b", "c")),)


def save_nifti(path, volume, affine=None):
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return path


def values(feeds):
    return [float(f["x"].flat[0]) for f in feeds]


def plane(value):
    return np.full((1, 1, 4, 4), value, np.float32)


def test_a_folder_is_read_in_natural_order_and_again(tmp_path):
    np.savez(tmp_path / "s10.npz", x=plane(10))
    np.savez(tmp_path / "s2.npz", plane(2))
    np.save(tmp_path / "s1.npy", plane(1)[0])
    (tmp_path / "._s1.npy").write_bytes(b"an archiver's leftover")
    (tmp_path / "notes.txt").write_text("not a sample")
    feeds = open_feeds(tmp_path, X)
    assert len(feeds) == 3
    assert values(feeds) == values(feeds) == [1, 2, 10]
    assert values(open_feeds(str(tmp_path / "*.npz"), X)) == [2, 10]
    assert values(open_feeds(tmp_path / "s10.npz", X)) == [10]
    assert values(open_feeds(tmp_path, X, limit=2)) == [1, 2]
    assert len(open_feeds(tmp_path, X, limit=2)) == 2


def test_nifti_is_oriented_and_gets_its_axes(tmp_path):
    volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    save_nifti(tmp_path / "lps.nii.gz", volume, np.diag([-2.0, -2.0, 3.0, 1.0]))
    (run,) = open_feeds(tmp_path, VOLUME)
    assert run["x"].dtype == np.float32
    np.testing.assert_array_equal(run["x"][0, 0], volume[::-1, ::-1])
    assert read_scan(tmp_path / "lps.nii.gz").affine[0, 0] > 0


def test_several_volumes_in_one_file_are_channels(tmp_path):
    volume = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    scan = read_scan(save_nifti(tmp_path / "two.nii", volume))
    np.testing.assert_array_equal(scan.volume, np.moveaxis(volume, -1, 0))


def test_a_scan_larger_than_a_fixed_network_gives_a_patch_of_its_foreground(tmp_path):
    volume = np.zeros((12, 3, 10), np.float32)
    volume[8:10, 1, 1] = 5
    save_nifti(tmp_path / "a.nii.gz", volume)
    patch = (TensorInfo(name="x", dtype=np.dtype(np.float32), shape=(1, 1, 4, 4, 4)),)
    (run,) = open_feeds(tmp_path, patch)
    assert run["x"].sum() == volume.sum()
    assert (run["x"][0, 0].sum((1, 2)) > 0).tolist() == [False, True, True, False]


def test_the_preprocess_sees_volume_and_affine(tmp_path):
    save_nifti(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.float32), np.diag([2.0, 1, 1, 1]))
    (run,) = open_feeds(tmp_path, VOLUME, preprocess=lambda volume, affine: volume * affine[0, 0])
    assert run["x"].shape == (1, 1, 2, 3, 4)
    assert (run["x"] == 2).all()
    assert values(open_feeds([plane(3)], X, preprocess=lambda a, _: a + 1)) == [4]
    with pytest.raises(DataError, match=r"a\.nii\.gz: the preprocess raised ZeroDivisionError"):
        list(open_feeds(tmp_path, VOLUME, preprocess=lambda *_: 1 / 0))
    with pytest.raises(DataError, match="no array"):
        list(open_feeds(tmp_path, VOLUME, preprocess=lambda *_: None))
    with pytest.raises(DataError, match="not one array"):
        list(open_feeds([{"x": plane(1), "y": plane(2)}], X, preprocess=lambda a, _: a))


def test_a_data_loader_works_as_it_is():
    data = TensorDataset(torch.arange(5.0)[:, None, None, None].expand(5, 1, 4, 4), torch.zeros(5))
    feeds = open_feeds(DataLoader(data, batch_size=2), X)
    assert len(feeds) == 3
    assert [f["x"].shape[0] for f in feeds] == [2, 2, 1]
    split = open_feeds(DataLoader(data, batch_size=2), FIXED)
    assert len(split) == 5
    assert values(split) == [0, 1, 2, 3, 4]
    assert len(open_feeds(data, X)) == 5


class Stream(IterableDataset):
    def __iter__(self):
        return (torch.full((1, 4, 4), float(i)) for i in range(3))


class Indexed:
    """A map-style dataset without __iter__ that never raises IndexError."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return plane(index)


@pytest.mark.parametrize(
    "source", [DataLoader(Stream(), batch_size=None), Indexed(), np.stack([plane(i)[0] for i in range(3)])]
)
def test_other_iterables(source):
    feeds = open_feeds(source, X)
    assert len(feeds) == 3
    assert values(feeds) == values(feeds) == [0, 1, 2]


def test_an_iterator_can_be_walked_again_until_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_feeds((plane(i) for i in range(10)), X, limit=4) as feeds:
        assert len(feeds) == 4
        assert values(feeds) == values(feeds) == [0, 1, 2, 3]
        assert len(list(tmp_path.rglob("*.npz"))) == 4
    assert not list(tmp_path.iterdir())


def test_a_failing_iterator_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(DataError, match="sample 1"):
        open_feeds((plane(v) for v in (1, np.nan)), X)
    assert not list(tmp_path.iterdir())


def test_one_sample_is_in_memory_at_a_time():
    alive = 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    class Source:
        def __iter__(self):
            nonlocal alive
            for i in range(4):
                alive += 1
                yield plane(i).view(Counted)

    most = 0
    for _ in open_feeds(Source(), X):
        most = max(most, alive)
    assert most <= 2  # the one in use and the one being made


def test_a_function_by_name(tmp_path, monkeypatch):
    (tmp_path / "calibration_batches_module.py").write_text(
        "import numpy as np\ndef batches():\n    for i in range(3):\n        yield np.full((1, 4, 4), i, np.float32)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with open_feeds("calibration_batches_module:batches", X) as feeds:
        assert values(feeds) == [0, 1, 2]
    with pytest.raises(ConfigError, match="Did you mean batches"):
        open_feeds("calibration_batches_module:batchs", X)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.npz", b"PK no"), ("a.npy", b""), ("a.nii.gz", b"\x1f\x8b damaged"), ("a.nii", b"not a scan")],
)
def test_an_unreadable_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name.replace('.', '[.]')} cannot be read"):
        list(open_feeds(tmp_path, X))


def test_a_truncated_scan_is_named(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(16, 16, 16)))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"a\.nii\.gz cannot be read"):
        list(open_feeds(tmp_path, VOLUME))


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        list(open_feeds(tmp_path, X))


def test_non_finite_scans_are_named(tmp_path):
    save_nifti(tmp_path / "a.nii.gz", np.full((2, 2, 2), np.inf))
    with pytest.raises(DataError, match=r"a\.nii\.gz has NaN or Inf"):
        list(open_feeds(tmp_path, VOLUME))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "does not exist"),
        (Path(__file__).parent, "holds none"),
        ({"x": plane(1)}, r"give \[sample\]"),
        (3, "data of type int"),
        ([], "no sample"),
        (iter([]), "no sample"),
    ],
)
def test_no_data_is_an_error(source, message):
    with pytest.raises(DataError, match=message):
        list(open_feeds(source, X))


def test_limit_zero_is_an_error():
    with pytest.raises(DataError, match="limit=0"):
        open_feeds([plane(1)], X, limit=0)


def test_samples_is_the_type_returned():
    assert isinstance(open_feeds([plane(1)], X), Samples)
