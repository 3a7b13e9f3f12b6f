"""Results of nnU-Net v2: which folds a folder holds, and the trained network of one, opened by nnunetv2's own code."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fptq.errors import MissingExtra, ModelError, in_one_line
from fptq.graph.trust import Trust
from fptq.types import Array

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

PREFIX = "nnunet:"
PLANS, DATASET = "plans.json", "dataset.json"

_FORM = "nnunet:RESULTS_FOLDER, nnunet:RESULTS_FOLDER:FOLD or nnunet:RESULTS_FOLDER:FOLD:CHECKPOINT.pth"
_PARTS = re.compile(r"(?P<folder>.+?)(:(?P<fold>all|\d+)(:(?P<checkpoint>[^:/\\]+\.pth))?)?")
_OLD = ("plans.pkl", "fold_*/model_*.model", "fold_*/model_*.model.pkl")
PACKAGES = ("nnunetv2", "dynamic-network-architectures", "batchgenerators", "batchgeneratorsv2", "acvl-utils")
"""nnU-Net and what its authors publish beside it."""
EXTRA = "nnunet"
"""The extra of fptq with what these need."""
INSTALL = f"pip install --no-deps {' '.join(PACKAGES)}"
"""What gets them; an extra could not: their own requirements take gigabytes that its U-Nets do not need."""


@dataclass(frozen=True, kw_only=True)
class TrainedFolds:
    """A results folder of nnU-Net v2, `TRAINER__PLANS__CONFIGURATION`, and the folds of it that are meant.

    Attributes:
        folder: It holds `plans.json`, `dataset.json` and `fold_*/`.
        folds: "0", "1", ... or "all".
        checkpoint: Name of the checkpoint in each.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoint: str

    def __str__(self) -> str:
        return f"{self.folder} (fold {', '.join(self.folds)})"


def names_nnunet(source: object) -> bool:
    """Whether a model is named as a result of nnU-Net.

    >>> names_nnunet("nnunet:results/nnUNetTrainer__nnUNetPlans__3d_fullres:0"), names_nnunet("net.onnx")
    (True, False)
    """
    return isinstance(source, str) and source.startswith(PREFIX)


def find_folds(source: str) -> TrainedFolds:
    """The folds that a text of the form `nnunet:FOLDER[:FOLD[:CHECKPOINT]]` names; without a fold all of 0, 1, ...

    Nothing is loaded.

    Raises:
        ModelError: The folder is not one of nnU-Net v2, or a fold or a checkpoint is missing.
    """
    parts = _PARTS.fullmatch(source.removeprefix(PREFIX))
    if parts is None:
        raise ModelError(f"{source!r} names no folder", rule=f"the form is {_FORM}")
    folder, checkpoint = Path(parts["folder"]).expanduser(), parts["checkpoint"] or "checkpoint_final.pth"
    _check_folder(folder)
    there = sorted(path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir())
    if parts["fold"] is not None:
        folds: tuple[str, ...] = (parts["fold"],)
    else:
        trained = [fold for fold in there if (folder / f"fold_{fold}" / checkpoint).is_file()]
        folds = tuple(sorted((fold for fold in trained if fold != "all"), key=int)) or tuple(trained)
    _check_checkpoints(folder, folds or tuple(there), checkpoint, there=there)
    return TrainedFolds(folder=folder, folds=folds, checkpoint=checkpoint)


def find_fold(source: str) -> TrainedFolds:
    """`find_folds` where one is meant.

    Raises:
        ModelError: As there, or several are meant.
    """
    trained = find_folds(source)
    if len(trained.folds) != 1:
        raise ModelError(
            f"{trained.folder} holds {len(trained.folds)} folds",
            rule="this looks at one network",
            remedy=f"Name one: {PREFIX}{trained.folder}:{trained.folds[0]}; fptq.quantize_nnunet takes all of them",
        )
    return trained


