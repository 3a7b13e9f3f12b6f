"""A small bundle of MONAI, written as the Model Zoo's are: a trained U-Net, transforms and an inferer; and scans."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [8, 16, 32],
    "strides": [2, 2],
    "num_res_units": 1,
    "norm": "batch",
}
CONFIG: dict[str, Any] = {
    "imports": ["$import os"],
    "bundle_root": ".",
    "image_key": "image",
    "device": "$torch.device('cpu')",
    "network_def": NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "@image_key",
                "a_min": 0,
                "a_max": 100,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            },
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "@image_key",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"},
        ],
    },
    # What asks for pytorch-ignite, which is not needed here.
    "handlers": [{"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"}],
}
METADATA: dict[str, Any] = {
    "version": "0.1.0",
    "monai_version": "1.6.1",
    "network_data_format": {
        "inputs": {"image": {"type": "image", "num_channels": 1, "spatial_shape": [16, 16, 16], "dtype": "float32"}},
        "outputs": {"pred": {"type": "image", "num_channels": 3, "spatial_shape": [16, 16, 16], "dtype": "float32"}},
    },
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A bundle and scans for it."""

    folder: Path
    scans: Path

    @property
    def source(self) -> str:
        return f"monai:{self.folder}"


def write_bundle(folder: Path, *, config: dict[str, Any] | None = None, metadata: object = None) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config or CONFIG))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata or METADATA))
    return folder


def write_scan(path: Path, generator: np.random.Generator) -> None:
    """A ball of two shells in noise, in another orientation and spacing than the network's."""
    import nibabel

    shape = (30, 34, 26)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    radius = np.sqrt(np.square(grid - generator.uniform(-0.2, 0.2, (3, 1, 1, 1))).sum(0))
    volume = np.where(radius < 0.35, 90.0, np.where(radius < 0.7, 55.0, 15.0)) + generator.normal(0, 5, shape)
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.diag([-1.2, 1.2, 1.8, 1.0])), path)


def trained() -> Any:
    """A U-Net that tells dark, grey and bright."""
    import torch
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    network = UNet(**{name: value for name, value in NETWORK.items() if name != "_target_"})
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        coarse = torch.rand(2, 1, 4, 4, 4)
        image = torch.nn.functional.interpolate(coarse, (16, 16, 16), mode="trilinear")
        labels = (image[:, 0] > 0.35).long() + (image[:, 0] > 0.7).long()
        noisy = image + 0.05 * torch.randn_like(image)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(noisy), labels).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    import torch

    root = tmp_path_factory.mktemp("monai")
    folder = write_bundle(root / "balls")
    torch.save(trained().state_dict(), folder / "models" / "model.pt")
    (root / "scans").mkdir()
    generator = np.random.default_rng(0)
    for index in range(3):
        write_scan(root / "scans" / f"case_{index}.nii.gz", generator)
    return Made(folder=folder, scans=root / "scans")


@pytest.fixture
def changed(made: Made, tmp_path: Path) -> Callable[..., str]:
    """The bundle with its config, its metadata or its weights changed, as a source."""

    def change(
        config: Callable[[dict[str, Any]], object] | None = None,
        metadata: Callable[[dict[str, Any]], object] | None = None,
        weights: Callable[[dict[str, Any]], object] | None = None,
    ) -> str:
        import torch

        documents = copy.deepcopy(CONFIG), copy.deepcopy(METADATA)
        for document, wanted in zip(documents, (config, metadata), strict=True):
            if wanted is not None:
                wanted(document)
        folder = write_bundle(tmp_path / "changed", config=documents[0], metadata=documents[1])
        state = torch.load(made.folder / "models" / "model.pt", weights_only=True)
        found = weights(state) if weights is not None else state
        torch.save(found if found is not None else state, folder / "models" / "model.pt")
        return f"monai:{folder}"

    return change
