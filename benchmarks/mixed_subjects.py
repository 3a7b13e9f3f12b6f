"""Files and samples of the mixed-precision benchmark: the float network, what it is calibrated on, what judges it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import deepbrain
import fashion
from fptq.demo.assets import fetch
from fptq.demo.heads import AugmentedHeads
from fptq.feeds import Scan, read_scan
from fptq.types import Feeds
from layout import NETWORKS, Folder
from networks import SUBJECTS as RANDOM
from networks import export, prepare
from trained import subject

FASHION, BRAIN = "fashion-w16", "deepbrain"
NAMES = (BRAIN, FASHION, "encoder")
ENGINES = {BRAIN: "openvino", FASHION: "onnxruntime", "encoder": "openvino"}
"""Whose placement is searched; see `mixed_study.opened`."""
CALIBRATION = {BRAIN: 8, FASHION: 64}
EVALUATION = {BRAIN: 2, FASHION: 256, "encoder": 2}
"""Samples on which output errors are verified."""


def prepared(name: str, results: Path) -> Folder:
    """The folder of a subject, filled where it is not."""
    folder = Folder(name=name, results=results)
    if name in NETWORKS:
        network = next(one for one in RANDOM if one.name == name)
        prepare(network, folder, calibration=8, evaluation=EVALUATION[name])
        return folder
    stamp, made_from = folder.root / "made_from", f"{CALIBRATION[name]} {EVALUATION[name]}"
    if stamp.exists() and stamp.read_text() == made_from:
        return folder
    shutil.rmtree(folder.root, ignore_errors=True)
    found = subject(name, samples=CALIBRATION[name])
    _write(folder.calibration, found.calibration)
    _write(folder.evaluation, images(0, EVALUATION[name]) if name == FASHION else colin(EVALUATION[name], seed=2))
    export(found.module, found.example[0], "image", folder.float_model)
    stamp.write_text(made_from)
    return folder


def images(start: int, count: int) -> list[Feeds]:
    """Test images from a position on, one a sample."""
    test = fashion.test_images()
    return [{"image": test.normalized(slice(i, i + 1)).numpy()} for i in range(start, start + count)]


def colin(count: int, *, seed: int) -> AugmentedHeads:
    """Colin27's head moved, with noise and a bias field, as deepbrain takes it; the first is the head as it is."""
    scan: Scan = read_scan(fetch("colin27"))
    return AugmentedHeads(scan=scan, count=count, seed=seed, scaled=deepbrain.to_unit_range)


def stacked(samples: Iterable[Feeds]) -> Feeds:
    """Samples as one batch."""
    batches: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        for name, array in sample.items():
            batches.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in batches.items()}


def _write(folder: Path, samples: Iterable[Feeds]) -> None:
    folder.mkdir(parents=True)
    for index, sample in enumerate(samples):
        np.savez(folder / f"{index:05d}.npz", **sample)
