"""Classification of images: top-1 and top-5 against labels, agreement with the first network's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fptq.errors import DataError, ModelError
from fptq.feeds.conform import Inputs, conform
from fptq.feeds.images import image_array, read_image
from fptq.feeds.preprocess import Preprocess
from fptq.tasks.base import Score, Scores
from fptq.tasks.classes import are_probabilities, losses_of, places_of, row_by_row
from fptq.tasks.labelled import LabelledImages
from fptq.types import Array, Feeds, Progress, Runner, silent

TOP_NOTE = "top1, top5: share of images whose class is among the largest outputs; of equal outputs the first counts."
NLL_NOTE = "nll: mean of -log p(class) [nat], p at least 1e-7; softmax unless the outputs are probabilities."
AGREEMENT_NOTE = "agreement_top1: share of images with the first network's own answer."
_TOP5_FROM = 6
_LISTED = 200
_BATCH = 16
_BATCH_VALUES = 2**22


@dataclass(frozen=True, kw_only=True)
class ClassificationTask:
    """Scores classes on image files.

    Attributes:
        images: Files and their classes, decoded one batch at a time.
        inputs: What the network takes: one image.
        preprocess: From an image to the network's input; None: as networks for ImageNet.
        output: Name of the output to use, `[N, K]` or `[N, K, 1, 1]`; None: the first.
        metrics: What is measured against labels; top5 only of six or more classes.
    """

    images: LabelledImages
    inputs: Inputs
    preprocess: Preprocess | None = None
    output: str | None = None
    metrics: tuple[Literal["top1", "top5", "nll"], ...] = ("top1", "top5")

    def __post_init__(self) -> None:
        if len(self.inputs) != 1:
            raise ModelError(
                f"the network takes {'; '.join(map(str, self.inputs))}", rule="a classification takes one image"
            )

    def evaluate(self, runner: Runner) -> Scores:
        """Scores against the labels."""
        return self.evaluate_all({"network": runner})["network"]

    def evaluate_all(self, runners: Mapping[str, Runner], *, progress: Progress = silent) -> Mapping[str, Scores]:
        """Scores of several networks in one pass over the files, with the agreement of each with the first.

        Args:
            runners: Networks by name; the first is the reference.
            progress: Told after each batch.

        Raises:
            DataError: A file cannot be read, or a label is no class of the network.
            ModelError: The network has no such output, or not one number for each class.
        """
        tallies = {name: _Tally() for name in runners}
        labels, done = np.asarray(self.images.labels), 0
        progress(0, len(labels), "evaluation")
        for batch in self._batches():
            own = labels[done : done + len(batch)]
            reference: Array | None = None
            for name, runner in runners.items():
                outputs = self._outputs(runner, batch)
                self._check_labels(own, outputs.shape[1])
                tallies[name].add(outputs, own, reference)
                reference = outputs if reference is None else reference
            done += len(batch)
            progress(done, len(labels), "evaluation")
        names = self.images.names if len(labels) <= _LISTED else ()
        return {name: tally.scores(self.metrics, names, self.images.note) for name, tally in tallies.items()}

    def _batches(self) -> Iterator[list[Array]]:
        """Prepared images, each with a batch axis of one."""
        (info,) = self.inputs
        batch = (info.shape or (1,))[0]
        one = (replace(info, shape=None if info.shape is None else (1, *info.shape[1:])),)
        held: list[Array] = []
        limit = 1
        for path in self.images.paths:
            image = image_array(read_image(path), self.inputs, preprocess=self.preprocess)
            array = _single(conform(image, one, name=str(path)), path)[info.name]
            if held and (len(held) >= limit or array.shape != held[0].shape):
                yield held
                held = []
            limit = batch if isinstance(batch, int) else max(1, min(_BATCH, _BATCH_VALUES // max(array.size, 1)))
            held.append(array)
        yield held

    def _outputs(self, runner: Runner, batch: Sequence[Array]) -> Array:
        """`f64[N, K]` for N images."""
        return row_by_row(lambda images: self._call(runner, images), batch)

    def _call(self, runner: Runner, images: Array) -> Array:
        (info,) = self.inputs
        fixed = (info.shape or (None,))[0]
        short = -len(images) % fixed if isinstance(fixed, int) else 0
        # The last images may not fill a fixed batch.
        full = np.concatenate([images, np.repeat(images[-1:], short, axis=0)]) if short else images
        outputs = runner({info.name: np.ascontiguousarray(full)})
        name = self.output if self.output is not None else next(iter(outputs))
        if name not in outputs:
            raise ModelError(f"no output {name!r}", rule=f"the network returns {', '.join(outputs)}")
        value = np.asarray(outputs[name], np.float64)
        if value.ndim < 2 or value.shape[1] < 2 or value.size != value.shape[0] * value.shape[1]:
            raise ModelError(
                f"output {name!r} has shape {list(value.shape)}",
                rule="a classification network returns [N, K], a number for each of K > 1 classes",
                remedy="Name another output, or give --metric package.module:function",
            )
        rows = value.reshape(value.shape[:2])
        return rows[: len(images)] if short else rows

    def _check_labels(self, labels: Array, count: int) -> None:
        if labels.max() >= count:
            raise DataError(
                f"class {labels.max()} of the labels",
                rule=f"the network has {count} classes, counted from 0",
                remedy="Give --labels a file of all class names in the order of the outputs",
            )


@dataclass
class _Tally:
    """One network's answers: for each image the place of its class (0: the largest output), and so on."""

    places: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    agrees: list[bool] = field(default_factory=list)
    classes: int = 0
    probabilities: bool | None = None

    def add(self, outputs: Array, labels: Array, reference: Array | None) -> None:
        self.classes = outputs.shape[1]
        if self.probabilities is None:
            self.probabilities = are_probabilities(outputs if reference is None else reference)
        self.places += places_of(labels, outputs)
        self.losses += losses_of(labels, outputs, probabilities=self.probabilities)
        if reference is not None:
            self.agrees += list(outputs.argmax(1) == reference.argmax(1))

    def scores(self, metrics: Sequence[str], names: tuple[str, ...], note: str) -> Scores:
        places = np.asarray(self.places)
        found = {"top1": places < 1, "top5": places < 5, "nll": np.asarray(self.losses)}
        wanted = [name for name in metrics if name != "top5" or self.classes >= _TOP5_FROM]
        entries = [_score(name, found[name], better=name != "nll") for name in wanted]
        notes = [TOP_NOTE, *([NLL_NOTE] if "nll" in wanted else [])]
        if self.agrees:
            entries.append(_score("agreement_top1", np.asarray(self.agrees)))
            notes.append(AGREEMENT_NOTE)
        return Scores(entries=tuple(entries), cases=names, notes=(*notes, *([note] if note else [])))


def _single(runs: Sequence[Feeds], path: Path) -> Feeds:
    if len(runs) != 1:
        raise DataError(f"{path} becomes {len(runs)} inputs", rule="a classification scores one for each image")
    return runs[0]


def _score(name: str, cases: Array, *, better: bool = True) -> Score:
    values = tuple(float(v) for v in cases)
    return Score(name=name, value=float(np.mean(values)), higher_is_better=better, cases=values)
