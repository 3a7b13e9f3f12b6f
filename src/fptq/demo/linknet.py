"""The 3-D LinkNet of deepbet (Fisch et al. 2024, https://doi.org/10.1016/j.compbiomed.2024.108845) as plain modules.

Parameter names equal those of the published TorchScript files, so their weights load as they are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


def _normalized(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.InstanceNorm3d(channels), nn.ReLU())


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions around an additive shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv3d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.InstanceNorm3d(channels_out),
            nn.ReLU(),
            nn.Conv3d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.InstanceNorm3d(channels_out),
        )
        self.downsample: nn.Module | None = None
        if channels_in != channels_out or stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv3d(channels_in, channels_out, 1, stride, bias=False), nn.InstanceNorm3d(channels_out)
            )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """From `[N, Cin, *S]` to `[N, Cout, *S / stride]`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.act(self.double_conv(x) + shortcut)
        return result


class Down(nn.Module):
    """One level of the encoder."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels_in, channels_out, stride)
        self.block2 = ResidualBlock(channels_out, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From `[N, Cin, *S]` to `[N, Cout, *S / stride]`."""
        result: Tensor = self.block2(self.block1(x))
        return result


class Up(nn.Module):
    """One level of the decoder: a transposed convolution between two 1x1x1 convolutions."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        width = channels_in // 4
        self.conv1 = _normalized(nn.Conv3d(channels_in, width, 1, bias=False), width)
        self.tp_conv = _normalized(nn.ConvTranspose3d(width, width, 3, stride, 1, stride - 1, bias=False), width)
        self.conv2 = _normalized(nn.Conv3d(width, channels_out, 1, bias=False), channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """From `[N, Cin, *S]` to `[N, Cout, *S * stride]`."""
        result: Tensor = self.conv2(self.tp_conv(self.conv1(x)))
        return result


class LinkNet3d(nn.Module):
    """Encoder and decoder of four levels joined by additive skips; 2.13 M parameters.

    The published TorchScript ends with a softmax over the channels; this returns the logits before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.init = nn.Sequential(
            nn.Conv3d(1, 16, 7, 2, 3, bias=False), nn.InstanceNorm3d(16), nn.ReLU(), nn.MaxPool3d(3, 2, 1)
        )
        self.down0, self.down1 = Down(16, 16, 1), Down(16, 32, 2)
        self.down2, self.down3 = Down(32, 64, 2), Down(64, 128, 2)
        self.up0, self.up1 = Up(128, 64, 2), Up(64, 32, 2)
        self.up2, self.up3 = Up(32, 16, 2), Up(16, 16, 1)
        self.tp_conv1 = _normalized(nn.ConvTranspose3d(16, 8, 3, 2, 1, 1), 8)
        self.conv = _normalized(nn.Conv3d(8, 8, 3, 1, 1), 8)
        self.tp_conv2 = nn.ConvTranspose3d(8, 2, 2, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `f32[N, 2, *S]` of background and brain for an image `f32[N, 1, *S]`, each of S a multiple of 32."""
        first = self.init(image)
        second = self.down0(first)
        third = self.down1(second)
        fourth = self.down2(third)
        x = self.up0(self.down3(fourth)) + fourth
        x = self.up1(x) + third
        x = self.up2(x) + second
        x = self.up3(x) + first
        result: Tensor = self.tp_conv2(self.conv(self.tp_conv1(x)))
        return result


def load_linknet(path: Path) -> LinkNet3d:
    """The network with the weights of a deepbet TorchScript file, in eval mode.

    Loading TorchScript can execute code: only for files whose checksum is known (`assets.fetch`).
    """
    script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    network = LinkNet3d()
    network.load_state_dict(script.state_dict())
    return network.eval()
