"""An nnU-Net of the brain's tissues, trained by nnunetv2 itself on copies of one head.

Colin27 is the one head with labels that a public package holds, so every case is a copy of it: turned, scaled, with a
bias field and noise. Training, calibration and test copies differ in these only; what the network scores on the test
copies says nothing about other heads. It serves to compare predictions of one network with each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fptq.demo.assets import fetch
from fptq.types import Array

NAME, CONFIGURATION = "Dataset927_Colin", "3d_fullres"
LABELS = {"background": 0, "white matter and fluid": 1, "grey matter": 2}
_SPACING = 2.0
"""Of the copies [mm]."""
PARTS = {"imagesTr": range(10), "imagesCal": range(100, 104), "imagesTs": range(200, 202)}
"""Seeds of the copies to train on, to calibrate on and to test on."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how wide: what two cores can do in some minutes.

    Attributes:
        patch: Voxels.
        features: By stage.
        epochs: Of `iterations` each.
        iterations: Batches of two patches.
        rate: Of learning, at the beginning; nnU-Net's own is for a quarter of a million iterations.
    """

    patch: tuple[int, int, int] = (48, 48, 48)
    features: tuple[int, ...] = (16, 32, 64, 128)
    epochs: int = 10
    iterations: int = 50
    rate: float = 0.02


def trained(root: Path, training: Training = Training()) -> Path:
    """The results folder, `nnUNetTrainer__nnUNetPlans__3d_fullres`; what is there already is not made again."""
    os.environ |= {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2", "nnUNet_compile": "false"}
    results = root / "nnUNet_results" / NAME / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
    if not (results / "fold_0" / "checkpoint_final.pth").exists():
        write_dataset(root / "nnUNet_raw" / NAME)
        _plan(root, training)
        _train(root, training)
    return results


def images(root: Path, part: str) -> Path:
    """A folder of images: a key of `PARTS`."""
    return root / "nnUNet_raw" / NAME / part


def write_dataset(folder: Path) -> None:
    """The copies as nnU-Net wants them."""
    for part, seeds in PARTS.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "labelsTr").mkdir(exist_ok=True)
        for name, image, label in copies(seeds):
            _write(folder / part / f"{name}_0000.nii.gz", image)
            if part == "imagesTr":
                _write(folder / "labelsTr" / f"{name}.nii.gz", label)
    about = {
        "channel_names": {"0": "T1"},
        "labels": LABELS,
        "numTraining": len(PARTS["imagesTr"]),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about, indent=1))


def tissues(brain: Array, regions: Array) -> Array:
    """The AAL's regions, and the rest of what FSL BET calls brain."""
    labels = np.where(brain > 0, 1, 0)
    labels[regions > 0] = 2
    return labels


def copies(seeds: range, labelled: Callable[[Array, Array], Array] = tissues) -> Iterator[tuple[str, Array, Array]]:
    """Name, image `f32[X, Y, Z]` and labels `u8[X, Y, Z]` of copies of the head, 2 mm.

    Args:
        seeds: One for each copy.
        labelled: Classes from the brain, which is 0 elsewhere, and the numbers of the AAL's regions.
    """
    head, brain, regions = _head()
    labels = labelled(brain, regions).astype(np.uint8)
    for seed in seeds:
        generator = np.random.default_rng(seed)
        turn = Rotation.from_euler("xyz", generator.uniform(-12, 12, 3), degrees=True).as_matrix()
        matrix = turn @ np.diag(generator.uniform(0.92, 1.08, 3)) * _SPACING
        shape = np.ceil(np.array(head.shape) / _SPACING).astype(int)
        offset = (np.array(head.shape) - 1) / 2 + generator.uniform(-6, 6, 3) - matrix @ ((shape - 1) / 2)
        moved = ndimage.affine_transform(head, matrix, offset, output_shape=tuple(shape), order=1)
        label = ndimage.affine_transform(labels, matrix, offset, output_shape=tuple(shape), order=0)
        field = ndimage.zoom(generator.uniform(-0.25, 0.25, (3, 3, 3)), shape / 3, order=2)
        sigma = generator.uniform(0, 0.03) * np.percentile(moved, 99.5)
        noisy = moved * np.exp(field) + generator.normal(0, sigma, moved.shape)
        yield f"colin_{seed:03d}", np.maximum(noisy, 0).astype(np.float32), label


def _head() -> tuple[Array, Array, Array]:
    """Colin27 `f32[X, Y, Z]`, what FSL BET left of it, and its regions."""
    head, brain, regions = (
        np.asarray(nibabel.load(fetch(name)).dataobj) for name in ("colin27", "colin27-brain", "colin27-regions")
    )
    return head.astype(np.float32), brain, regions


def _write(path: Path, volume: Array) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([_SPACING, _SPACING, _SPACING, 1.0])), path)


def _plan(root: Path, training: Training) -> None:
    """nnunetv2's own fingerprint, plans and preprocessing; of the plans the patch and the network are made smaller."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    number = int(NAME[7:10])
    extract_fingerprint_dataset(number, num_processes=2)
    plan_experiment_dataset(number)
    path = root / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    configuration = plans["configurations"][CONFIGURATION]
    configuration |= {"patch_size": list(training.patch), "batch_size": 2}
    stages = len(training.features)
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(training.features),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    path.write_text(json.dumps(plans, indent=1))
    manager = PlansManager(str(path)).get_configuration(CONFIGURATION)
    manager.preprocessor_class(verbose=False).run(number, CONFIGURATION, "nnUNetPlans", num_processes=2)


def _train(root: Path, training: Training) -> None:
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.manual_seed(0)
    trainer = get_trainer_from_args(NAME, CONFIGURATION, 0, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = training.epochs, training.iterations
    trainer.num_val_iterations_per_epoch, trainer.initial_lr = 2, training.rate
    trainer.run_training()


if __name__ == "__main__":
    from layout import HERE

    print(trained(HERE / "results" / "nnunet"))
