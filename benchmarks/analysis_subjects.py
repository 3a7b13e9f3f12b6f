"""What the analysis benchmark looks at: networks, loaded once and kept with their encodings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

import antiberty
import fashion
import networks
import trained
from fptq.analyze import Unit, units_of
from fptq.calibrate import CalibrationOptions, collect, needed, solve
from fptq.demo.assets import fetch
from fptq.execute import Executor
from fptq.graph.load import load
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import PROFILES, Encoding, load_encoding, place, save_encoding
from fptq.recipes.formats import Format
from fptq.recipes.sensitivity import FORMATS
from fptq.types import Feeds
from layout import HERE
from measure import read_samples

ENGINE, CALIBRATION = "openvino", 8


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network before it is loaded.

    Attributes:
        module: In eval mode.
        samples: By input name, batch as the network is to run; the first is the export's example.
    """

    module: nn.Module
    samples: tuple[Feeds, ...]

    def eager(self, sample: Feeds) -> Callable[[], object]:
        """One run of the module itself."""
        tensors = [torch.from_numpy(array) for array in sample.values()]
        return lambda: self.module(*tensors)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A loaded network with its encodings.

    Attributes:
        name: As in `NAMES`.
        model: In canonical form.
        encodings: By format.
        samples: What it was calibrated on.
    """

    name: str
    model: Model
    encodings: Mapping[str, Encoding]
    samples: tuple[Feeds, ...]

    @cached_property
    def executor(self) -> Executor:
        return Executor.open(self.model)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        return units_of(self.model, next(iter(self.encodings.values())).plan)


def subject(name: str) -> Subject:
    """A network by name."""
    torch.manual_seed(networks.WEIGHT_SEED)
    return NAMES[name]()


def loaded(name: str, found: Subject) -> Model:
    """The network through fptq's door; from its file where it was loaded before."""
    path = _folder(name) / "model.onnx"
    if not path.exists():
        save(load(found.module, example=tuple(map(torch.from_numpy, found.samples[0].values()))), path)
    return load(path)


def opened(name: str) -> Opened:
    """The network with encodings in all formats, from files where they were made before."""
    folder = _folder(name)
    if not (folder / "formats.json").exists():
        _make(name, folder)
    formats = json.loads((folder / "formats.json").read_text())
    return Opened(
        name=name,
        model=load(folder / "model.onnx"),
        encodings={one: load_encoding(folder / one) for one in formats},
        samples=read_samples(folder / "samples"),
    )


def _make(name: str, folder: Path) -> None:
    found = subject(name)
    model, options, profile = loaded(name, found), CalibrationOptions(), PROFILES[ENGINE]
    plan = place(model, profile, profile.variants[0])
    statistics = collect(model, needed(plan, [options.observer]), found.samples)
    for one in FORMATS:
        wide = Format.parse(one).plan(plan, model)
        (folder / one).mkdir(parents=True, exist_ok=True)
        save_encoding(solve(model, wide, statistics, options=options), folder / one)
    (folder / "samples").mkdir(exist_ok=True)
    for index, sample in enumerate(found.samples):
        np.savez(folder / "samples" / f"{index:03d}.npz", **sample)
    (folder / "formats.json").write_text(json.dumps(FORMATS))


def _folder(name: str) -> Path:
    return HERE / "results" / "analysis" / name


def _trained(name: str, *, batch: int = 1) -> Callable[[], Subject]:
    def build() -> Subject:
        found = trained.subject(name, samples=CALIBRATION * batch)
        ones = list(found.calibration)
        batches = (ones[i : i + batch] for i in range(0, len(ones), batch))
        stacked = ({name: np.concatenate([one[name] for one in many]) for name in many[0]} for many in batches)
        return Subject(module=found.module, samples=tuple(stacked))

    return build


def _random(name: str) -> Callable[[], Subject]:
    def build() -> Subject:
        network = next(one for one in networks.SUBJECTS if one.name == name)
        module, arrays = network.build().eval(), network.samples(CALIBRATION, networks.CALIBRATION_SEED)
        (argument,) = inspect.signature(module.forward).parameters
        return Subject(module=module, samples=tuple({argument: array} for array in arrays))

    return build


def _resnet(width: int, batch: int) -> Callable[[], Subject]:
    def build() -> Subject:
        generator = np.random.default_rng(networks.CALIBRATION_SEED)
        images = generator.standard_normal((batch, 1, fashion.SIDE, fashion.SIDE), np.float32)
        return Subject(module=fashion.ResNet18(width).eval(), samples=({"image": images},))

    return build


def _swin_unetr() -> Subject:
    from monai.networks.nets import SwinUNETR

    network = SwinUNETR(in_channels=1, out_channels=14, feature_size=24).eval()
    return Subject(module=network, samples=({"x_in": next(networks.volumes(1, networks.CALIBRATION_SEED, side=64))},))


def _antiberty() -> Subject:
    tokens = np.random.default_rng(networks.CALIBRATION_SEED).integers(5, 25, size=(1, 128))
    return Subject(module=antiberty.load_antiberty(fetch("antiberty")), samples=({"tokens": tokens},))


NAMES: Mapping[str, Callable[[], Subject]] = {
    "deepbrain": _trained("deepbrain"),
    "fashion-w16": _trained("fashion-w16", batch=32),
    "deepbet": _trained("deepbet"),
    "basicunet": _random("basicunet"),
    "encoder": _random("encoder"),
    "swinunetr": _swin_unetr,
    "antiberty": _antiberty,
    "resnet18-w16-batch1": _resnet(16, 1),
    "resnet18-w16-batch16": _resnet(16, 16),
    "resnet18-w64-batch1": _resnet(64, 1),
    "resnet18-w64-batch16": _resnet(64, 16),
}
