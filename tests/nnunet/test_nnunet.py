"""Networks that nnunetv2 trained: its own label maps from an engine, and from integers nearly the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fptq
from fptq.cli import app
from fptq.engines import CompileOptions
from fptq.errors import DataError, ModelError, OutputError
from fptq.feeds.nnunet import find_image_cases, foreground_patches, preprocessed_case
from fptq.graph.load import LoadOptions, load
from fptq.graph.nnunet import find_folds, new_predictor, open_fold, quiet
from fptq.graph.trust import Trust
from fptq.graph.write import save
from fptq.recipes import nnunet_predictor, predict_nnunet
from fptq.recipes.nnunet import facts_of
from fptq.recipes.nnunet_predict import compiled_folds, put_in
from fptq.tasks.metrics import dice
from fptq.types import Array

pytestmark = [pytest.mark.engine("nnunetv2"), pytest.mark.engine("torch")]

OPTIONS = ["--recipe", "fast", "--samples", "8", "--threads", "1", "--trust"]
EXACT = CompileOptions(threads=1, float_precision="f32")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def trusted(tiny: Any, fold: str = "0") -> Any:
    """nnU-Net's predictor with the float network."""
    return open_fold(find_folds(tiny.source), fold, trust=Trust.SOURCE)


def theirs(tiny: Any, output: Path, folds: tuple[int, ...] = (0,)) -> Path:
    """The label maps of nnunetv2, by nothing but its own code."""
    predictor = new_predictor()
    output.mkdir()
    with quiet():
        predictor.initialize_from_trained_model_folder(str(tiny.results), folds, "checkpoint_final.pth")
        predictor.predict_from_files_sequential(str(tiny.images), str(output))
    return output


def on_engine(tiny: Any, output: Path, engine: str, folds: tuple[str, ...] = ("0",)) -> Path:
    """The label maps of the float networks on an engine."""
    paths = []
    for fold in folds:
        model = load(f"{tiny.source}:{fold}", options=LoadOptions(trust=Trust.SOURCE))
        paths.append(output.with_suffix(f".{fold}.onnx"))
        save(model, paths[-1])
    compiled = compiled_folds(paths, EXACT, engine=engine)
    facts = facts_of(trusted(tiny), find_folds(tiny.source))
    predictor = put_in(new_predictor(), compiled, folder=tiny.results, facts=facts)
    predict_nnunet(predictor, tiny.images, output=output)
    return output


def labels(path: Path) -> Array:
    import SimpleITK

    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))


