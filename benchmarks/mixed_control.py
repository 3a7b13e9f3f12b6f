"""Accuracy control against NNCF's: the same metric, the same samples, files of the same size, evaluations counted.

Formats are float and w8a8, because NNCF takes layers back to float only. Both sides' files run in OpenVINO with the
float remainder in f32, and both are counted as OpenVINO stores them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fashion
from fptq.engines import Session
from fptq.graph.write import save
from fptq.plan import materialize
from fptq.search import Assignment, front, solve
from fptq.search.accuracy import Floor, control
from fptq.types import Feeds
from layout import HERE, Folder
from measure import OPENVINO_F32
from mixed_study import Subject, opened
from mixed_subjects import BRAIN, FASHION, colin, images
from peers.scores import SCORES
from tables import number, table

FORMATS = ("w8a8",)
POINTS = 16
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What both sides are asked for.

    Attributes:
        name: The subject.
        metric: A key of `peers.scores.SCORES`.
        max_drop: Largest mean loss of the metric; int8 loses more.
        validation: Samples that judge during the search.
        unseen: Samples that neither side saw.
    """

    name: str
    metric: str
    max_drop: float
    validation: int
    unseen: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file.

    Attributes:
        what: Who made it, how.
        stored: Bytes of all constants as OpenVINO stores them.
        evaluations: Full evaluations of the metric that the search took, with the float network's.
        partial: Samples scored beside those, in units of full evaluations.
        drop: Mean loss of the metric on the validation samples.
        unseen_drop: Mean loss on samples that no search saw.
        unseen_error: Its standard error.
        sqnr_db: Output SQNR on unseen samples [dB].
    """

    what: str
    stored: int
    evaluations: int
    partial: float
    drop: float
    unseen_drop: float
    unseen_error: float
    sqnr_db: float


@dataclass(frozen=True)
class Judge:
    """Scores and outputs of a file on a folder of samples."""

    metric: str
    folder: Path

    def __call__(self, path: Path) -> tuple[NDArray[np.float64], list[NDArray[Any]]]:
        session, scores, outputs = self.session(path), [], []
        for feeds, target in self.samples():
            (logits,) = session(feeds).values()
            scores.append(SCORES[self.metric](logits, target))
            outputs.append(logits)
        return np.array(scores), outputs

    @staticmethod
    def session(path: Path) -> Session:
        return OPENVINO_F32.compile(path)

    def samples(self) -> Iterable[tuple[Feeds, NDArray[Any]]]:
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            yield found, found.pop("target")


def contest(asked: Contest, folder: Folder, *, python: Path, preset: str = "openvino") -> list[Row]:
    """NNCF's file, ours at its size, and ours under our own accuracy floor.

    Args:
        asked: The subject and the floor.
        folder: Its files.
        python: The peers' interpreter.
        preset: NNCF's backend.
    """
    validation, unseen = (_samples(asked, folder, part) for part in ("validation", "unseen"))
    theirs = (
        folder.quantized / f"nncf_{preset}_{asked.max_drop:g}" / ("model.xml" if preset == "openvino" else "model.onnx")
    )
    calls = _nncf(asked, folder, theirs, python=python, preset=preset)
    judges = Judge(asked.metric, validation), Judge(asked.metric, unseen)
    references = [judge(folder.float_model) for judge in judges]
    subject = opened(folder, FORMATS)
    counter = _Counter(subject=subject, judge=judges[0], folder=folder.quantized / "fptq_control")
    floor = Floor(max_drop=asked.max_drop, confidence=CONFIDENCE)
    points = front(subject.table, "size", points=POINTS)
    outcome = control(points, counter, floats=references[0][0], floor=floor)
    size = stored_bytes(theirs)
    equal = _not_larger(subject, size, folder.quantized / "fptq_equal" / "model.onnx")
    full = [count for count in calls if count == asked.validation]
    rows = [
        _row("NNCF", theirs, judges, references, len(full), (sum(calls) - sum(full)) / asked.validation),
        _row("fptq, as many bytes", equal, judges, references, 0, 0.0),
    ]
    if outcome.best is not None:
        path = counter.path(outcome.best.assignment)
        rows.append(_row("fptq, accuracy control", path, judges, references, 1 + outcome.evaluations, 0.0))
    everything = counter.file(solve(subject.table, {"size": points[0].costs["size"]}))
    rows.append(_row("fptq, all in w8a8", everything, judges, references, 0, 0.0))
    rows.append(_row("float", folder.float_model, judges, references, 0, 0.0))
    return rows


@dataclass(frozen=True, kw_only=True)
class _Counter:
    """Measures assignments as files."""

    subject: Subject
    judge: Judge
    folder: Path

    def __call__(self, assignment: Assignment) -> NDArray[np.float64]:
        return self.judge(self.file(assignment))[0]

    def path(self, assignment: Assignment) -> Path:
        return self.folder / f"{assignment.costs['size']:.0f}.onnx"

    def file(self, assignment: Assignment) -> Path:
        return written(self.subject, assignment, self.path(assignment))


def written(subject: Subject, assignment: Assignment, path: Path) -> Path:
    """The file of an assignment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(materialize(subject.model, subject.encoding(assignment)), path)
    return path


