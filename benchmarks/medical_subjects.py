"""Four networks for 3-D segmentation, and the one head whose lobes they learn.

The head is Colin27, labelled with groups of the AAL's regions. Copies to train on, to calibrate on and to test on
differ in how they are turned, scaled, shaded and noisy only (`nnunet_colin.copies`): what a network scores on the test
copies says nothing about other heads. It says what int8 and few bits take away from a trained network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from fptq.tasks.cases import Case
from fptq.types import Array
from layout import HERE
from nnunet_colin import copies

SIDE = 64
"""Voxels of a window along each axis, 2 mm each."""
TRAINED_ON, CALIBRATED_ON, TESTED_ON = range(16), range(100, 108), range(200, 206)
"""Seeds of the copies."""
WINDOWS = 4
"""Calibration windows of each copy."""
GROUPS: Mapping[str, tuple[range, ...]] = {
    "frontal": (range(1, 29),),
    "limbic": (range(29, 43),),
    "occipital": (range(43, 57),),
    "parietal": (range(57, 71),),
    "deep nuclei": (range(71, 79),),
    "temporal": (range(79, 91),),
    "cerebellum": (range(91, 117),),
}
"""The AAL's numbers in each class; limbic is insula, cingulate gyrus, hippocampus and its neighbours."""
CLASSES = ("white matter and fluid", *GROUPS)


@dataclass(frozen=True, kw_only=True)
class Network:
    """One architecture.

    Attributes:
        title: As in the tables.
        build: Makes it, with random weights.
        what: One line on its size.
        rate: Of learning, at its highest.
        steps: Batches of its training.
    """

    title: str
    build: Callable[[], nn.Module]
    what: str
    rate: float = 2e-3
    steps: int = 500


def unet() -> nn.Module:
    """MONAI's residual U-Net with the widths and the batch norm of the published table's."""
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1 + len(CLASSES),
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm="BATCH",
        act="RELU",
    )


def transunet() -> nn.Module:
    """The example's, on MONAI's blocks: a quarter of the published width, a third of its depth."""
    sys.path.append(str(HERE.parent / "examples"))
    from transunet import Size, TransUNet

    size = Size(
        base=16,
        units=(1, 1, 1),
        hidden=192,
        mlp=768,
        heads=6,
        layers=4,
        decoder=(128, 64, 32, 16, 16),
        upsample="deconv",
    )
    return TransUNet(3, in_channels=1, out_channels=1 + len(CLASSES), image_size=SIDE, size=size)


def nnunet() -> nn.Module:
    """nnunetv2's own class, as it plans 3-D networks, with a quarter of the width and one stage more."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    features = (8, 16, 32, 64, 128, 256)
    return PlainConvUNet(
        input_channels=1,
        n_stages=len(features),
        features_per_stage=features,
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=(1, *[2] * (len(features) - 1)),
        n_conv_per_stage=2,
        num_classes=1 + len(CLASSES),
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


def swinunetr() -> nn.Module:
    """MONAI's with a quarter of the published width; attention within 4^3 tokens, not 7^3: it trains in minutes."""
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=1 + len(CLASSES), feature_size=12, window_size=4)


NETWORKS: Mapping[str, Network] = {
    "unet": Network(title="U-Net", build=unet, what="5 stages of 16 to 256, batch norm"),
    "transunet": Network(
        title="TransUNet", build=transunet, what="residual stem of 16, ViT of 4 layers of 192", steps=400
    ),
    "nnunet": Network(
        title="nnU-Net", build=nnunet, what="6 stages of 8 to 256, instance norm, LeakyReLU", rate=2.5e-3, steps=900
    ),
    "swinunetr": Network(title="SwinUNETR", build=swinunetr, what="feature size 12, attention in 4^3"),
}


def lobes(brain: Array, regions: Array) -> Array:
    """The classes of `CLASSES`, from 1."""
    table = np.zeros(256, np.uint8)
    for label, groups in enumerate(GROUPS.values(), start=2):
        for group in groups:
            table[list(group)] = label
    return np.where((brain > 0) & (regions == 0), 1, table[regions])


@cache
def volumes(seeds: range) -> tuple[Case, ...]:
    """Copies of the head, each with its own mean 0 and deviation 1."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    return tuple(
        Case(name=name, volume=(image - image.mean()) / image.std(), affine=affine, label=label)
        for name, image, label in copies(seeds, lobes)
    )


def calibration() -> list[dict[str, Array]]:
    """Windows of the calibration copies, around voxels of any class, by the network's input name."""
    generator = np.random.default_rng(0)
    cases = [case for case in volumes(CALIBRATED_ON) for _ in range(WINDOWS)]
    return [{"image": window(case, generator)[0][None]} for case in cases]


def batch(generator: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Windows of training copies: images `f32[N, 1, *S]` and classes `i64[N, 1, *S]`."""
    cases = volumes(TRAINED_ON)
    chosen = generator.choice(len(cases), size, replace=False)
    images, labels = zip(*(window(cases[index], generator) for index in chosen), strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels).astype(np.int64))


def window(case: Case, generator: np.random.Generator) -> tuple[Array, Array]:
    """Image `f32[1, *S]` and labels `u8[1, *S]` around a voxel of a class that is drawn first: small ones count too."""
    assert case.label is not None
    places = np.argwhere(case.label == generator.integers(1, 1 + len(CLASSES)))
    centre = places[generator.integers(len(places))]
    first = np.clip(centre - SIDE // 2, 0, np.array(case.label.shape) - SIDE)
    box = tuple(slice(start, start + SIDE) for start in first)
    return case.volume[box][None], case.label[box][None]