def maps(folder: Path) -> Array:
    return np.stack([labels(folder / f"{name}.nii.gz") for name in ("a", "b")])


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        pytest.param("cube", "openvino", marks=pytest.mark.engine("openvino")),
        ("thin", "onnxruntime"),
        ("2d", "onnxruntime"),
        ("regions", "onnxruntime"),
    ],
)
def test_the_float_network_on_an_engine_gives_the_label_maps_of_nnunet(
    kind: str, engine: str, tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    subject = tiny(kind)
    expected, found = theirs(subject, tmp_path / "theirs"), on_engine(subject, tmp_path / "ours", engine)
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
    assert len(np.unique(maps(expected))) == 3
    assert np.mean(maps(found) == maps(expected)) >= 0.9999


def test_folds_are_averaged_as_nnunet_averages_them(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    subject = tiny("cube")
    expected = maps(theirs(subject, tmp_path / "theirs", (0, 1)))
    found = maps(on_engine(subject, tmp_path / "ours", "onnxruntime", ("0", "1")))
    assert np.mean(found == expected) >= 0.9999
    assert np.any(maps(theirs(subject, tmp_path / "one", (1,))) != expected)


@pytest.fixture(scope="module")
def quantized(tiny: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command line's folder of both folds of the cube."""
    subject, out = tiny("cube"), tmp_path_factory.mktemp("quantized") / "out"
    line = ["quantize", subject.source, "--calib", str(subject.images), "-o", str(out), *OPTIONS]
    done = CliRunner().invoke(app, [*line, "--engine", "onnxruntime"])
    assert done.exit_code == 0, done.stderr
    assert f"fptq predict {out}" in done.stdout.replace("\n", "")
    return out


def test_two_commands_replace_nnunet(quantized: Path, tiny: Callable[[str], Any], tmp_path: Path) -> None:
    subject = tiny("cube")
    line = ["predict", str(quantized), str(subject.images), "-o", str(tmp_path / "ours"), "--threads", "1"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.stderr
    expected = theirs(subject, tmp_path / "theirs", (0, 1))
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {path.name for path in expected.iterdir()}
    for label in (1, 2):
        assert dice(maps(tmp_path / "ours") == label, maps(expected) == label) >= 0.97
    done = CliRunner().invoke(app, line)
    assert done.exit_code == OutputError.exit_code
    done = CliRunner().invoke(app, [*line, "--overwrite", "--no-mirroring", "--step-size", "1", "--save-probabilities"])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "ours" / "a.npz").exists()
    document = json.loads((tmp_path / "ours" / "predict_from_raw_data_args.json").read_text())
    assert document["save_probabilities"] is True


def test_the_folder_needs_no_checkpoint(quantized: Path) -> None:
    assert {path.name for path in quantized.iterdir()} == {
        *("fold_0", "fold_1"),
        *("nnunet.json", "plans.json", "dataset.json"),
    }
    assert not list(quantized.rglob("*.pth"))
    assert all(fptq.Report.load(path).agreement.samples > 0 for path in quantized.glob("fold_*"))


def test_the_module_takes_several_patches(quantized: Path, tiny: Callable[[str], Any]) -> None:
    import torch

    predictor = nnunet_predictor(quantized, threads=1)
    subject = tiny("cube")
    cases = find_image_cases(subject.images, predictor.dataset_json)
    given = torch.cat([torch.from_numpy(p) for p in foreground_patches(trusted(subject), cases, count=3)])
    together = predictor.network(given)
    assert together.shape == (3, 3, 16, 16, 16)
    assert together.dtype == torch.float32
    alone = torch.cat([predictor.network(patch[None]) for patch in given])
    assert torch.equal(together, alone)
    first = predictor.network(given[:1])
    kept = first.clone()
    predictor.network(given[1:2])
    assert torch.equal(first, kept), "results own their memory"


def test_the_module_refuses_nan_and_weights(quantized: Path, tiny: Callable[[str], Any]) -> None:
    import torch

    predictor = nnunet_predictor(quantized, threads=1)
    with pytest.raises(DataError, match="NaN or infinite"):
        predictor.network(torch.full((1, 2, 16, 16, 16), float("nan")))
    with pytest.raises(DataError, match="weights cannot be loaded"):
        predictor.network.load_state_dict(trusted(tiny("cube")).network.state_dict())


def test_a_case_with_nan_is_named(quantized: Path, tiny: Callable[[str], Any], tmp_path: Path) -> None:
    images = spoiled(tiny("cube").images, tmp_path / "images")
    done = CliRunner().invoke(app, ["predict", str(quantized), str(images), "-o", str(tmp_path / "out")])
    assert done.exit_code == DataError.exit_code
    assert "case b: a patch has NaN" in done.stderr
    predictor = trusted(tiny("cube"))
    with pytest.raises(DataError, match="case b has 1 NaN or infinite voxels"):
        list(foreground_patches(predictor, find_image_cases(images, predictor.dataset_json), count=4))


def test_a_case_that_cannot_be_read_is_named(quantized: Path, tiny: Callable[[str], Any], tmp_path: Path) -> None:
    shutil.copytree(tiny("cube").images, tmp_path / "images")
    (tmp_path / "images" / "b_0000.nii.gz").write_bytes(b"nothing")
    predictor = nnunet_predictor(quantized, threads=1)
    with pytest.raises(DataError, match=r"b_0000.nii.gz cannot be read"):
        predict_nnunet(predictor, tmp_path / "images", output=tmp_path / "out")
    done: list[int] = []
    written = predict_nnunet(
        predictor, tiny("cube").images, output=tmp_path / "again", progress=lambda at, total, what: done.append(at)
    )
    assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz"]
    assert done == [0, 1, 2]


def test_a_fold_alone_predicts_nothing(quantized: Path, tiny: Callable[[str], Any], tmp_path: Path) -> None:
    line = ["predict", str(quantized / "fold_0"), str(tiny("cube").images), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, line)
    assert f"Give {quantized}" in done.stderr


def spoiled(images: Path, folder: Path) -> Path:
    """The images, one voxel of the second case NaN; ITK's reader of NIfTI would take it for 0."""
    import nibabel

    shutil.copytree(images, folder)
    image = nibabel.load(folder / "b_0001.nii.gz")
    volume = np.asarray(image.dataobj, np.float32)
    volume[3, 4, 5] = np.nan
    nibabel.save(type(image)(volume, image.affine), folder / "b_0001.nii.gz")
    return folder


@pytest.mark.parametrize(("kind", "shape"), [("cube", (16, 16, 16)), ("thin", (4, 16, 16)), ("2d", (16, 16))])
def test_patches_are_cut_from_what_nnunet_prepares(
    kind: str, shape: tuple[int, ...], tiny: Callable[[str], Any]
) -> None:
    predictor = trusted(tiny(kind))
    cases = find_image_cases(tiny(kind).images, predictor.dataset_json)
    found = list(foreground_patches(predictor, cases, count=6, seed=3))
    again = list(foreground_patches(predictor, cases, count=6, seed=3))
    assert [patch.shape for patch in found] == [(1, 2, *shape)] * 6
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    images = [preprocessed_case(predictor, case) for case in cases]
    values = [set(image.ravel().tolist()) for image in images]
    assert all(set(patch.ravel().tolist()) <= values[index // 3] for index, patch in enumerate(found))
    assert images[0].mean() == pytest.approx(0, abs=1e-3)


def test_half_of_the_patches_lie_on_foreground(tiny: Callable[[str], Any]) -> None:
    import torch

    predictor = trusted(tiny("2d"))
    cases = find_image_cases(tiny("2d").images, predictor.dataset_json)
    found = list(foreground_patches(predictor, cases, count=40))

    def seen(patch: Array) -> float:
        with torch.inference_mode():
            return float((predictor.network(torch.from_numpy(patch)).argmax(1)[0, 6:10, 6:10] > 0).float().mean())

    assert np.mean([seen(p) for p in found[::2]]) > np.mean([seen(p) for p in found[1::2]]) + 0.15


def changed(tiny: Any, folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> str:
    """The results folder with one of its JSON files changed, as a source."""
    shutil.copytree(tiny.results, folder)
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))
    return f"nnunet:{folder}:0"


def _architecture(plans: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = plans["configurations"]["3d_fullres"]["architecture"]
    return made


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("plans.json", lambda d: _architecture(d)["arch_kwargs"].update(features_per_stage=[8, 32]), "size mismatch"),
        ("plans.json", lambda d: d.update(configurations={}), "3d_fullres not found in plans"),
        ("dataset.json", lambda d: d["channel_names"].update({"2": "FLAIR"}), "size mismatch"),
        ("dataset.json", lambda d: d.update(labels={"background": 0}), "size mismatch"),
        ("dataset.json", lambda d: d.update(labels={}), "cannot be opened"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    name: str, change: Callable[[dict[str, Any]], object], says: str, tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    source = changed(tiny("cube"), tmp_path / "changed", name, change)
    with pytest.raises(ModelError, match=says) as caught:
        load(source, options=LoadOptions(trust=Trust.SOURCE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "says"), [("cascade", "second stage"), ("background", "no label but the background")])
def test_networks_that_cannot_be_calibrated_are_refused(kind: str, says: str, tiny: Callable[[str], Any]) -> None:
    with pytest.raises(ModelError, match=says):
        load(f"{tiny(kind).source}:0", options=LoadOptions(trust=Trust.SOURCE))


def test_a_broken_checkpoint_is_refused(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    shutil.copytree(tiny("cube").results, tmp_path / "results")
    (tmp_path / "results" / "fold_0" / "checkpoint_final.pth").write_bytes(b"truncated")
    with pytest.raises(ModelError, match="cannot be opened"):
        load(f"nnunet:{tmp_path / 'results'}:0", options=LoadOptions(trust=Trust.SOURCE))


def test_a_trainer_that_is_nowhere_is_named(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    import torch

    shutil.copytree(tiny("cube").results, tmp_path / "results")
    path = tmp_path / "results" / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "trainer_name": "nnUNetTrainerOfMine"}, path)
    with pytest.raises(ModelError, match=r"nnUNetTrainerOfMine|timm"):
        load(f"nnunet:{tmp_path / 'results'}:0", options=LoadOptions(trust=Trust.SOURCE))


def test_an_image_that_cannot_be_read_is_named(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    shutil.copytree(tiny("cube").images, tmp_path / "images")
    (tmp_path / "images" / "a_0000.nii.gz").write_bytes(b"nothing")
    predictor = trusted(tiny("cube"))
    cases = find_image_cases(tmp_path / "images", predictor.dataset_json)
    with pytest.raises(DataError, match=r"a_0000.nii.gz cannot be read"):
        list(foreground_patches(predictor, cases, count=2))


def test_other_commands_take_a_fold_too(tiny: Callable[[str], Any]) -> None:
    found = fptq.inspect(f"{tiny('2d').source}:0", recipe=fptq.Recipe(trust=True, engine="onnxruntime"))
    assert {row.op for row in found.rows} >= {"Conv", "ConvTranspose"}
    with pytest.raises(ModelError, match="holds 2 folds"):
        fptq.quantize(tiny("cube").source, calibration=tiny("cube").images, trust=True)
