"""Tiny networks of nnU-Net, planned by hand and saved by nnunetv2's own trainer, and images for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHANNELS = ("T1", "T2")


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A results folder, images, and what made them.

    Attributes:
        results: `nnUNetTrainer__nnUNetPlans__CONFIGURATION`.
        images: Two cases of two channels.
    """

    results: Path
    images: Path

    @property
    def source(self) -> str:
        return f"nnunet:{self.results}"

    def predictor(self, fold: str = "0") -> Any:
        """nnU-Net's own, with the float network."""
        from fptq.graph.nnunet import find_folds, open_fold
        from fptq.graph.trust import Trust

        return open_fold(find_folds(self.source), fold, trust=Trust.SOURCE)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What to train.

    Attributes:
        patch: Its size.
        folds: How many, each its own network.
        spacing: Of the images [mm].
        labels: Names of the foreground, and what counts as it.
        regions: Whether they overlap, and in which order they are painted.
        previous_stage: Of a cascade.
        steps: Of the optimiser.
    """

    patch: tuple[int, ...]
    folds: int = 1
    spacing: tuple[float, ...] = (1.0, 1.0, 1.1)
    labels: Mapping[str, int | list[int]] = field(default_factory=lambda: {"core": 1, "rim": 2})
    regions: tuple[int, ...] = ()
    previous_stage: str | None = None
    steps: int = 12

    @property
    def configuration(self) -> str:
        return "2d" if len(self.patch) == 2 else "3d_fullres"


KINDS = {
    "cube": Kind(patch=(16, 16, 16), folds=2),
    "thin": Kind(patch=(4, 16, 16), spacing=(3.0, 1.0, 1.0)),
    "2d": Kind(patch=(16, 16)),
    "cascade": Kind(patch=(16, 16, 16), previous_stage="3d_lowres", steps=0),
    "background": Kind(patch=(16, 16), labels={}, steps=0),
    "regions": Kind(patch=(16, 16), labels={"ball": [1, 2], "core": 1}, regions=(2, 1), steps=40),
}


def plans_of(kind: Kind) -> dict[str, Any]:
    """Plans as nnU-Net's planner writes them, of a network of two stages; thin slices are not convolved across."""
    patch, configuration = kind.patch, kind.configuration
    rank, thin = len(patch), len(patch) == 3 and patch[0] < 16
    kernel, stride = [1 if thin else 3, 3, 3][-rank:], [1 if thin else 2, 2, 2][-rank:]
    spacing = [3.0 if thin else 1.0, 1.0, 1.0][-rank:]
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [8, 16],
            "conv_op": f"torch.nn.modules.conv.Conv{rank}d",
            "kernel_sizes": [kernel, [3] * rank],
            "strides": [[1] * rank, stride],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{rank}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return {
        "dataset_name": "Dataset901_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [spacing[0], 1.0, 1.0],
        "original_median_shape_after_transp": [20, 24, 28],
        "image_reader_writer": "SimpleITKIO" if thin else "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): {} for i in range(len(CHANNELS))},
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch),
                "median_image_size_in_voxels": [20, 24, 28][-rank:],
                "spacing": spacing,
                "normalization_schemes": ["ZScoreNormalization"] * len(CHANNELS),
                "use_mask_for_norm": [False] * len(CHANNELS),
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": resampling,
                "architecture": architecture,
                "batch_dice": False,
                **({"previous_stage": kind.previous_stage} if kind.previous_stage else {}),
            }
        },
    }


def dataset_of(kind: Kind) -> dict[str, Any]:
    """`dataset.json`."""
    return {
        "channel_names": {str(i): name for i, name in enumerate(CHANNELS)},
        "labels": {"background": 0, **kind.labels},
        "numTraining": 4,
        "file_ending": ".nii.gz",
        **({"regions_class_order": list(kind.regions)} if kind.regions else {}),
    }


def train(root: Path, kind: Kind) -> Path:
    """nnunetv2's own trainer: it builds the network, learns for a few steps, and saves the checkpoint."""
    import torch

    os.environ |= {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    dataset = dataset_of(kind)
    plans = plans_of(kind)
    prepared = root / "nnUNet_preprocessed" / plans["dataset_name"] / f"nnUNetPlans_{kind.configuration}"
    prepared.mkdir(parents=True)
    (prepared / "case.b2nd").touch()  # the trainer wants to know the kind of its files
    for fold in range(kind.folds):
        torch.manual_seed(fold)
        given = {**plans, "continue_training": False}
        trainer = nnUNetTrainer(given, kind.configuration, fold, dataset, torch.device("cpu"))
        trainer.enable_deep_supervision = False
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        trainer.initialize()
        _learn(trainer, kind)
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    base = Path(trainer.output_folder_base)
    (base / "plans.json").write_text(json.dumps(plans))
    (base / "dataset.json").write_text(json.dumps(dataset))
    return base


def _learn(trainer: Any, kind: Kind) -> None:
    """Some of the trainer's own steps on balls in noise."""
    import torch

    generator = np.random.default_rng(0)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.05
    for _ in range(kind.steps):
        images, labels = zip(*(ball(generator, kind.patch) for _ in range(2)), strict=True)
        data = torch.from_numpy(np.stack(images))
        data = (data - data.mean()) / data.std()
        target = np.stack(labels)[:, None]
        if kind.regions:
            target = np.concatenate([np.isin(target, region) for region in kind.labels.values()], axis=1)
        trainer.train_step({"data": data, "target": torch.from_numpy(target).float()})


def ball(generator: np.random.Generator, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Two channels `f32[2, *S]` of a bright ball with a rim in noise, and its labels `u8[*S]`."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    centre = generator.uniform(-0.3, 0.3, len(shape)).reshape(-1, *[1] * len(shape))
    radius = np.sqrt(np.square(grid - centre).sum(0))
    labels = np.where(radius < 0.4, 1, np.where(radius < 0.65, 2, 0)).astype(np.uint8)
    clean = np.stack([np.choose(labels, [20.0, 100.0, 60.0]), np.choose(labels, [30.0, 50.0, 90.0])])
    return (clean + generator.normal(0, 8, clean.shape)).astype(np.float32), labels


def write_images(
    folder: Path, *, spacing: Sequence[float] = (1.0, 1.0, 1.0), names: Sequence[str] = ("a", "b")
) -> Path:
    """Cases of two channels, larger than a patch."""
    import SimpleITK

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    for name in ("a", "b"):
        image, _ = ball(generator, (20, 24, 28))
        for channel, volume in enumerate(image):
            made = SimpleITK.GetImageFromArray(volume)
            made.SetSpacing([float(size) for size in reversed(spacing)])
            SimpleITK.WriteImage(made, str(folder / f"{name}_{channel:04d}.nii.gz"))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """A trained folder of a kind, made once."""
    made: dict[str, Tiny] = {}

    def get(kind: str) -> Tiny:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            results = train(root, KINDS[kind])
            images = write_images(root / "imagesTs", spacing=KINDS[kind].spacing)
            made[kind] = Tiny(results=results, images=images)
        return made[kind]

    return get