def stored_bytes(path: Path) -> int:
    """Bytes of all constants, as OpenVINO writes the network."""
    import openvino

    if path.suffix == ".xml":
        return path.with_suffix(".bin").stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(openvino.Core().read_model(path), f"{folder}/model.xml", compress_to_fp16=False)
        return (Path(folder) / "model.bin").stat().st_size


def _not_larger(subject: Subject, size: int, path: Path) -> Path:
    """The file of the best assignment that OpenVINO stores in so many bytes; limits count other details."""
    limit = float(size)
    while True:
        written(subject, solve(subject.table, {"size": limit}), path)
        if (excess := stored_bytes(path) - size) <= 0:
            return path
        limit -= excess


def _row(
    what: str,
    path: Path,
    judges: tuple[Judge, Judge],
    references: Sequence[tuple[NDArray[np.float64], list[NDArray[Any]]]],
    evaluations: int,
    partial: float,
) -> Row:
    (scores, _), (unseen, outputs) = (judge(path) for judge in judges)
    lost = references[1][0] - unseen
    noise = sum(
        float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(references[1][1], outputs, strict=True)
    )
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in references[1][1])
    return Row(
        what=what,
        stored=stored_bytes(path),
        evaluations=evaluations,
        partial=partial,
        drop=float((references[0][0] - scores).mean()),
        unseen_drop=float(lost.mean()),
        unseen_error=float(lost.std(ddof=1) / np.sqrt(lost.size)),
        sqnr_db=10 * float(np.log10(signal / noise)) if noise > 0 else float("inf"),
    )


def _nncf(asked: Contest, folder: Folder, output: Path, *, python: Path, preset: str) -> list[int]:
    """Run it where it was not run; for each call of the metric the number of samples."""
    calls = output.with_suffix(".calls.json")
    if not calls.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [str(python), str(HERE / "peers" / "nncf_accuracy.py"), str(folder.float_model)]
        command += [str(folder.calibration), str(folder.root / "validation"), str(output), "--preset", preset]
        command += ["--metric", asked.metric, "--max-drop", str(asked.max_drop)]
        quiet = {"NNCF_CI": "1", "OPENVINO_TELEMETRY_DISABLED": "1"}
        with (output.parent / "log.txt").open("w", encoding="utf-8") as log:
            subprocess.run(command, env=os.environ | quiet, stdout=log, stderr=subprocess.STDOUT, check=True)
    found: list[int] = json.loads(calls.read_text(encoding="utf-8"))
    return found


def _samples(asked: Contest, folder: Folder, part: str) -> Path:
    """A folder of samples with their targets, filled where it is not."""
    made, count = folder.root / part, getattr(asked, part)
    if made.exists() and len(list(made.glob("*.npz"))) == count:
        return made
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for index, (feeds, target) in enumerate(_with_targets(asked, folder, part)):
        np.savez(made / f"{index:05d}.npz", target=target, **feeds)
    return made


def _with_targets(asked: Contest, folder: Folder, part: str) -> Iterable[tuple[Feeds, NDArray[Any]]]:
    if asked.name == FASHION:
        start, count = (0, asked.validation) if part == "validation" else (asked.validation, asked.unseen)
        labels = fashion.test_images().labels[start : start + count].numpy()
        yield from zip(images(start, count), labels, strict=True)
        return
    # No two heads of the two parts are moved alike; the target is what the float network says.
    session = Judge.session(folder.float_model)
    for feeds in colin(getattr(asked, part), seed=11 if part == "validation" else 12):
        (logits,) = session(feeds).values()
        yield feeds, logits[0, 0] > 0


def markdown(asked: Contest, rows: Sequence[Row]) -> str:
    head = ("file", "stored [kB]", "full evaluations", "others", "drop", "drop on unseen samples", "SQNR [dB]")
    cells = (
        (
            row.what,
            number(row.stored / 1e3, 1),
            str(row.evaluations) if row.evaluations else "-",
            number(row.partial, 1) if row.evaluations else "-",
            f"{row.drop:.5f}",
            f"{row.unseen_drop:.5f} +- {row.unseen_error:.5f}",
            number(row.sqnr_db, 1),
        )
        for row in rows
    )
    text = f"{asked.name}: metric {asked.metric}, max_drop {asked.max_drop:g}, {asked.validation} validation samples, "
    return f"{text}{asked.unseen} unseen\n\n{table(head, cells)}"


def plain(asked: Contest, rows: Sequence[Row]) -> Mapping[str, Any]:
    return asdict(asked) | {"rows": [asdict(row) for row in rows]}


CONTESTS = (
    Contest(name=FASHION, metric="probability", max_drop=0.0005, validation=2000, unseen=8000),
    Contest(name=BRAIN, metric="dice", max_drop=0.002, validation=8, unseen=16),
)
