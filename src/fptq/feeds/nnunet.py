"""Calibration patches as nnU-Net's own inference cuts them out of images: preprocessed, half of them on foreground."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fptq.errors import DataError
from fptq.feeds.patches import Cutter, check_finite, spread_patches
from fptq.feeds.scans import natural, unreadable
from fptq.types import Array

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


@dataclass(frozen=True, kw_only=True)
class ImageCase:
    """One case of an images folder.

    Attributes:
        name: Its identifier.
        files: One for each channel, in their order.
    """

    name: str
    files: tuple[Path, ...]


def find_image_cases(folder: str | Path, dataset: Mapping[str, Any]) -> tuple[ImageCase, ...]:
    """The cases `NAME_0000.nii.gz`, `NAME_0001.nii.gz`, ... of a folder, in natural order.

    Args:
        folder: Such as `imagesTs`.
        dataset: `dataset.json`, which names the channels and the file ending.

    Raises:
        DataError: There is no case, or one lacks a channel or has one too many.
    """
    folder, ending = Path(folder), str(dataset["file_ending"])
    channels = list((dataset.get("channel_names") or dataset.get("modality") or {}).values())
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder", rule="images of nnU-Net lie in one, as imagesTs", remedy="Name it")
    form = re.compile(rf"(?P<name>.+)_(?P<channel>\d{{4}}){re.escape(ending)}")
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir(), key=natural):
        if (match := form.fullmatch(path.name)) is not None:
            found.setdefault(match["name"], {})[int(match["channel"])] = path
    if not found:
        raise DataError(
            f"{folder} holds no image",
            rule=f"images are named as in training: CASE_0000{ending} for the first channel",
            remedy="Rename them, or convert them to the training data's file type",
        )
    for name, files in found.items():
        if sorted(files) != list(range(len(channels))):
            raise DataError(
                f"case {name} has channel {', '.join(f'{channel:04d}' for channel in sorted(files))}",
                rule=f"the network takes {len(channels)}, from 0000: {', '.join(map(str, channels))}",
                remedy=f"Give one file {name}_XXXX{ending} for each",
            )
    return tuple(ImageCase(name=name, files=tuple(files[i] for i in sorted(files))) for name, files in found.items())


def foreground_patches(
    predictor: nnUNetPredictor, cases: Sequence[ImageCase], *, count: int | None = None, seed: int = 0
) -> Iterator[Array]:
    """Patches `f32[1, C, *S]` of cases that nnU-Net preprocesses itself, as `spread_patches` cuts them.

    Args:
        predictor: nnU-Net's, with the float network.
        cases: Where to cut.
        count: How many patches; None: 32.
        seed: Of the places.

    Raises:
        DataError: A case cannot be read or preprocessed, or holds NaN or infinite voxels.
    """
    cutter = Cutter(
        size=tuple(predictor.configuration_manager.patch_size),
        segment=_segmenter(predictor),
        generator=np.random.default_rng(seed),
    )
    return spread_patches(cases, partial(preprocessed_case, predictor), cutter, count=count)


def preprocessed_case(predictor: nnUNetPredictor, case: ImageCase) -> Array:
    """A case `f32[C, X, Y, Z]` as nnU-Net's sliding window sees it: cropped, normalized, resampled, padded to a patch.

    Raises:
        DataError: It cannot be read or preprocessed, or holds NaN or infinite voxels.
    """
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    try:
        image, properties = plans.image_reader_writer_class().read_images([str(path) for path in case.files])
    except Exception as error:  # SimpleITK, nibabel and nnU-Net's assertions have no common base class
        raise unreadable(case.files[0], error) from error
    check_finite(image, case.name)
    try:
        preprocessor = configuration.preprocessor_class(verbose=False)
        image, _, _ = preprocessor.run_case_npy(image, None, properties, plans, configuration, predictor.dataset_json)
        padded = pad_nd_image(np.asarray(image, np.float32), configuration.patch_size, "constant", {"value": 0})
    except Exception as error:
        raise DataError(
            f"case {case.name} cannot be preprocessed by nnU-Net: {type(error).__name__}: {error}",
            remedy="Mend or drop it",
        ) from error
    check_finite(padded, case.name)
    return np.ascontiguousarray(padded)


def _segmenter(predictor: nnUNetPredictor) -> Callable[[Array], Array]:
    """The float network's labels of a patch."""
    import torch

    @torch.inference_mode()
    def segment(patch: Array) -> Array:
        logits = predictor.network(torch.from_numpy(patch[None]))[0]
        return np.asarray(predictor.label_manager.convert_logits_to_segmentation(logits))

    return segment
