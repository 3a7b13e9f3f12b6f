"""TransUNet on MONAI's blocks, for images and for volumes; a small one, quantized on noise.

J. Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", 2021,
https://arxiv.org/abs/2102.04306: a ResNet finds features at a sixteenth of the image's size, a ViT relates each of
them to all others, and a U-Net's decoder brings them back, with skips from the ResNet at 1/2, 1/4 and 1/8 of the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.networks.blocks import Convolution, UpSample
from monai.networks.nets import ViT
from monai.networks.nets.resnet import ResNetBottleneck
from torch import Tensor, nn

import fptq

STRIDE = 16
"""Voxels of the image along each axis for one token of the transformer."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a TransUNet is.

    Attributes:
        base: Channels of the stem; the ResNet's stages have 4, 8 and 16 times as many.
        units: Residual units in each of these stages.
        hidden: Width of a token.
        mlp: Width inside a transformer block's MLP.
        heads: Attention heads.
        layers: Transformer blocks.
        decoder: Channels after the transformer, then after each of the four upsampling steps.
        norm: The ResNet's normalization, as MONAI names it.
        upsample: How the decoder doubles the size: MONAI's "nontrainable" (linear) or "deconv" (transposed).
    """

    base: int = 64
    units: tuple[int, int, int] = (3, 4, 9)
    hidden: int = 768
    mlp: int = 3072
    heads: int = 12
    layers: int = 12
    decoder: tuple[int, int, int, int, int] = (512, 256, 128, 64, 16)
    norm: str | tuple[str, dict[str, int]] = "batch"
    upsample: str = "nontrainable"


PUBLISHED = Size(norm=("group", {"num_groups": 32}))
"""R50-ViT-B/16, for images of 224 x 224: the paper's, but for the weights that its ResNet standardizes when it runs."""

VOLUMES = Size(base=16, decoder=(128, 64, 32, 16, 16), upsample="deconv")
"""For volumes of 96 x 96 x 96: base 16 and ViT-B as in the MedPTQ study, https://arxiv.org/abs/2501.17343; the rest,
which the study does not state, is the paper's with a third axis and a quarter of the channels."""

SMALL = Size(base=8, units=(1, 1, 1), hidden=64, mlp=128, heads=4, layers=2, decoder=(64, 32, 16, 8, 8))
"""For a CPU, and for tests."""