def open_fold(trained: TrainedFolds, fold: str, *, trust: Trust) -> nnUNetPredictor:
    """nnU-Net's own predictor with the float network of one fold, on the CPU, deep supervision off.

    Raises:
        ModelError: The checkpoint is not trusted, plans, dataset and checkpoint do not fit each other, or the network
            cannot be built.
        MissingExtra: nnunetv2 is not installed.
    """
    path = trained.folder / f"fold_{fold}" / trained.checkpoint
    trust.require(path, because="checkpoints of nnU-Net hold pickled parts")
    predictor = new_predictor()
    number = fold if fold == "all" else int(fold)
    try:
        with quiet():
            predictor.initialize_from_trained_model_folder(str(trained.folder), (number,), trained.checkpoint)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{trained.folder}: {error.name} is not installed",
            rule="nnU-Net looks for trainers beside nnUNetTrainer in all of its modules, and for networks in theirs",
            remedy=f"Install {error.name}, or set nnUNet_extTrainer to where the trainer is",
        ) from error
    except Exception as error:  # torch, pickle, KeyError, assertions: whatever does not fit
        raise ModelError(
            f"{path} cannot be opened: {in_one_line(error)}",
            rule=f"{PLANS}, {DATASET} and the checkpoint belong to one training",
            remedy="Take the three from the folder that nnU-Net wrote, untouched",
        ) from error
    _check_plans(predictor, trained.folder)
    # With nnUNet_compile set, nnU-Net wraps it in torch.compile, which torch.export does not take.
    predictor.network = getattr(predictor.network, "_orig_mod", predictor.network).eval()
    return predictor


def new_predictor(
    *, tile_step_size: float = 0.5, use_gaussian: bool = True, use_mirroring: bool = True
) -> nnUNetPredictor:
    """An empty predictor of nnU-Net on the CPU; the arguments are its own.

    Raises:
        MissingExtra: nnunetv2 is not installed.
    """
    try:
        with quiet():
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    except ModuleNotFoundError as error:
        package = (error.name or "nnunetv2").partition(".")[0]
        raise MissingExtra(package, extra=EXTRA, purpose="opening results of nnU-Net", then=INSTALL) from error
    import torch

    with quiet():
        return nnUNetPredictor(
            tile_step_size=tile_step_size,
            use_gaussian=use_gaussian,
            use_mirroring=use_mirroring,
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )


def random_patch(predictor: nnUNetPredictor) -> Array:
    """A patch `f32[1, C, *S]` of noise, of the size that the plans say."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    channels = determine_num_input_channels(plans, configuration, predictor.dataset_json)
    return np.random.default_rng(0).standard_normal((1, channels, *configuration.patch_size), np.float32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """nnU-Net prints what it does, and asks for folders that only training needs."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file of nnU-Net.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read: {error}", remedy="Take it from the folder that nnU-Net wrote"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}", rule="it is a JSON object")
    return found


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder", rule=f"the form is {_FORM}", remedy="Check the path")
    if any(any(folder.glob(pattern)) for pattern in _OLD) or any(folder.glob("*/plans.pkl")):
        raise ModelError(
            f"{folder} holds results of nnU-Net v1",
            rule="checkpoints of v2 are fold_*/checkpoint_final.pth, with plans.json and dataset.json",
            remedy="Train the network again with nnunetv2",
        )
    missing = [name for name in (PLANS, DATASET) if not (folder / name).is_file()]
    if missing:
        inner = sorted(path.parent.name for path in folder.glob(f"*/{PLANS}"))
        raise ModelError(
            f"{folder} has no {' and no '.join(missing)}",
            rule="a results folder of nnU-Net is TRAINER__PLANS__CONFIGURATION with both and fold_*",
            remedy=f"Name one inside it: {', '.join(inner)}" if inner else "Check the path",
        )


def _check_checkpoints(folder: Path, folds: tuple[str, ...], checkpoint: str, *, there: list[str]) -> None:
    if not folds:
        raise ModelError(f"{folder} has no fold_*", rule="a trained fold is a folder with a checkpoint in it")
    for fold in folds:
        if fold not in there:
            raise ModelError(f"{folder} has no fold {fold}", rule=f"it has {', '.join(there) or 'none'}")
        if (folder / f"fold_{fold}" / checkpoint).is_file():
            continue
        others = sorted(path.name for path in (folder / f"fold_{fold}").glob("*.pth"))
        raise ModelError(
            f"{folder / f'fold_{fold}'} has no {checkpoint}",
            rule="a fold is quantized from its checkpoint; the final one is written when training ends",
            remedy=f"Name another: {PREFIX}{folder}:{fold}:{others[0]}" if others else "Train this fold to its end",
        )


def _check_plans(predictor: nnUNetPredictor, folder: Path) -> None:
    if predictor.configuration_manager.previous_stage_name is not None:
        raise ModelError(
            f"{folder} is the second stage of a cascade",
            rule="its input holds the segmentation of the first stage, which calibration images lack",
            remedy="Quantize the first stage, or a configuration without one",
        )
    if "file_ending" not in predictor.dataset_json:
        raise ModelError(
            f"{folder / DATASET} names no file_ending",
            rule="images are found by it",
            remedy='Add one, such as ".nii.gz"',
        )
    if not predictor.label_manager.foreground_labels:
        raise ModelError(f"{folder / DATASET} has no label but the background", rule="a segmentation has at least one")
