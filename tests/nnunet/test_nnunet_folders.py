"""What is found out about a results folder of nnU-Net, and its images, before nnunetv2 is needed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fptq
from fptq.cli import app
from fptq.errors import ConfigError, DataError, FptqError, MissingExtra, ModelError
from fptq.feeds.nnunet import find_image_cases
from fptq.graph.load import load
from fptq.graph.nnunet import find_fold, find_folds, names_nnunet, new_predictor, open_fold
from fptq.graph.trust import Trust
from fptq.recipes import nnunet_predictor, quantize_nnunet


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The outside of a results folder: two folds, of which one is finished."""
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "fold_1/checkpoint_best.pth"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def refused(text: str, error: type[FptqError] = ModelError) -> pytest.RaisesExc:
    return pytest.raises(error, match=re.escape(text))


def test_a_prefix_names_a_result_of_nnunet() -> None:
    assert names_nnunet("nnunet:folder:0")
    assert not names_nnunet("package.module:function")
    assert not names_nnunet(Path("nnunet:folder"))


def test_without_a_fold_the_finished_ones_are_meant(results: Path) -> None:
    assert find_folds(f"nnunet:{results}").folds == ("0",)
    (results / "fold_1" / "checkpoint_final.pth").touch()
    (results / "fold_10").mkdir()
    (results / "fold_10" / "checkpoint_final.pth").touch()
    (results / "fold_all").mkdir()
    (results / "fold_all" / "checkpoint_final.pth").touch()
    assert find_folds(f"nnunet:{results}").folds == ("0", "1", "10")
    assert find_folds(f"nnunet:{results}:all").folds == ("all",)
    with refused("holds 3 folds"):
        find_fold(f"nnunet:{results}")


def test_another_checkpoint_can_be_named(results: Path) -> None:
    found = find_fold(f"nnunet:{results}:1:checkpoint_best.pth")
    assert (found.folds, found.checkpoint) == (("1",), "checkpoint_best.pth")


def test_what_is_missing_is_named(results: Path) -> None:
    with refused("has no fold 4. it has 0, 1"):
        find_folds(f"nnunet:{results}:4")
    with refused(f"Name another: nnunet:{results}:1:checkpoint_best.pth"):
        find_folds(f"nnunet:{results}:1")
    with refused("is no folder"):
        find_folds("nnunet:nowhere")
    with refused(f"Name one inside it: {results.name}"):
        find_folds(f"nnunet:{results.parent}")
    (results / "plans.json").unlink()
    with refused("has no plans.json"):
        find_folds(f"nnunet:{results}")


def test_an_unfinished_training_is_named(results: Path) -> None:
    (results / "fold_0" / "checkpoint_final.pth").unlink()
    (results / "fold_1" / "checkpoint_best.pth").unlink()
    with refused("fold_0 has no checkpoint_final.pth"):
        find_folds(f"nnunet:{results}")
    with refused("Train this fold to its end"):
        find_folds(f"nnunet:{results}:1")


def test_results_of_nnunet_v1_are_told_from_those_of_v2(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "plans.pkl").touch()
    (tmp_path / "fold_0" / "model_final_checkpoint.model").touch()
    with refused("holds results of nnU-Net v1"):
        find_folds(f"nnunet:{tmp_path}")


def test_a_checkpoint_is_read_only_where_it_is_trusted(results: Path, tmp_path: Path) -> None:
    trained = find_folds(f"nnunet:{results}")
    with refused("If you trust where it comes from, say so with --trust"):
        open_fold(trained, "0", trust=Trust.NOTHING)
    with refused("--trust"):
        load(f"nnunet:{results}")
    with refused("--trust"):
        quantize_nnunet(f"nnunet:{results}", calibration=tmp_path)
    line = ["quantize", f"nnunet:{results}", "--calib", str(tmp_path), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == ModelError.exit_code
    assert done.stderr.count("\n") == 1
    assert "can execute code when it is read" in done.stderr


def test_what_nnunet_decides_itself_is_refused(results: Path, tmp_path: Path) -> None:
    for options in ({"preprocess": "a.b:c"}, {"task": "segmentation"}, {"patch": (8, 8, 8)}):
        with pytest.raises(ConfigError, match="with a network of nnU-Net"):
            quantize_nnunet(f"nnunet:{results}", calibration=tmp_path, trust=True, **options)


def test_images_to_validate_on_are_not_read_without_nnunet(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation with a network of nnU-Net"):
        fptq.quantize(f"nnunet:{results}:0", calibration=tmp_path, validation=tmp_path, trust=True)


def test_a_missing_nnunetv2_comes_with_both_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    for name in [name for name in sys.modules if name.startswith("nnunetv2.")]:
        monkeypatch.delitem(sys.modules, name)
    pytest.importorskip("torch")
    with refused("pip install 'fptq[nnunet]' && pip install --no-deps nnunetv2", MissingExtra):
        new_predictor()


DATASET = {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}}


def files(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_cases_have_their_channels_in_order(tmp_path: Path) -> None:
    names = ("b_2_0001.nii.gz", "b_2_0000.nii.gz", "b_10_0000.nii.gz", "b_10_0001.nii.gz", "notes.txt", "b.nii.gz")
    cases = find_image_cases(files(tmp_path, *names), DATASET)
    assert [case.name for case in cases] == ["b_2", "b_10"]
    assert [path.name for path in cases[0].files] == ["b_2_0000.nii.gz", "b_2_0001.nii.gz"]


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    with refused("case a has channel 0001. the network takes 2, from 0000: T1, T2", DataError):
        find_image_cases(files(tmp_path, "a_0001.nii.gz"), DATASET)
    with refused("case a has channel 0000, 0001, 0002", DataError):
        find_image_cases(files(tmp_path, "a_0000.nii.gz", "a_0002.nii.gz"), DATASET)


def test_images_of_another_kind_are_none(tmp_path: Path) -> None:
    with refused("CASE_0000.nii.gz for the first channel", DataError):
        find_image_cases(files(tmp_path, "a_0000.mha"), DATASET)
    with refused("is no folder", DataError):
        find_image_cases(tmp_path / "nowhere", DATASET)


def test_only_a_folder_of_a_quantized_nnunet_predicts(tmp_path: Path) -> None:
    with refused("has no nnunet.json", ConfigError):
        nnunet_predictor(tmp_path)
    (tmp_path / "nnunet.json").write_text('{"format": "fptq-nnunet/9"}')
    with refused("has format fptq-nnunet/9", ConfigError):
        nnunet_predictor(tmp_path)


def test_options_of_nnunet_are_for_its_folders(tmp_path: Path) -> None:
    line = ["predict", str(tmp_path), str(tmp_path), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*line, "--no-mirroring"])
    assert done.exit_code == ConfigError.exit_code
    assert "use_mirroring cannot be chosen here" in done.stderr
    (tmp_path / "nnunet.json").write_text("{}")
    done = CliRunner().invoke(app, [*line, "--task", "generic"])
    assert "task cannot be chosen here" in done.stderr
