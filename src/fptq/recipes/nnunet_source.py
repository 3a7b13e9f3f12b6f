"""A network of nnU-Net as what any other model is here: a module and calibration samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq.config import Recipe
from fptq.errors import ConfigError
from fptq.feeds.nnunet import find_image_cases, foreground_patches
from fptq.graph.nnunet import TrainedFolds, find_fold, open_fold
from fptq.graph.trust import Trust
from fptq.recipes.outside import Tool
from fptq.types import Array

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def open_nnunet(
    source: str, calibration: object, recipe: Recipe, *, validation: object = None
) -> tuple[Any, Iterator[Array]]:
    """One fold's module and its calibration patches, for whatever takes a module and samples.

    Args:
        source: As `find_fold` takes it.
        calibration: The folder of images.
        recipe: The options.
        validation: Patches that are prepared already, or none: files would be read without nnU-Net.

    Raises:
        FptqError: As for `quantize_nnunet`; also where several folds are meant.
    """
    if isinstance(validation, str | Path):
        raise NNUNET.decided("validation")
    trained = find_fold(source)
    predictor = open_trusted(trained, trained.folds[0], recipe)
    return predictor.network, calibration_patches(predictor, calibration, recipe)


def open_trusted(trained: TrainedFolds, fold: str, recipe: Recipe) -> nnUNetPredictor:
    """A fold, with the trust that the recipe gives.

    Raises:
        ModelError: There is none, or the files do not fit each other.
    """
    return open_fold(trained, fold, trust=Trust.given(recipe.trust))


NNUNET = Tool(
    network="a network of nnU-Net",
    pieces="patches",
    decides=("preprocess", "patch", "metric", "val", "labels"),
    rule="nnU-Net prepares images and cuts patches itself, and nnUNetv2_evaluate_folder scores label maps",
    remedy="Leave it out",
    scorer="nnUNetv2_evaluate_folder",
)


def calibration_patches(predictor: nnUNetPredictor, calibration: object, recipe: Recipe) -> Iterator[Array]:
    """The patches of an images folder, as many as the recipe says.

    Raises:
        ConfigError: It is no folder.
        DataError: An image is missing, unreadable or not finite.
    """
    if not isinstance(calibration, str | Path):
        raise ConfigError(
            f"calibration of type {type(calibration).__name__} for a network of nnU-Net",
            rule="nnU-Net reads and prepares images itself",
            remedy="Give the folder, such as imagesTs; quantize the module itself on patches of your own",
        )
    cases = find_image_cases(calibration, predictor.dataset_json)
    return foreground_patches(predictor, cases, count=recipe.samples, seed=recipe.seed)
