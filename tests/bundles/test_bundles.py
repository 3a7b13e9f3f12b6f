"""A bundle quantized and predicted: its own label maps from an engine, and from integers nearly the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

import fptq
from fptq.cli import app
from fptq.config import Recipe
from fptq.engines import CompileOptions
from fptq.engines.folds import EngineFolds
from fptq.errors import ConfigError, ModelError
from fptq.graph.bundle import find_bundle, open_bundle
from fptq.graph.load import LoadOptions, load
from fptq.graph.trust import Trust
from fptq.graph.write import save
from fptq.recipes.bundle_source import forget_bundle, keep_bundle, open_monai
from fptq.recipes.compiled import compiled_folds

pytestmark = [pytest.mark.engine("monai"), pytest.mark.engine("torch")]
OPTIONS = ["--recipe", "fast", "--samples", "10", "--threads", "1", "--engine", "onnxruntime"]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def out(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "out"
    config = tmp_path_factory.mktemp("recipe") / "fptq.toml"
    config.write_text('gate = "off"\n')  # too small to be timed
    done = run("quantize", made.source, "--calib", made.scans, "--config", config, "--trust", "-o", folder, *OPTIONS)
    assert done.exit_code == 0, done.output
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def monais(made: Any, network: Any, scan: Path) -> np.ndarray:
    """The labels of a bundle, by nothing but MONAI's own code around a network."""
    import torch
    from monai.transforms import Compose

    opened = open_bundle(find_bundle(made.source), trust=Trust.SOURCE)
    preprocessing, postprocessing = opened.content("preprocessing"), opened.content("postprocessing")
    data = preprocessing({"image": str(scan)})
    with torch.no_grad():
        data["pred"] = opened.content("inferer")(data["image"][None], network or opened.network())[0]
    labels: np.ndarray = Compose(postprocessing.transforms[:-1])(data)["pred"].numpy()[0]
    return labels


def test_label_maps_of_the_engine_are_monais(made: Any, tmp_path: Path) -> None:
    save(load(made.source, options=LoadOptions(trust=Trust.SOURCE)), tmp_path / "float.onnx")
    options = CompileOptions(threads=1, float_precision="f32")
    for engine in ("onnxruntime", "openvino"):
        compiled = compiled_folds([tmp_path / "float.onnx"], options, engine=engine)
        network = EngineFolds(compiled.runners, input_name=compiled.input_name, output_name=compiled.output_name)
        for scan in sorted(made.scans.iterdir()):
            theirs, ours = monais(made, None, scan), monais(made, network, scan)
            assert theirs.shape == (30, 34, 26)
            assert (theirs == ours).mean() > 0.9999
            assert set(np.unique(theirs)) == {0, 1, 2}


def test_integers_give_nearly_the_same_label_maps_on_the_scans_grid(made: Any, out: Path, tmp_path: Path) -> None:
    done = run("predict", out, made.scans, "-o", tmp_path, "--trust", "--threads", "1")
    assert done.exit_code == 0, done.output
    for scan in sorted(made.scans.iterdir()):
        image, labels = nibabel.load(scan), nibabel.load(tmp_path / scan.name)
        assert np.allclose(image.affine, labels.affine)
        assert labels.get_data_dtype() == np.uint8
        found = np.asarray(labels.dataobj)
        assert found.shape == image.shape
        assert (found == monais(made, None, scan)).mean() > 0.98
    again = run("predict", out, made.scans, "-o", tmp_path, "--trust")
    assert again.exit_code != 0
    assert "--overwrite" in again.output


def test_the_folder_keeps_the_bundle_without_its_weights(made: Any, out: Path) -> None:
    assert sorted(path.name for path in (out / "monai_bundle" / "configs").iterdir()) == [
        "inference.json",
        "metadata.json",
    ]
    assert not (out / "monai_bundle" / "models").exists()
    assert (out / "monai_bundle" / "source.txt").read_text().strip() == str(made.folder.resolve())
    predictor = fptq.bundle_predictor(out, threads=1, trust=True)
    labels = predictor(sorted(made.scans.iterdir())[0])
    assert tuple(labels.shape) == (1, 30, 34, 26)


def test_a_bundle_that_says_nothing_about_labels_gets_the_largest_channel(made: Any, out: Path, tmp_path: Path) -> None:
    import json

    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    path = folder / "monai_bundle" / "configs" / "inference.json"
    config = json.loads(path.read_text())
    del config["postprocessing"], config["inferer"]
    path.write_text(json.dumps(config))
    scan = sorted(made.scans.iterdir())[0]
    labels = fptq.bundle_predictor(folder, threads=1, trust=True)(scan)
    assert (labels.numpy()[0] == monais(made, None, scan)).mean() > 0.97


def test_a_result_stands_in_for_the_bundles_network(made: Any) -> None:
    options = {"engine": "onnxruntime", "gate": "off", "recipe": "fast", "threads": 1, "samples": 6, "trust": True}
    result = fptq.quantize(made.source, calibration=str(made.scans), **options)
    scan = sorted(made.scans.iterdir())[1]
    assert (monais(made, result.as_module(), scan) == monais(made, None, scan)).mean() > 0.98


def test_samples_that_are_prepared_stay_as_they_are(made: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "window.npy", np.zeros((1, 16, 16, 16), np.float32))
    bundle, recipe = find_bundle(made.source), Recipe(trust=True)
    for samples in ([np.zeros((1, 1, 16, 16, 16))], str(tmp_path), "package.module:windows"):
        network, found = open_monai(bundle, samples, recipe)
        assert found is samples
        assert type(network).__name__ == "UNet"


@pytest.mark.parametrize(
    "given",
    [{"preprocess": "a:b"}, {"patch": (8, 8, 8)}, {"val": "scans"}, {"task": "segmentation"}],
    ids=lambda given: next(iter(given)),
)
def test_what_the_bundle_decides_is_refused(given: dict[str, Any], made: Any) -> None:
    with pytest.raises(ConfigError, match="with a bundle of MONAI"):
        fptq.quantize(made.source, calibration=str(made.scans), recipe=Recipe(trust=True, **given))


def test_prediction_needs_trust_and_a_bundle(out: Path, made: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can execute code"):
        fptq.bundle_predictor(out)
    with pytest.raises(ConfigError, match="has no monai_bundle"):
        fptq.bundle_predictor(tmp_path)
    done = run("predict", out, made.scans, "-o", tmp_path / "masks", "--trust", "--no-mirroring")
    assert done.exit_code == 2
    assert "use_mirroring" in done.output or "mirroring" in done.output


def test_a_folder_of_that_name_that_fptq_did_not_write_is_left_alone(made: Any, tmp_path: Path) -> None:
    (tmp_path / "monai_bundle").mkdir()
    (tmp_path / "monai_bundle" / "mine.txt").touch()
    forget_bundle(tmp_path)
    assert (tmp_path / "monai_bundle" / "mine.txt").exists()
    keep_bundle(find_bundle(made.source), tmp_path / "other")
    forget_bundle(tmp_path / "other")
    assert not (tmp_path / "other" / "monai_bundle").exists()
