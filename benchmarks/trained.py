"""Subjects with real weights: what they are, what they are calibrated on, and how they are scored.

python benchmarks/trained.py deepbrain fashion-w16 antiberty       float scores
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import antiberty
import deepbrain
import fashion
from fptq.demo.assets import fetch
from fptq.demo.brain import brain_demo, evaluation_case
from fptq.demo.heads import AugmentedHeads
from fptq.feeds import read_scan
from fptq.feeds.fasta import Protein
from fptq.feeds.tokenizer import open_tokenizer
from fptq.feeds.tokens import MaskedTokens, TokenInput
from fptq.graph.model import TensorInfo
from fptq.tasks import Score, Scores, SegmentationTask, VolumeInput
from fptq.tasks.base import Task
from fptq.tasks.proteins import ProteinOutputs, ProteinTask
from fptq.types import Feeds, FeedSource, Runner

SAMPLES = 32
"""Calibration samples, unless asked otherwise."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A subject with real weights.

    Attributes:
        name: As in `SUBJECTS`.
        module: The float network, in eval mode.
        example: Its arguments, for the export.
        calibration: Unlabelled samples by input name, batch 1.
        evaluation: Other samples, to compare outputs with the float network's.
        task: How it is scored against labels.
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    calibration: FeedSource
    evaluation: tuple[Feeds, ...]
    task: Task

    def runner(self) -> Runner:
        """The float network in torch, by names of inputs."""

        def run(feeds: Feeds) -> Feeds:
            with torch.no_grad():
                return {"logits": self.module(*(torch.from_numpy(array) for array in feeds.values())).numpy()}

        return run


def subject(name: str, *, samples: int = SAMPLES, seed: int = 0) -> Trained:
    """A subject by name.

    Args:
        name: A key of `SUBJECTS`.
        samples: How many to calibrate on.
        seed: Of their choice or augmentation.
    """
    return SUBJECTS[name](samples, seed)


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Top-1 accuracy on the test images.

    Attributes:
        images: Images and classes.
        batch: Images in one call; 1 for files of fixed shape.
    """

    images: fashion.Images
    batch: int = 1

    def evaluate(self, runner: Runner) -> Scores:
        """Right (1) or wrong (0) for each image, and the share."""
        right: list[float] = []
        for start in range(0, len(self.images), self.batch):
            part = slice(start, start + self.batch)
            (logits,) = runner({"image": self.images.normalized(part).numpy()}).values()
            right += (logits.argmax(1) == self.images.labels[part].numpy()).astype(float).tolist()
        return _scores("accuracy", right)


def deepbrain_subject(samples: int, seed: int) -> Trained:
    """Brain extraction; calibration on copies of an averaged head, evaluation on Colin27."""
    case, _ = evaluation_case()
    scan = read_scan(fetch("averaged-head"))
    heads = AugmentedHeads(scan=scan, count=samples, seed=seed, scaled=deepbrain.to_unit_range)
    info = TensorInfo(name="image", dtype=np.dtype(np.float32), shape=(1, 1, *[deepbrain.SIDE] * 3))
    preprocess = deepbrain.SmoothHead()
    task = SegmentationTask(
        cases=(case,),
        network=VolumeInput(info=info),
        preprocess=preprocess,
        classes=("brain",),
        metrics=("dice",),
    )
    return Trained(
        name="deepbrain",
        module=deepbrain.load_deepbrain(fetch("deepbrain")),
        example=(torch.from_numpy(heads.sample(0)["image"]),),
        calibration=heads,
        evaluation=({"image": preprocess(case.volume, np.eye(4))[None]},),
        task=task,
    )


def deepbet_subject(samples: int, seed: int) -> Trained:
    """The small network of deepbet; calibration and evaluation as for deepbrain."""
    demo = brain_demo(samples=samples, seed=seed)
    case, preprocess = demo.task.cases[0], demo.task.preprocess
    assert preprocess is not None
    return Trained(
        name="deepbet",
        module=demo.module,
        example=demo.example,
        calibration=demo.calibration,
        evaluation=({"image": preprocess(case.volume, np.eye(4))[None]},),
        task=demo.task,
    )


def fashion_subject(width: int, epochs: int) -> Callable[[int, int], Trained]:
    """A ResNet-18 on FashionMNIST; calibration on training images, evaluation on test images."""

    def build(samples: int, seed: int) -> Trained:
        network, train, test = fashion.train(width, epochs), fashion.train_images(), fashion.test_images()
        chosen = np.random.default_rng(seed).choice(len(train), samples, replace=False)
        calibration = [{"image": train.normalized(slice(i, i + 1)).numpy()} for i in chosen.tolist()]
        return Trained(
            name=f"fashion-w{width}",
            module=network,
            example=(torch.from_numpy(calibration[0]["image"]),),
            calibration=calibration,
            evaluation=tuple({"image": test.normalized(slice(i, i + 1)).numpy()} for i in range(64)),
            task=ImageTask(images=test),
        )

    return build


def antiberty_subject(samples: int, seed: int) -> Trained:
    """An antibody language model; evaluation on the first 200 sequences of the alphabet, calibration on others."""
    vocabulary = fetch("antiberty-vocabulary")
    tokenizer = open_tokenizer(vocabulary)
    sequences = antiberty.read_sequences(fetch("antibodies"))
    proteins = [Protein(name=f"VH{index}", residues=letters) for index, letters in enumerate(sequences)]
    shape = ("batch", antiberty.TOKENS)
    network = TokenInput(tokens=TensorInfo(name="tokens", dtype=np.dtype(np.int64), shape=shape), pad=0)
    seen = MaskedTokens.of(proteins[200:], tokenizer, seed=seed, limit=samples).feeds(network)
    return Trained(
        name="antiberty",
        module=antiberty.load_antiberty(fetch("antiberty")),
        example=(torch.from_numpy(seen[0]["tokens"]),),
        calibration=seen,
        evaluation=tuple(MaskedTokens.of(proteins[:16], tokenizer, seed=seed).feeds(network)),
        task=ProteinTask(
            proteins=tuple(proteins[:200]),
            tokenizer=tokenizer,
            network=network,
            outputs=ProteinOutputs(logits="logits", embedding=None),
            metrics=("accuracy",),
            seed=seed,
        ),
    )


SUBJECTS: Mapping[str, Callable[[int, int], Trained]] = {
    "deepbrain": deepbrain_subject,
    "deepbet": deepbet_subject,
    "fashion-w16": fashion_subject(16, 3),
    "fashion-w64": fashion_subject(64, 2),
    "antiberty": antiberty_subject,
}


def _scores(name: str, cases: list[float]) -> Scores:
    return Scores(entries=(Score(name=name, value=float(np.mean(cases)), cases=tuple(cases)),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(SUBJECTS))
    for name in parser.parse_args().names:
        found = subject(name)
        scores = found.task.evaluate(found.runner())
        parameters = sum(p.numel() for p in found.module.parameters()) / 1e6
        values = ", ".join(f"{score.name} {score.value:.4f}" for score in scores)
        print(f"{name}: {parameters:.2f} M parameters, {len(found.calibration)} calibration samples, {values}")


if __name__ == "__main__":
    main()
