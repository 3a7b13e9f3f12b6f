"""A trained nnU-Net: nnunetv2's own prediction on the CPU beside the same with the network on an engine.

python benchmarks/nnunet.py                train (kept), export, quantize (kept), predict in turns, print the tables
python benchmarks/nnunet.py --report       the tables of the last run again

Needs `pip install 'fptq[nnunet,openvino]'` and nnunetv2: docs/how-to-nnunet.md
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from fptq.engines import ENGINES, CompileOptions
from fptq.engines.cpu import detect
from fptq.graph.load import LoadOptions, load
from fptq.graph.nnunet import find_folds, new_predictor, open_fold, quiet
from fptq.graph.trust import Trust
from fptq.graph.write import save
from fptq.recipes import nnunet_predictor, predict_nnunet, quantize_nnunet
from fptq.recipes.compiled import compiled_folds
from fptq.recipes.nnunet import facts_of
from fptq.recipes.nnunet_predict import put_in
from fptq.tasks.metrics import dice
from fptq.types import Array
from layout import HERE
from nnunet_colin import LABELS, PARTS, copies, images, trained
from tables import table
from turns import in_turns

ROOT = HERE / "results" / "nnunet"
PEER = "nnunetv2"
TILINGS: Mapping[str, Mapping[str, Any]] = {
    "mirroring": {"use_mirroring": True},
    "no mirroring": {"use_mirroring": False},
}
AGREEMENT, DICE, TIME = 0.9999, 0.99, 0.6
"""What is asked: of float label maps, of int8 ones, and of the time over nnunetv2's."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network and what is measured on it.

    Attributes:
        results: nnU-Net's folder.
        float_model: Its network as an ONNX file.
        threads: Of every contender.
        cases: How many to predict.
    """

    results: Path
    float_model: Path
    threads: int
    cases: int

    @property
    def images(self) -> Path:
        """A folder of the test cases, as links."""
        folder = ROOT / "cases"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in sorted(images(ROOT, "imagesTs").iterdir())[: self.cases]:
            (folder / path.name).symlink_to(path)
        return folder

    def labels(self) -> Array:
        """Of the test cases."""
        return np.stack([label for _, _, label in copies(PARTS["imagesTs"][: self.cases])])

    @property
    def source(self) -> str:
        return f"nnunet:{self.results}:0"


def main() -> None:
    arguments = _arguments()
    kept = ROOT / "measured.json"
    if not arguments.report:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(_measured(arguments), indent=1))
    print(_report(json.loads(kept.read_text())))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="print the last run's tables again")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", type=int, default=len(PARTS["imagesTs"]), help="test cases to predict")
    return parser.parse_args()


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(arguments.threads)
    with quiet():
        results = trained(ROOT)
    subject = Subject(
        results=results, float_model=ROOT / "float.onnx", threads=arguments.threads, cases=arguments.cases
    )
    seconds = {"export": _export(subject)} | {f"quantize for {name}": _quantized(subject, name) for name in _engines()}
    found: dict[str, Any] = {"machine": _machine(arguments.threads), "seconds": seconds, "cases": subject.cases}
    found["tilings"] = {}
    for name, tiling in TILINGS.items():
        found["tilings"][name] = _contest(subject, name, tiling, turns=arguments.turns)
    return found


def _engines() -> tuple[str, ...]:
    return tuple(name for name in ("openvino", "onnxruntime") if ENGINES[name].version() is not None)


def _export(subject: Subject) -> float:
    start = time.perf_counter()
    save(load(subject.source, options=LoadOptions(trust=Trust.SOURCE)), subject.float_model)
    return time.perf_counter() - start


def _quantized(subject: Subject, engine: str) -> float:
    """Seconds of `fptq quantize`; what is there already is not made again."""
    folder = ROOT / f"quantized-{engine}"
    if not (folder / "seconds.json").exists():
        start = time.perf_counter()
        calibration = images(ROOT, "imagesCal")
        made = quantize_nnunet(
            subject.source, calibration=calibration, engine=engine, threads=subject.threads, trust=True
        )
        made.save(folder)
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - start))
    return float(json.loads((folder / "seconds.json").read_text()))


def _contest(subject: Subject, name: str, tiling: Mapping[str, Any], *, turns: int) -> dict[str, Any]:
    """Whole predictions in turns: the start of the engine, and all from images to label maps."""
    makers: dict[str, Callable[[], Any]] = {PEER: partial(_theirs, subject, tiling)}
    for engine in _engines():
        makers[f"float on {engine}"] = partial(_float, subject, engine, tiling)
        makers[f"int8 on {engine}"] = partial(
            nnunet_predictor, ROOT / f"quantized-{engine}", threads=subject.threads, **tiling
        )
    outputs = {label: ROOT / "segmentations" / name / label for label in makers}
    given = subject.images
    work = {label: partial(_predict, make, given, outputs[label]) for label, make in makers.items()}
    timed = in_turns(work, turns=turns, seconds=3600)
    maps = {label: _maps(folder) for label, folder in outputs.items()}
    files = {label: sorted(path.name for path in folder.iterdir()) for label, folder in outputs.items()}
    return {
        label: {
            "seconds": timed.seconds(label),
            "ratio": timed.ratio(label, PEER).wall,
            "turns": len(timed.wall[label]),
            "same files": files[label] == files[PEER],
            "agreement": float(np.mean(maps[label] == maps[PEER])),
            "dice": _dice(maps[label], maps[PEER]),
            "dice of labels": _dice(maps[label], subject.labels()),
        }
        for label in makers
    }


def _theirs(subject: Subject, tiling: Mapping[str, Any]) -> Any:
    predictor = new_predictor(**tiling)
    predictor.initialize_from_trained_model_folder(str(subject.results), (0,), "checkpoint_final.pth")
    return predictor


def _float(subject: Subject, engine: str, tiling: Mapping[str, Any]) -> Any:
    trained_folds = find_folds(subject.source)
    facts = facts_of(open_fold(trained_folds, "0", trust=Trust.SOURCE), trained_folds)
    options = CompileOptions(threads=subject.threads, float_precision="f32")
    compiled = compiled_folds([subject.float_model], options, engine=engine)
    return put_in(new_predictor(**tiling), compiled, folder=subject.results, facts=facts)


def _predict(make: Callable[[], Any], given: Path, output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with quiet():
        predict_nnunet(make(), given, output=output)


def _maps(folder: Path) -> Array:
    return np.stack([np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))])


def _dice(found: Array, expected: Array) -> dict[str, float]:
    """Per class, over all cases."""
    return {name: dice(found == label, expected == label) for name, label in LABELS.items() if label}


def _machine(threads: int) -> str:
    from importlib.metadata import version

    import torch

    engines = ", ".join(f"{name} {ENGINES[name].version()}" for name in _engines())
    cpu = detect()
    return (
        f"{cpu.name} ({', '.join(sorted(cpu.features))}), {os.cpu_count()} cores, {threads} threads; "
        f"nnunetv2 {version('nnunetv2')}, torch {torch.__version__}, {engines}"
    )


def _report(found: Mapping[str, Any]) -> str:
    made = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in found["seconds"].items())
    parts = [found["machine"], f"{made[0].upper()}{made[1:]}."]
    for name, contest in found["tilings"].items():
        head = ["", "prediction [s]", "of nnunetv2", "files", "voxels agree", *(f"Dice {c}" for c in _classes())]
        rows = [_row(label, entry) for label, entry in contest.items()]
        turns = next(iter(contest.values()))["turns"]
        parts.append(f"## {found['cases']} cases, {name}, step 0.5, Gaussian, {turns} turns\n\n{table(head, rows)}")
    return "\n\n".join([*parts, _caption(found), *_bars(found)])


def _caption(found: Mapping[str, Any]) -> str:
    scores = {label: entry["dice of labels"] for label, entry in next(iter(found["tilings"].values())).items()}
    shown = "; ".join(f"{label} {', '.join(f'{v:.3f}' for v in entry.values())}" for label, entry in scores.items())
    return f"Dice is against nnunetv2's own label maps. Against the labels of the copies: {shown}."


def _classes() -> list[str]:
    return [name for name, label in LABELS.items() if label]


def _row(label: str, entry: Mapping[str, Any]) -> list[str]:
    same = "the same" if entry["same files"] else "**other**"
    times = [f"{entry['seconds']:.1f}", f"{entry['ratio']:.2f}"]
    return [label, *times, same, f"{entry['agreement']:.6f}", *(f"{entry['dice'][c]:.4f}" for c in _classes())]


def _bars(found: Mapping[str, Any]) -> list[str]:
    """What is asked, over both tilings."""
    rows = [(label, entry) for contest in found["tilings"].values() for label, entry in contest.items()]
    floats = [entry for label, entry in rows if label.startswith("float")]
    ints = [entry for label, entry in rows if label.startswith("int8")]
    exact = min(entry["agreement"] for entry in floats)
    worst = min(min(entry["dice"].values()) for entry in ints)
    best = {
        name: min(e["ratio"] for label, e in contest.items() if label.startswith("int8"))
        for name, contest in found["tilings"].items()
    }
    lines = [
        ("float: least voxel agreement", exact, AGREEMENT, exact >= AGREEMENT),
        ("int8: least Dice of a class against float", worst, DICE, worst >= DICE),
        *(
            (f"int8: time over nnunetv2's, {name}, best engine", ratio, TIME, ratio <= TIME)
            for name, ratio in best.items()
        ),
    ]
    return [
        table(
            ("what", "value", "bar", ""),
            ((w, f"{v:.4f}", f"{b:g}", "met" if ok else "**missed**") for w, v, b, ok in lines),
        )
    ]


if __name__ == "__main__":
    main()
