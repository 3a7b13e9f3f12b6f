import nibabel
import numpy as np
import pytest

from fptq.errors import DataError
from fptq.tasks import open_cases

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.fixture
def folders(tmp_path):
    for name in ("scans", "labels"):
        (tmp_path / name).mkdir()
    for i in (1, 2):
        save(tmp_path / "scans" / f"head_{i}.nii.gz", np.full((4, 5, 6), i, np.float32))
        save(tmp_path / "labels" / f"head_{i}.nii", np.full((4, 5, 6), i, np.uint8))
    return tmp_path / "scans", tmp_path / "labels"


def save(path, volume, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def test_volumes_and_labels_meet_by_name(folders):
    cases = open_cases(*folders)
    assert [case.name for case in cases] == ["head_1", "head_2"]
    assert cases[1].spacing == (1.0, 2.0, 3.0)
    assert (cases[1].label == 2).all()
    assert len(cases[:1]) == 1
    assert open_cases(folders[0])[0].label is None


def test_labels_follow_the_orientation_of_their_volume(folders):
    scans, labels = folders
    volume = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    save(scans / "head_1.nii.gz", volume, flipped)
    save(labels / "head_1.nii", (volume > 0).astype(np.uint8), flipped)
    case = open_cases(*folders)[0]
    np.testing.assert_array_equal(case.label, case.volume > 0)


def test_arrays_have_no_millimetres(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    assert open_cases(tmp_path)[0].spacing is None


def test_a_missing_label_is_named(folders):
    scans, labels = folders
    (labels / "head_2.nii").rename(labels / "haed_2.nii")
    with pytest.raises(DataError, match=r"no label for head_2\.nii\.gz.*haed_2\.nii"):
        open_cases(scans, labels)


@pytest.mark.parametrize(
    ("label", "affine", "message"),
    [
        (np.zeros((4, 5, 7), np.uint8), AFFINE, r"shape \[4, 5, 7\], its volume \[4, 5, 6\]"),
        (np.zeros((4, 5, 6), np.uint8), np.diag([1.0, 2.0, 3.5, 1.0]), "another affine"),
        (np.full((4, 5, 6), 0.5, np.float32), AFFINE, "no label volume"),
    ],
)
def test_labels_that_do_not_match_are_refused(folders, label, affine, message):
    save(folders[1] / "head_1.nii", label, affine)
    with pytest.raises(DataError, match=message):
        open_cases(*folders)[0]
