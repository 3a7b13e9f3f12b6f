"""Segmentation: Dice and HD95 against labels, Dice against the float network's own mask, slices for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fptq.errors import ConfigError, DataError
from fptq.feeds.preprocess import InvertiblePreprocess, Preprocess, preprocessed
from fptq.tasks.base import Score, Scores, mean_defined
from fptq.tasks.cases import Case
from fptq.tasks.inference import VolumeInput
from fptq.tasks.metrics import dice, hd95
from fptq.types import Array, Progress, Runner, silent

DICE_NOTE = "Dice: mean over the foreground classes, then over cases; a class empty in mask and label is left out."
HD95_NOTE = (
    "HD95: the larger of the two directed 95th percentile surface distances; undefined and left out of the mean where "
    "mask or label is empty"
)
AGREEMENT_NOTE = "agreement_dice: Dice against the first network's own masks."


@dataclass(frozen=True, kw_only=True)
class SegmentationTask:
    """Scores masks on the volumes' own grids.

    Attributes:
        cases: Volumes and labels, read one at a time.
        network: The network's input and how volumes larger than it are covered.
        preprocess: From a scan to network space; its `invert` brings outputs back.
        postprocess: From a mask `int[*S]` to the mask that is scored, such as the largest component.
        threshold: For a network with one output channel: foreground where the output is above. None: 0.5 where all
            outputs lie in [0, 1] (probabilities), otherwise 0 (logits, sigmoid(0) = 0.5). With more channels the
            largest wins.
        classes: Names of the foreground classes 1, 2, ...; numbers where not given.
        metrics: What is measured against labels.
    """

    cases: Sequence[Case]
    network: VolumeInput
    preprocess: Preprocess | None = None
    postprocess: Callable[[Array], Array] | None = None
    threshold: float | None = None
    classes: tuple[str, ...] = ()
    metrics: tuple[Literal["dice", "hd95"], ...] = ("dice", "hd95")

    def __post_init__(self) -> None:
        if not len(self.cases):
            raise DataError("there is no case to segment", rule="evaluation needs at least one volume")

    def evaluate(self, runner: Runner) -> Scores:
        """Scores against the labels; without labels there are none."""
        return self.evaluate_all({"network": runner})["network"]

    def evaluate_all(self, runners: Mapping[str, Runner], *, progress: Progress = silent) -> Mapping[str, Scores]:
        """Scores of several networks in one pass, with the agreement of each with the first.

        Args:
            runners: Networks by name; the first is the reference.
            progress: Told after each case.

        Raises:
            DataError: A label does not fit the network's classes or grid.
            MissingExtra: scipy, MONAI or nibabel is needed and not installed.
        """
        tables = {name: _Table() for name in runners}
        names = []
        for index in range(len(self.cases)):
            case = self.cases[index]
            names.append(case.name)
            image = self._image(case)
            reference: Array | None = None
            for name, runner in runners.items():
                mask, count = self._segment(runner, case, image)
                tables[name].add(self._row(mask, case, count, reference))
                reference = mask if reference is None else reference
            progress(index + 1, len(self.cases), "evaluation")
        unit = "voxel" if self.cases[0].affine is None else "mm"
        return {name: table.scores(self._class_names, tuple(names), unit) for name, table in tables.items()}

    def segment(self, runner: Runner, case: Case) -> Array:
        """The mask `u8[*S]` that a network gives for a case, on the case's own grid."""
        return self._segment(runner, case, self._image(case))[0]

    def _image(self, case: Case) -> Array:
        """The network's input `f32[C, *S]`."""
        prepared = preprocessed(case.volume, _affine(case), preprocess=self.preprocess, name=case.name)
        return self.network.channels_first(np.asarray(prepared, np.float32), name=case.name)

    def _segment(self, runner: Runner, case: Case, image: Array) -> tuple[Array, int]:
        """The mask and its number of foreground classes."""
        outputs = self.network.run(runner, image)
        if isinstance(self.preprocess, InvertiblePreprocess):
            outputs = self.preprocess.invert(outputs, case.volume, _affine(case))
        grid = case.volume.shape[case.volume.ndim - self.network.rank :]
        if outputs.shape[1:] != grid:
            raise ConfigError(
                f"{case.name}: the mask has shape {list(outputs.shape[1:])}, the volume {list(grid)}",
                rule="masks are compared on the volume's own grid",
                remedy="Give the preprocess an attribute invert(outputs, volume, affine)",
            )
        mask = self._decoded(outputs)
        if self.postprocess is not None:
            mask = np.asarray(self.postprocess(mask), np.uint8)
        return mask, max(len(outputs) - 1, 1)

    def _decoded(self, outputs: Array) -> Array:
        if len(outputs) > 1:
            return np.asarray(outputs.argmax(0), np.uint8)
        # A quantizer's range may pass 1 by a step.
        probabilities = outputs.min() >= -0.01 and outputs.max() <= 1.01
        threshold = self.threshold if self.threshold is not None else (0.5 if probabilities else 0.0)
        return np.asarray(outputs[0] > threshold, np.uint8)

    def _row(self, mask: Array, case: Case, count: int, reference: Array | None) -> _Row:
        numbers = range(1, count + 1)
        row = _Row()
        if reference is not None:
            row.agreement = [dice(mask == k, reference == k) for k in numbers]
        if case.label is None:
            return row
        if case.label.max(initial=0) > count or case.label.min(initial=0) < 0:
            raise DataError(
                f"{case.name}: labels run from {case.label.min()} to {case.label.max()}",
                rule=f"the network has background 0 and {count} foreground classes",
                remedy="Map the labels to the network's classes",
            )
        if "dice" in self.metrics:
            row.dice = [dice(mask == k, case.label == k) for k in numbers]
        if "hd95" in self.metrics:
            row.hd95 = [hd95(mask == k, case.label == k, case.spacing) for k in numbers]
        return row

    def _class_names(self, count: int) -> tuple[str, ...]:
        return tuple(self.classes[k] if k < len(self.classes) else str(k + 1) for k in range(count))


