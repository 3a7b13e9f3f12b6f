"""The six networks of the benchmark: built with fixed seeds, exported to ONNX, with their samples.

Run as a script it fills the work folder: `float.onnx`, `calibration/*.npz` and `evaluation/*.npz` for each network.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from layout import HERE, NETWORKS, Folder

Samples = Iterator[NDArray[Any]]

OPSET = 20
CALIBRATION_SEED, EVALUATION_SEED, WEIGHT_SEED = 1, 2, 0
VOCABULARY, TOKENS = 33, 256


@dataclass(frozen=True, kw_only=True)
class Network:
    """A subject of the benchmark.

    Attributes:
        name: Its folder's name.
        input_name: Name of its only input.
        build: Makes it, in eval mode.
        samples: `(count, seed)` to arrays as the network takes them, batch 1; calibration and evaluation
            have different seeds, and for deepbet different heads.
    """

    name: str
    input_name: str
    build: Callable[[], nn.Module]
    samples: Callable[[int, int], Samples]


class EncoderLayer(nn.Module):
    """A pre-normalised transformer layer (Xiong et al. 2020, https://arxiv.org/abs/2002.04745)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """From `f32[N, T, width]` to the same shape."""
        x = x + self._attend(self.attention_norm(x))
        result: Tensor = x + self.contract(functional.gelu(self.expand(self.feed_forward_norm(x))))
        return result

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        mixed = torch.softmax(scores, dim=-1) @ value
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(x.shape))
        return result

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


class Encoder(nn.Module):
    """A BERT-like encoder with the geometry of ESM-2 35M: 12 layers of 480, 20 heads, feed-forward 1920."""

    def __init__(self, *, layers: int = 12, width: int = 480, heads: int = 20, inner: int = 1920) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(1024, width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `f32[N, T, 33]` for tokens `i64[N, T]`, T <= 1024."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def basic_unet() -> nn.Module:
    from monai.networks.nets import BasicUNet

    return _with_batch_statistics(BasicUNet(3, 1, 14, norm="batch"))


def dyn_unet() -> nn.Module:
    from monai.networks.nets import DynUNet

    # As nnU-Net plans it: kernel 3, stride 2 from the second stage on, instance norm with affine parameters.
    return DynUNet(3, 1, 14, kernel_size=[3] * 5, strides=[1, 2, 2, 2, 2], upsample_kernel_size=[2] * 4)


def residual_unet() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(3, 1, 14, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)


def swin_unetr() -> nn.Module:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=14, feature_size=24)


def trans_unet() -> nn.Module:
    sys.path.insert(0, str(HERE.parent / "examples"))
    from transunet import VOLUMES, TransUNet

    return _with_batch_statistics(TransUNet(3, 1, 14, 96, size=VOLUMES), side=96)


def deepbet() -> nn.Module:
    from fptq.demo.assets import fetch
    from fptq.demo.linknet import load_linknet

    return load_linknet(fetch("deepbet-bbox"))


def volumes(count: int, seed: int, *, side: int = 96) -> Samples:
    """Scan-like volumes `f32[1, 1, side, side, side]`: structure at all scales, noise, mean 0 and deviation 1."""
    for index in range(count):
        generator = torch.Generator().manual_seed(seed * 1000 + index)
        volume = 0.3 * torch.randn(1, 1, side, side, side, generator=generator)
        for cells in (3, 6, 12, 24):
            coarse = torch.randn(1, 1, cells, cells, cells, generator=generator)
            volume += functional.interpolate(coarse, size=(side,) * 3, mode="trilinear")
        yield ((volume - volume.mean()) / volume.std()).numpy()


def sequences(count: int, seed: int) -> Samples:
    """Token sequences `i64[1, 256]`."""
    generator = np.random.default_rng(seed)
    return (generator.integers(0, VOCABULARY, size=(1, TOKENS)) for _ in range(count))


def heads(count: int, seed: int) -> Samples:
    """Head scans `f32[1, 1, 128, 128, 128]`: an averaged head to calibrate on, Colin27 to evaluate on."""
    from fptq.demo.assets import fetch
    from fptq.demo.brain import evaluation_case
    from fptq.demo.heads import AugmentedHeads
    from fptq.feeds import Scan, read_scan

    if seed == CALIBRATION_SEED:
        scan = read_scan(fetch("averaged-head"))
    else:
        case, _ = evaluation_case()
        scan = Scan(name=case.name, volume=case.volume, affine=np.eye(4) if case.affine is None else case.affine)
    return (feeds["image"] for feeds in AugmentedHeads(scan=scan, count=count, seed=seed))


SUBJECTS = (
    Network(name="basicunet", input_name="image", build=basic_unet, samples=volumes),
    Network(name="dynunet", input_name="image", build=dyn_unet, samples=volumes),
    Network(name="unet", input_name="image", build=residual_unet, samples=volumes),
    Network(name="deepbet", input_name="image", build=deepbet, samples=heads),
    Network(name="encoder", input_name="tokens", build=Encoder, samples=sequences),
    Network(name="swinunetr", input_name="image", build=swin_unetr, samples=volumes),
    Network(name="transunet", input_name="image", build=trans_unet, samples=volumes),
)


def _with_batch_statistics(network: nn.Module, *, side: int = 64) -> nn.Module:
    """Give batch norms the statistics of a few samples: fresh ones (mean 0, variance 1) would be the identity."""
    network.train()
    with torch.no_grad():
        for sample in volumes(2, WEIGHT_SEED, side=side):
            network(torch.from_numpy(sample))
    return network


def prepare(network: Network, folder: Folder, *, calibration: int, evaluation: int) -> None:
    """Fill the network's folder, unless this version of this file has filled it.

    Args:
        network: The subject.
        folder: Where to; emptied first.
        calibration: Number of calibration samples.
        evaluation: Number of evaluation samples.
    """
    source = Path(__file__).read_bytes() + f"{calibration} {evaluation}".encode()
    stamp, made_from = folder.root / "made_from", hashlib.sha256(source).hexdigest()
    if stamp.exists() and stamp.read_text() == made_from:
        return
    shutil.rmtree(folder.root, ignore_errors=True)
    _write_samples(folder.calibration, network, calibration, CALIBRATION_SEED)
    _write_samples(folder.evaluation, network, evaluation, EVALUATION_SEED)
    torch.manual_seed(WEIGHT_SEED)
    module = network.build().eval()
    example = torch.from_numpy(next(network.samples(1, CALIBRATION_SEED)))
    export(module, example, network.input_name, folder.float_model)
    stamp.write_text(made_from)
    parameters = sum(p.numel() for p in module.parameters()) / 1e6
    print(f"{network.name}: {parameters:.1f} M parameters, {folder.float_model}")


def export(module: nn.Module, example: Tensor, input_name: str, path: Path) -> None:
    """Write an ONNX file as PyTorch's exporter makes it by default: static shapes, its own optimiser on."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[input_name],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def _write_samples(folder: Path, network: Network, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for index, sample in enumerate(network.samples(count, seed)):
        np.savez(folder / f"{index:03d}.npz", **{network.input_name: sample})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--results", type=Path, default=Folder(name="").results)
    parser.add_argument("--calibration", type=int, default=8, help="calibration samples")
    parser.add_argument("--evaluation", type=int, default=4, help="evaluation samples")
    arguments = parser.parse_args()
    for network in SUBJECTS:
        if network.name in arguments.networks:
            folder = Folder(name=network.name, results=arguments.results)
            prepare(network, folder, calibration=arguments.calibration, evaluation=arguments.evaluation)


if __name__ == "__main__":
    main()
