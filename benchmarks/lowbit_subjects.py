"""What networks of few bits are made of, and how they are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch

import fashion
import trained
from fptq.execute import Executor, Overlay
from fptq.execute.objective import Objective, difference, of_task
from fptq.graph.load import load
from fptq.types import Array, Feeds, Runner

IMAGES, BATCH, HEADS = 1024, 32, 16
_EPOCHS = {16: 3, 64: 2}
"""Of training, by width: the wide one takes ten minutes for each on one core."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How good a network is.

    Attributes:
        metric: Against labels.
        agreement: With the float network's answers, by the same metric.
        seen: The same on calibration samples: far above `agreement` it has over-fitted.
        divergence: Mean of the network's objective on test samples.
    """

    metric: float
    agreement: float
    seen: float
    divergence: float


class Subject(Protocol):
    """A network, its samples and its score."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def engine(self) -> str:
        """Whose placement is used."""

    @property
    def task(self) -> str:
        """The recipe's task."""

    @property
    def executor(self) -> Executor:
        """The float network."""

    def calibration(self, seed: int) -> list[Feeds]:
        """Samples without labels."""

    def exact(self) -> float:
        """The float network's metric."""

    def scores(self, network: Executor, hook: Overlay, seed: int) -> Scores:
        """A quantized network's scores."""


@dataclass(frozen=True)
class Images:
    """A ResNet-18 on FashionMNIST; one placement for all engines' batches, ONNX Runtime's, leaves the batch free.

    Attributes:
        width: Channels of its first stage.
    """

    width: int
    metric = "accuracy"
    engine = "onnxruntime"
    task = "generic"

    @property
    def executor(self) -> Executor:
        return _network(self.width)

    def calibration(self, seed: int) -> list[Feeds]:
        (name,) = self.executor.input_names
        return [{name: part} for part in np.split(_train_images(seed), IMAGES // BATCH)]

    def exact(self) -> float:
        logits, labels = _test_logits(self.width), fashion.test_images().labels
        return float((logits.argmax(1) == labels).double().mean())

    def scores(self, network: Executor, hook: Overlay, seed: int) -> Scores:
        test, seen = fashion.test_images(), torch.from_numpy(_train_images(seed))
        exact, logits = _test_logits(self.width), _logits(network, hook, test.normalized(slice(None)))
        before, after = _logits(self.executor, None, seen).argmax(1), _logits(network, hook, seen).argmax(1)
        return Scores(
            metric=float((logits.argmax(1) == test.labels).double().mean()),
            agreement=float((logits.argmax(1) == exact.argmax(1)).double().mean()),
            seen=float((before == after).double().mean()),
            divergence=float(difference(Objective.KL, {"": exact.double()}, {"": logits.double()})),
        )


@dataclass(frozen=True)
class Heads:
    """A 3-D network that extracts the brain, calibrated on copies of an averaged head, scored on Colin27: one case.

    Attributes:
        name: A key of `trained.SUBJECTS`.
    """

    name: str
    metric = "Dice"
    engine = "openvino"
    task = "segmentation"

    @property
    def executor(self) -> Executor:
        return _volume_network(self.name)

    def calibration(self, seed: int) -> list[Feeds]:
        (name,) = self.executor.input_names
        return [{name: next(iter(feeds.values()))} for feeds in _heads(self.name, seed).calibration]

    def exact(self) -> float:
        return self._labelled(self.executor, None)

    def scores(self, network: Executor, hook: Overlay, seed: int) -> Scores:
        objective = of_task(self.executor.model, self.task)
        (name,) = self.executor.input_names
        test = [next(iter(feeds.values())) for feeds in _heads(self.name, seed).evaluation]
        seen = [feeds[name] for feeds in self.calibration(seed)[:2]]
        found = {kind: list(self._pairs(network, hook, arrays)) for kind, arrays in (("test", test), ("seen", seen))}
        dice = {kind: float(np.mean([_dice(_mask(a), _mask(b)) for a, b in pairs])) for kind, pairs in found.items()}
        divergence = np.mean([float(difference(objective, {"": a}, {"": b})) for a, b in found["test"]])
        return Scores(
            metric=self._labelled(network, hook),
            agreement=dice["test"],
            seen=dice["seen"],
            divergence=float(divergence),
        )

    def _pairs(
        self, network: Executor, hook: Overlay, arrays: list[Array]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for array in arrays:
            exact, found = (_output(*one, array) for one in ((self.executor, None), (network, hook)))
            yield exact, found

    def _labelled(self, network: Executor, hook: Overlay | None) -> float:
        return _heads(self.name, 0).task.evaluate(_runner(network, hook)).entries[0].value


SUBJECTS: dict[str, Subject] = {
    "w16": Images(16),
    "w64": Images(64),
    "deepbrain": Heads("deepbrain"),
    "deepbet": Heads("deepbet"),
}


@cache
def _network(width: int) -> Executor:
    images = torch.from_numpy(_train_images(0))
    return Executor.open(load(fashion.train(width, _EPOCHS[width]), example=images[:2], others=[images[:3]]))


@cache
def _train_images(seed: int) -> Array:
    images = fashion.train_images()
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(images))[:IMAGES].copy())
    return np.asarray(images.normalized(chosen).numpy())


@cache
def _test_logits(width: int) -> torch.Tensor:
    return _logits(_network(width), None, fashion.test_images().normalized(slice(None)))


@torch.no_grad()
def _logits(executor: Executor, hook: Overlay | None, images: torch.Tensor) -> torch.Tensor:
    (name,) = executor.input_names
    parts = (next(iter(executor.run({name: part}, hook=hook).values())) for part in images.split(500))
    return torch.cat(list(parts))


@cache
def _heads(name: str, seed: int) -> trained.Trained:
    return trained.subject(name, samples=HEADS, seed=seed)


@cache
def _volume_network(name: str) -> Executor:
    subject = _heads(name, 0)
    return Executor.open(load(subject.module, example=subject.example))


@torch.no_grad()
def _output(network: Executor, hook: Overlay | None, array: Array) -> torch.Tensor:
    (name,) = network.input_names
    return next(iter(network.run({name: torch.from_numpy(array)}, hook=hook).values()))


def _runner(network: Executor, hook: Overlay | None) -> Runner:
    def run(feeds: Feeds) -> Feeds:
        (output,) = network.output_names
        return {output: _output(network, hook, next(iter(feeds.values()))).numpy()}

    return run


def _mask(logits: torch.Tensor) -> Array:
    return np.asarray((logits > 0 if logits.shape[1] == 1 else logits.argmax(1) > 0).numpy())


def _dice(one: Array, other: Array) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))
