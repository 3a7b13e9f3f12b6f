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
from fptq.feeds.nnunet import find_image_cases, foreground_patches
from fptq.graph.load import LoadOptions, load
from fptq.graph.nnunet import find_folds, new_predictor, quiet
from fptq.graph.trust import Trust
from fptq.graph.write import save
from fptq.recipes import nnunet_predictor, predict_nnunet
from fptq.recipes.compiled import compiled_folds
from fptq.recipes.nnunet import facts_of
from fptq.recipes.nnunet_predict import put_in
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
    facts = facts_of(tiny.predictor(), find_folds(tiny.source))
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
    given = torch.cat([torch.from_numpy(p) for p in foreground_patches(subject.predictor(), cases, count=3)])
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
        predictor.network.load_state_dict(tiny("cube").predictor().network.state_dict())


def test_a_case_with_nan_is_named(quantized: Path, tiny: Callable[[str], Any], tmp_path: Path) -> None:
    images = spoiled(tiny("cube").images, tmp_path / "images")
    done = CliRunner().invoke(app, ["predict", str(quantized), str(images), "-o", str(tmp_path / "out")])
    assert done.exit_code == DataError.exit_code
    assert "case b: a patch has NaN" in done.stderr
    predictor = tiny("cube").predictor()
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


def test_other_commands_take_a_fold_too(tiny: Callable[[str], Any]) -> None:
    found = fptq.inspect(f"{tiny('2d').source}:0", recipe=fptq.Recipe(trust=True, engine="onnxruntime"))
    assert {row.op for row in found.rows} >= {"Conv", "ConvTranspose"}
    with pytest.raises(ModelError, match="holds 2 folds"):
        fptq.quantize(tiny("cube").source, calibration=tiny("cube").images, trust=True)