def _affine(case: Case) -> Array:
    return np.eye(4) if case.affine is None else case.affine


@dataclass
class _Row:
    """One case: a value per foreground class; empty where it was not measured."""

    dice: list[float] = field(default_factory=list)
    hd95: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)


@dataclass
class _Table:
    """One network's rows."""

    rows: list[_Row] = field(default_factory=list)

    def add(self, row: _Row) -> None:
        self.rows.append(row)

    def scores(self, names: Callable[[int], tuple[str, ...]], cases: tuple[str, ...], unit: str) -> Scores:
        notes, entries = [], []
        table = _matrix([row.dice for row in self.rows])
        if table is not None:
            entries += _entries("dice", table, names(table.shape[1]))
            notes.append(DICE_NOTE)
        table = _matrix([row.hd95 for row in self.rows])
        if table is not None:
            entries += _entries("hd95", table, names(table.shape[1]), unit=unit)
            left_out = int(np.isnan(table).sum())
            notes.append(f"{HD95_NOTE}: {left_out} of {table.size} here.")
        table = _matrix([row.agreement for row in self.rows])
        if table is not None:
            entries += _entries("agreement_dice", table, names(table.shape[1]))
            notes.append(AGREEMENT_NOTE)
        return Scores(entries=tuple(entries), cases=cases, notes=tuple(notes))


def _matrix(rows: list[list[float]]) -> Array | None:
    """Values `f64[cases, classes]`, NaN for cases that were not measured; None when none was."""
    width = max(len(row) for row in rows)
    return np.array([row or [np.nan] * width for row in rows]) if width else None


def _entries(name: str, table: Array, classes: tuple[str, ...], unit: str = "") -> list[Score]:
    distance = bool(unit)

    def score(label: str, column: Array) -> Score:
        values = tuple(float(v) for v in column)
        return Score(name=label, value=mean_defined(column), unit=unit, higher_is_better=not distance, cases=values)

    overall = score(name, np.array([mean_defined(row) for row in table]))
    if len(classes) == 1:
        return [overall]
    return [overall, *(score(f"{name}_{c}", table[:, k]) for k, c in enumerate(classes))]
