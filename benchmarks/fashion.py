"""A ResNet-18 for FashionMNIST (He et al. 2016, arXiv 1512.03385, with a stem for 28x28), trained here.

python benchmarks/fashion.py --width 16 --epochs 3       a few minutes on two cores; the checkpoint is kept
"""

from __future__ import annotations

import argparse
import gzip
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fptq.demo.assets import fetch
from layout import HERE
from peers.common import waited_s

SIDE, CLASSES, BATCH = 28, 10, 256
_MEAN, _DEVIATION = 0.286, 0.353
"""Of the training images, counted from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Labelled images.

    Attributes:
        pixels: u8[N, 1, 28, 28].
        labels: i64[N], 0 to 9.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def normalized(self, index: Tensor | slice) -> Tensor:
        """Some of the images as the network takes them, `f32[N, 1, 28, 28]`."""
        return (self.pixels[index].float() / 255 - _MEAN) / _DEVIATION


class Residual(nn.Module):
    """Two 3x3 convolutions around an additive shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(channels_out), nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            straight = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(straight, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """From `[N, Cin, *S]` to `[N, Cout, *S / stride]`."""
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Four stages of two residual blocks; 0.70 M parameters at width 16, 11.2 M at 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks, channels = [], width
        for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
            blocks += [Residual(channels, width * factor, stride), Residual(width * factor, width * factor, 1)]
            channels = width * factor
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `f32[N, 10]` for images `f32[N, 1, 28, 28]`."""
        logits: Tensor = self.head(self.blocks(self.stem(image)).mean((2, 3)))
        return logits


def train_images() -> Images:
    """The 60,000 training images."""
    return _images("train", 60_000)


def test_images() -> Images:
    """The 10,000 test images."""
    return _images("test", 10_000)


def train(width: int, epochs: int, *, seed: int = 0) -> ResNet18:
    """The network after some epochs, in eval mode; from its checkpoint where there is one.

    Args:
        width: Channels of the first stage.
        epochs: Passes over the training images.
        seed: Of weights, order and flips.
    """
    path = checkpoint(width, epochs, seed=seed)
    torch.manual_seed(seed)
    network = ResNet18(width)
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    _fit(network, train_images(), epochs)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(network.state_dict(), partial)
    partial.replace(path)  # an interrupted run must not leave half a checkpoint
    return network.eval()


def checkpoint(width: int, epochs: int, *, seed: int = 0) -> Path:
    """Where the weights are kept."""
    return HERE / "results" / "trained" / f"fashion-resnet18-w{width}-e{epochs}-s{seed}.pt"


@torch.no_grad()
def accuracy(network: nn.Module, images: Images) -> float:
    """Share of the images that the network names right."""
    right = 0
    for start in range(0, len(images), 500):
        part = slice(start, start + 500)
        right += int((network(images.normalized(part)).argmax(1) == images.labels[part]).sum())
    return right / len(images)


def _fit(network: nn.Module, images: Images, epochs: int) -> None:
    """SGD with one cycle of the learning rate (Smith 2018, arXiv 1708.07120), random horizontal flips."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, epochs * steps)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            x = images.normalized(batch)
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
            optimizer.zero_grad()
            functional.cross_entropy(network(x), images.labels[batch]).backward()
            optimizer.step()
            schedule.step()


def _images(part: str, count: int) -> Images:
    # The IDX format: a header of 16 bytes for images, of 8 for labels, then bytes.
    pixels = _bytes(f"fashion-{part}-images", 16).reshape(count, 1, SIDE, SIDE)
    return Images(pixels=pixels, labels=_bytes(f"fashion-{part}-labels", 8).long())


def _bytes(asset: str, header: int) -> Tensor:
    with gzip.open(fetch(asset)) as file:
        return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    start, waited = time.monotonic(), waited_s()
    network = train(arguments.width, arguments.epochs)
    spent = f"{time.monotonic() - start:.0f} s, of which {waited_s() - waited:.0f} s waiting for a core"
    count = sum(p.numel() for p in network.parameters()) / 1e6
    print(f"width {arguments.width}, {arguments.epochs} epochs: {count:.2f} M parameters, {spent}")
    print(f"accuracy on the test images {accuracy(network, test_images()):.4f}")


if __name__ == "__main__":
    main()