class TransUNet(nn.Module):
    """Logits of each voxel: `f32[N, in_channels, *image_size]` to `f32[N, out_channels, *image_size]`.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Of the image.
        out_channels: Classes, the background too.
        image_size: The one size that it takes, along every axis or of each: multiples of 16, for each token has a
            position of its own.
        size: Its widths and depths.

    Raises:
        ValueError: The image's size is no multiple of 16, or has another number of axes.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        image_size: int | Sequence[int],
        size: Size = PUBLISHED,
    ) -> None:
        super().__init__()
        sides = [image_size] * spatial_dims if isinstance(image_size, int) else list(image_size)
        if len(sides) != spatial_dims or any(side % STRIDE for side in sides):
            raise ValueError(f"image size {sides}: {spatial_dims} multiples of {STRIDE} are needed, one for each token")
        self.encoder = Encoder(spatial_dims, in_channels, size)
        # Patches of one feature each: the ResNet has made them small already.
        self.transformer = ViT(
            in_channels=self.encoder.channels[-1],
            img_size=[side // STRIDE for side in sides],
            patch_size=1,
            hidden_size=size.hidden,
            mlp_dim=size.mlp,
            num_layers=size.layers,
            num_heads=size.heads,
            spatial_dims=spatial_dims,
            qkv_bias=True,
        )
        self.decoder = Decoder(spatial_dims, self.encoder.channels[:-1], size)
        self.head = Convolution(spatial_dims, size.decoder[-1], out_channels, conv_only=True)

    def forward(self, image: Tensor) -> Tensor:
        *skips, features = self.encoder(image)
        tokens, _ = self.transformer(features)  # [N, *S / 16, hidden], the spatial axes in one
        features = tokens.transpose(1, 2).unflatten(2, features.shape[2:])
        return self.head(self.decoder(features, skips))


class Encoder(nn.Module):
    """The ResNet: `f32[N, C, *S]` to features at a half, a quarter, an eighth and a sixteenth of the size."""

    def __init__(self, spatial_dims: int, in_channels: int, size: Size) -> None:
        super().__init__()
        base, expansion = size.base, ResNetBottleneck.expansion
        widths = [base, 2 * base, 4 * base]
        self.channels = [base, *(expansion * width for width in widths)]
        self.stem = Convolution(
            spatial_dims, in_channels, base, kernel_size=7, strides=2, bias=False, norm=size.norm, act="relu"
        )
        pool = nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d
        self.pool = pool(kernel_size=3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            _stage(spatial_dims, before, width, units, stride=stride, norm=size.norm)
            for before, width, units, stride in zip(self.channels, widths, size.units, (1, 2, 2), strict=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        found = [self.stem(image)]
        features = self.pool(found[0])
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        return found


class Decoder(nn.Module):
    """The cascaded upsampler: `f32[N, hidden, *S / 16]` and the skips to `f32[N, decoder[-1], *S]`."""

    def __init__(self, spatial_dims: int, skips: Sequence[int], size: Size) -> None:
        super().__init__()
        first, *widths = size.decoder
        self.first = _conv_norm_relu(spatial_dims, size.hidden, first)
        before = [first, *widths]
        self.up = nn.ModuleList(
            UpSample(spatial_dims, width, width, mode=size.upsample, pre_conv=None) for width in before[:-1]
        )
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                _conv_norm_relu(spatial_dims, width_before + skip, width),
                _conv_norm_relu(spatial_dims, width, width),
            )
            for width_before, skip, width in zip(before, (*reversed(skips), 0), widths, strict=False)
        )

    def forward(self, features: Tensor, skips: Sequence[Tensor]) -> Tensor:
        features = self.first(features)
        # The last step, to the image's own size, has no skip.
        for up, convolutions, skip in zip(self.up, self.convolutions, (*reversed(skips), None), strict=True):
            features = up(features)
            features = convolutions(features if skip is None else torch.cat((features, skip), dim=1))
        return features


def _stage(spatial_dims: int, before: int, width: int, units: int, *, stride: int, norm: object) -> nn.Sequential:
    """Residual units, the first of which has the stride and a convolution on its short cut."""
    after = ResNetBottleneck.expansion * width
    shortcut = Convolution(
        spatial_dims, before, after, kernel_size=1, strides=stride, bias=False, adn_ordering="N", norm=norm
    )
    first = ResNetBottleneck(before, width, spatial_dims, stride=stride, downsample=shortcut, norm=norm)
    return nn.Sequential(first, *(ResNetBottleneck(after, width, spatial_dims, norm=norm) for _ in range(units - 1)))


def _conv_norm_relu(spatial_dims: int, before: int, after: int) -> nn.Module:
    return Convolution(spatial_dims, before, after, bias=False, norm="batch", act="relu")


def main() -> None:
    torch.manual_seed(0)
    net = TransUNet(2, in_channels=1, out_channels=4, image_size=64, size=SMALL).eval()
    images = [torch.randn(1, 1, 64, 64) for _ in range(4)]
    # A toy is too small to time; for a real network leave the gate on, and the recipe at "auto".
    options = {"engine": "onnxruntime", "gate": "off", "recipe": "fast", "dynamic": "none"}
    result = fptq.quantize(net, calibration=images, **options)
    print(f"SQNR {result.report.agreement.sqnr_db:.1f} dB, {result.report.compression:.2f}x smaller")


if __name__ == "__main__":
    main()
