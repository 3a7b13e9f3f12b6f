"""Networks of nnU-Net: each fold quantized on patches that nnU-Net makes, and its own predictor on an engine."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fptq.config import Recipe
from fptq.errors import OutputError
from fptq.graph.nnunet import DATASET, PLANS, TrainedFolds, find_folds
from fptq.recipes.nnunet_source import NNUNET, calibration_patches, open_trusted
from fptq.recipes.quantize import quantize
from fptq.recipes.result import Result
from fptq.types import Array, Progress, silent

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

FACTS_FILE = "nnunet.json"
FORMAT = "fptq-nnunet/1"


@dataclass(frozen=True, kw_only=True)
class FoldResults:
    """The folds of one nnU-Net configuration, quantized.

    Attributes:
        trained: Where they come from.
        results: One for each fold, in their order.
        facts: What nnU-Net keeps in the checkpoint and its predictor needs: configuration, trainer, mirroring axes.
    """

    trained: TrainedFolds
    results: tuple[Result, ...]
    facts: dict[str, Any]

    def save(self, folder: str | Path) -> Path:
        """Write `fold_*/`, each as of any network, with nnU-Net's plans and dataset beside them.

        Raises:
            OutputError: The folder cannot be written.
        """
        folder = Path(folder)
        (folder / FACTS_FILE).unlink(missing_ok=True)  # comes last: a folder with it is complete
        for fold, result in zip(self.trained.folds, self.results, strict=True):
            result.save(folder / f"fold_{fold}")
        try:
            for name in (PLANS, DATASET):
                shutil.copyfile(self.trained.folder / name, folder / name)
            (folder / FACTS_FILE).write_text(json.dumps(self.facts, indent=1), encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"{folder} could not be written: {error}", remedy="Check the free space and the permissions"
            ) from error
        return folder


def quantize_nnunet(
    source: str,
    *,
    calibration: str | Path,
    recipe: Recipe | str | None = None,
    progress: Progress = silent,
    command: str = "",
    **options: object,
) -> FoldResults:
    """Quantize the folds of a trained nnU-Net v2 on patches of unlabelled images.

    Args:
        source: `nnunet:RESULTS_FOLDER`, `nnunet:RESULTS_FOLDER:FOLD` or `nnunet:RESULTS_FOLDER:FOLD:CHECKPOINT.pth`.
        calibration: A folder of images, named as for `nnUNetv2_predict`.
        recipe: As for `quantize`; `trust` must be on, for a checkpoint executes code when it is read.
        progress: Told how it advances.
        command: What the user typed, for the reports.
        **options: Options that override the recipe's, by its field names.

    Returns:
        A result for each fold; `save` writes the folder that `fptq predict` and `nnunet_predictor` take.

    Raises:
        FptqError: Something is wrong with the folder, the images, the options or the engine.
    """
    recipe = NNUNET.checked(Recipe.named(recipe).merged(**options))
    trained = find_folds(source)
    first = open_trusted(trained, trained.folds[0], recipe)
    results: list[Result] = []
    with _kept_patches(first, calibration, recipe) as patches:
        for fold in trained.folds:
            predictor = first if fold == trained.folds[0] else open_trusted(trained, fold, recipe)
            made = quantize(predictor.network, calibration=patches, recipe=recipe, progress=progress, command=command)
            results.append(made)
    return FoldResults(trained=trained, results=tuple(results), facts=facts_of(first, trained))


def facts_of(predictor: nnUNetPredictor, trained: TrainedFolds) -> dict[str, Any]:
    """What `nnunet.json` says."""
    axes = predictor.allowed_mirroring_axes
    plans = predictor.plans_manager
    name = next(
        name
        for name in plans.available_configurations
        if plans.get_configuration(name).configuration == predictor.configuration_manager.configuration
    )
    return {
        "format": FORMAT,
        "source": str(trained.folder.resolve()),
        "checkpoint": trained.checkpoint,
        "folds": list(trained.folds),
        "configuration": name,
        "trainer": predictor.trainer_name,
        "mirroring_axes": None if axes is None else [int(axis) for axis in axes],
    }


@contextmanager
def _kept_patches(predictor: nnUNetPredictor, calibration: object, recipe: Recipe) -> Iterator[Sequence[Array]]:
    """The patches in files: all folds are calibrated on the same ones, which may not fit in memory."""
    with tempfile.TemporaryDirectory(prefix="fptq-nnunet-") as folder:
        paths: list[Path] = []
        for patch in calibration_patches(predictor, calibration, recipe):
            paths.append(Path(folder) / f"{len(paths)}.npy")
            np.save(paths[-1], patch)
        yield _Files(tuple(paths))


class _Files(Sequence[Array]):
    """Arrays in files, read when they are asked for."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return np.load(self._paths[index], allow_pickle=False)
