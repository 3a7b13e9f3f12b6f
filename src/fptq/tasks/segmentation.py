"""Segmentation: overlap, surfaces and volumes against labels, Dice against the float network's own mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fptq.errors import DataError
from fptq.feeds.preprocess import Preprocess, preprocessed
from fptq.tasks.base import Score, Scores, mean_defined
from fptq.tasks.cases import Case
from fptq.tasks.inference import VolumeInput
from fptq.tasks.mask import MaskMaker
from fptq.tasks.metrics import SurfaceDistances, dice, volume_difference
from fptq.tasks.store import Store
from fptq.types import Array, Progress, Runner, silent

Metric = Literal["dice", "hd95", "surface_dice", "volume_difference"]
METRICS: tuple[Metric, ...] = ("dice", "hd95", "surface_dice", "volume_difference")

_NOTES: Mapping[str, str] = {
    "dice": "Dice: mean over the foreground classes, then over cases; a class empty in mask and label is left out",
    "hd95": (
        "HD95: the larger of the two directed 95th percentile surface distances; undefined and left out of the mean "
        "where mask or label is empty"
    ),
    "surface_dice": (
        "surface_dice: share of the surface voxels of mask and label within {tolerance:g} {unit} of the other's "
        "surface; 0 where one is empty, left out where both are"
    ),
    "volume_difference": "volume_difference: absolute, defined for empty classes too",
    "agreement_dice": "agreement_dice: Dice against the first network's own masks",
}


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
        tolerance: Of the surface Dice [mm], or voxels where a case has no affine.
    """

    cases: Sequence[Case]
    network: VolumeInput
    preprocess: Preprocess | None = None
    postprocess: Callable[[Array], Array] | None = None
    threshold: float | None = None
    classes: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = METRICS
    tolerance: float = 1.0

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
        tables: dict[str, list[_Row]] = {name: [] for name in runners}
        names = []
        for index in range(len(self.cases)):
            case = self.cases[index]
            names.append(case.name)
            image = self._image(case)
            reference: Array | None = None
            for name, runner in runners.items():
                mask, count = self._segment(runner, case, image)
                tables[name].append(self._row(mask, case, count, reference))
                reference = mask if reference is None else reference
            progress(index + 1, len(self.cases), "evaluation")
        return {name: self._scores(table, tuple(names)) for name, table in tables.items()}

    def segment(self, runner: Runner, case: Case, *, store: Store | None = None, progress: Progress = silent) -> Array:
        """The mask `u8[*S]` that a network gives for a case, on the case's own grid.

        Args:
            runner: The network.
            case: The volume; its label plays no part.
            store: Where the state is kept, so that a run that was interrupted goes on; None: in memory.
            progress: Told after each window.
        """
        return self._segment(runner, case, self._image(case), store=store, progress=progress)[0]

    def _image(self, case: Case) -> Array:
        """The network's input `f32[C, *S]`."""
        prepared = preprocessed(case.volume, _affine(case), preprocess=self.preprocess, name=case.name)
        return self.network.channels_first(np.asarray(prepared, np.float32), name=case.name)

    def _segment(
        self, runner: Runner, case: Case, image: Array, *, store: Store | None = None, progress: Progress = silent
    ) -> tuple[Array, int]:
        """The mask and its number of foreground classes."""
        maker = MaskMaker(network=self.network, preprocess=self.preprocess, threshold=self.threshold)
        mask, channels = maker.mask(runner, case, image, store=store, progress=progress)
        if self.postprocess is not None:
            mask = np.asarray(self.postprocess(mask), np.uint8)
        return mask, max(channels - 1, 1)

    def _row(self, mask: Array, case: Case, count: int, reference: Array | None) -> _Row:
        numbers = range(1, count + 1)
        row: _Row = {}
        if reference is not None:
            row["agreement_dice"] = [dice(mask == k, reference == k) for k in numbers]
        if case.label is None:
            return row
        if case.label.max(initial=0) > count or case.label.min(initial=0) < 0:
            raise DataError(
                f"{case.name}: labels run from {case.label.min()} to {case.label.max()}",
                rule=f"the network has background 0 and {count} foreground classes",
                remedy="Map the labels to the network's classes",
            )
        measured = [self._measured(mask == k, case.label == k, case) for k in numbers]
        return row | {name: [found[name] for found in measured] for name in self.metrics}

    def _measured(self, mask: Array, label: Array, case: Case) -> Mapping[str, float]:
        """One class of one case, by metric."""
        found: dict[str, float] = {}
        if "dice" in self.metrics:
            found["dice"] = dice(mask, label)
        if {"hd95", "surface_dice"} & set(self.metrics):
            distances = SurfaceDistances.between(mask, label, case.spacing)
            found |= {"hd95": distances.hd95, "surface_dice": distances.surface_dice(self.tolerance)}
        if "volume_difference" in self.metrics:
            found["volume_difference"] = volume_difference(mask, label, case.spacing)
        return found

    def _scores(self, table: list[_Row], cases: tuple[str, ...]) -> Scores:
        distance, volume = ("voxel", "voxel") if self.cases[0].affine is None else ("mm", "ml")
        units = {"hd95": distance, "volume_difference": volume}
        notes: list[str] = []
        entries: list[Score] = []
        for name in (*self.metrics, "agreement_dice"):
            values = _matrix([row.get(name, []) for row in table])
            if values is None:
                continue
            entries += _entries(name, values, self._class_names(values.shape[1]), unit=units.get(name, ""))
            note = _NOTES[name].format(tolerance=self.tolerance, unit=distance)
            undefined = int(np.isnan(values).sum())
            notes.append(note + (f": {undefined} of {values.size} here." if undefined else "."))
        return Scores(entries=tuple(entries), cases=cases, notes=tuple(notes))

    def _class_names(self, count: int) -> tuple[str, ...]:
        return tuple(self.classes[k] if k < len(self.classes) else str(k + 1) for k in range(count))


def _affine(case: Case) -> Array:
    return np.eye(4) if case.affine is None else case.affine


_Row = dict[str, list[float]]
"""One case: by metric a value for each foreground class; metrics that were not measured are missing."""


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
