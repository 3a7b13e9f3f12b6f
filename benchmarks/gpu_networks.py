"""The networks of the GPU benchmark: MONAI's, with seeded weights, small enough to travel to another machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from fptq.types import Feeds

SIDE = 96
"""Voxels along each axis."""


def _basic_unet() -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(spatial_dims=3, in_channels=1, out_channels=4, norm="batch")


def _dynunet() -> nn.Module:
    from monai.networks.nets import DynUNet

    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=4,
        kernel_size=[3] * 5,
        strides=[1, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 4,
        filters=[32, 64, 128, 256, 320],
        res_block=True,
    )


def _swin_unetr() -> nn.Module:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=4, feature_size=24, use_checkpoint=False)


BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    "basicunet": _basic_unet,
    "dynunet": _dynunet,
    "swinunetr": _swin_unetr,
}


def built(name: str) -> nn.Module:
    """A network with seeded weights, in eval mode, its batch statistics those of a few volumes."""
    torch.manual_seed(0)
    module = BUILDERS[name]()
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms:
        with torch.no_grad():
            for feeds in volumes(3, seed=7, side=SIDE // 2):
                module.train()(torch.from_numpy(feeds["x"]))
    return module.eval()


def volumes(count: int, *, seed: int, side: int = SIDE) -> Iterator[Feeds]:
    """Volumes with structure at three scales, of zero mean and unit variance, as preprocessing leaves scans."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        volume = np.zeros((side,) * 3, np.float32)
        for size in (side, side // 4, side // 16):
            coarse = rng.standard_normal((side // size,) * 3).astype(np.float32) if size < side else None
            part = rng.standard_normal((side,) * 3) if coarse is None else np.kron(coarse, np.ones((size,) * 3))
            volume += part[:side, :side, :side].astype(np.float32)
        yield {"x": ((volume - volume.mean()) / volume.std())[None, None]}
