"""Opening what nnunetv2 wrote, and cutting calibration patches as it would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fptq.errors import DataError, ModelError
from fptq.feeds.nnunet import find_image_cases, foreground_patches, preprocessed_case
from fptq.graph.load import LoadOptions, load
from fptq.graph.trust import Trust
from fptq.types import Array

pytestmark = [pytest.mark.engine("nnunetv2"), pytest.mark.engine("torch")]


@pytest.mark.parametrize(("kind", "shape"), [("cube", (16, 16, 16)), ("thin", (4, 16, 16)), ("2d", (16, 16))])
def test_patches_are_cut_from_what_nnunet_prepares(
    kind: str, shape: tuple[int, ...], tiny: Callable[[str], Any]
) -> None:
    predictor = tiny(kind).predictor()
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

    predictor = tiny("2d").predictor()
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
        ("dataset.json", lambda d: d.pop("file_ending"), "names no file_ending"),
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
    predictor = tiny("cube").predictor()
    cases = find_image_cases(tmp_path / "images", predictor.dataset_json)
    with pytest.raises(DataError, match=r"a_0000.nii.gz cannot be read"):
        list(foreground_patches(predictor, cases, count=2))
