"""AntiBERTy in int8 beside the other tools: latency at several lengths and batches, size, scores.

python benchmarks/proteins_speed.py                        everything; what is already made is not made again
python benchmarks/proteins_speed.py --parts latency        one part: latency or scores
python benchmarks/proteins_speed.py --report               the tables of the last run again
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import antiberty
from artifacts import FPTQ, TOOLS, Artifact, make, peers_python
from contest import compiled, finalists, machine
from fptq.demo.assets import fetch
from fptq.engines import Session
from fptq.feeds.fasta import Protein
from fptq.feeds.tokenizer import open_tokenizer
from fptq.feeds.tokens import MaskedTokens, token_input
from fptq.graph.load import load
from fptq.tasks import Scores, paired_drop
from fptq.tasks.proteins import ProteinOutputs, ProteinTask
from fptq.types import Feeds
from layout import HERE, Folder
from measure import ONNXRUNTIME, OPENVINO, OPENVINO_F32, TIMED, Latency, Setting, latencies
from tables import number, table

SHAPES = ((1, 128), (1, 256), (16, 128), (16, 256))
"""Batch and tokens."""
CALIBRATION, SEED, OPSET = 100, 0, 20
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
Times = dict[str, dict[str, Latency]]


def main() -> None:
    arguments = _arguments()
    folder = Folder(name="antiberty", results=arguments.results)
    if not arguments.report:
        python = arguments.peers_python or peers_python(HERE.parent / ".venv-peers")
        calibration, evaluation = _split(arguments.sequences)
        _prepare(folder, calibration)
        files = _files(folder, python)
        if "latency" in arguments.parts:
            for shape, times in _latency(files, rounds=arguments.rounds, seconds=arguments.seconds):
                _keep(folder, "latency", _read(folder, "latency") | {shape: times})
        if "scores" in arguments.parts:
            _keep(folder, "scores", _scores(files, folder, evaluation))
        _keep(folder, "files", {label: file.error or f"{file.size_mb:.2f}" for label, file in files.items()})
        _keep(folder, "machine", machine(list(files.values())))
    text = _report(folder)
    print(text)
    (folder.root / "speed.md").write_text(text + "\n", encoding="utf-8")


def _split(most: int | None) -> tuple[list[Protein], list[Protein]]:
    """Calibration and evaluation sequences; none is in both."""
    sequences = antiberty.read_sequences(fetch("antibodies"))
    proteins = [Protein(name=f"vh{i:04d}", residues=s) for i, s in enumerate(sequences)]
    order = np.random.default_rng(SEED).permutation(len(proteins))
    chosen, rest = order[:CALIBRATION], order[CALIBRATION:]
    return [proteins[i] for i in chosen], [proteins[i] for i in sorted(rest[:most])]


def _prepare(folder: Folder, calibration: list[Protein]) -> None:
    """Write the float network, of any batch and length, and its calibration samples, unless they are there."""
    source = Path(antiberty.__file__).read_bytes() + f"{CALIBRATION} {SEED} {OPSET}".encode()
    key = hashlib.sha256(source).hexdigest()
    stamp = folder.root / "made_from"
    if stamp.exists() and stamp.read_text() == key:
        return
    shutil.rmtree(folder.root, ignore_errors=True)
    folder.calibration.mkdir(parents=True)
    tokenizer = open_tokenizer(str(fetch("antiberty-vocabulary")))
    for index, (tokens,) in enumerate(MaskedTokens.of(calibration, tokenizer, seed=SEED)):
        np.savez(folder.calibration / f"{index:03d}.npz", tokens=tokens)
    network = antiberty.load_antiberty(fetch("antiberty"))
    sizes = {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("length", max=512)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.ones(2, 130, dtype=torch.int64),),
            input_names=["tokens"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamic_shapes=(sizes,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(folder.float_model)
    stamp.write_text(key)


def _files(folder: Folder, python: Path) -> dict[str, Artifact]:
    presets = [(tool, preset) for tool in TOOLS for preset in tool.presets(folder.name)]
    made = [make(tool, preset, folder, python=python, samples=CALIBRATION) for tool, preset in presets]
    whole = Artifact(tool="float", preset="", path=folder.float_model)
    return {file.label: file for file in (whole, *made)}


def _latency(files: Mapping[str, Artifact], *, rounds: int, seconds: float) -> Iterator[tuple[str, Times]]:
    """By shape, file and setting; a peer enters with the preset that is fastest at that shape and setting."""
    usable = {label: file for label, file in files.items() if not file.error}
    for batch, length in SHAPES:
        feeds = _tokens(batch, length)
        times: Times = {}
        for group in ((OPENVINO_F32, OPENVINO), (ONNXRUNTIME,)):
            timed = latencies(dict(_sessions(group, usable, feeds)), feeds, rounds=rounds, seconds=seconds)
            for name, latency in timed.items():
                label, setting = name.split("|")
                times.setdefault(label, {})[setting] = latency
        yield f"{batch} x {length}", times


def _sessions(group: tuple[Setting, ...], files: Mapping[str, Artifact], feeds: Feeds) -> Iterator[tuple[str, Session]]:
    for setting in group:
        for label in finalists(files, setting, feeds):
            session = compiled(setting, files[label].path)
            if session is not None:
                yield f"{label}|{setting.name}", session


def _tokens(batch: int, length: int) -> Feeds:
    """Random residues between a start and an end mark: time does not depend on which."""
    tokenizer = open_tokenizer(str(fetch("antiberty-vocabulary")))
    letters = np.random.default_rng(SEED).choice(list(LETTERS), (batch, length - 2))
    return {"tokens": np.stack([np.asarray(tokenizer.encode("".join(row)), np.int64) for row in letters])}


def _scores(files: Mapping[str, Artifact], folder: Folder, proteins: list[Protein]) -> dict[str, dict[str, object]]:
    """Of the float network and fptq's file on each engine, on sequences that calibration has not seen."""
    model, tokenizer = load(folder.float_model), open_tokenizer(str(fetch("antiberty-vocabulary")))
    task = ProteinTask(
        proteins=tuple(proteins),
        tokenizer=tokenizer,
        network=token_input(model, tokenizer),
        outputs=ProteinOutputs.of(model.outputs),
        seed=SEED + 1,
        metrics=("accuracy", "nll"),
    )
    return {
        setting.name: _compared(task.evaluate_all({n: setting.compile(p) for n, p in _pair(files, setting).items()}))
        for setting in (OPENVINO_F32, ONNXRUNTIME)
    }


def _pair(files: Mapping[str, Artifact], setting: Setting) -> dict[str, Path]:
    return {"float": files["float"].path, "int8": files[f"{FPTQ}, {setting.engine}"].path}


def _compared(scores: Mapping[str, Scores]) -> dict[str, object]:
    """The scores of both, and the loss with its interval."""
    found: dict[str, object] = {}
    for before in scores["float"]:
        after = scores["int8"][before.name]
        drop = paired_drop(before, after)
        found[before.name] = [before.value, after.value, drop.value, drop.low, drop.high]
    found |= {entry.name: [entry.value] for entry in scores["int8"] if entry.name.startswith("agreement")}
    return found


def _keep(folder: Folder, part: str, content: object) -> None:
    path = folder.root / f"{part}.json"
    path.write_text(json.dumps(content, indent=1, default=asdict) + "\n", encoding="utf-8")


def _read(folder: Folder, part: str) -> dict[str, dict[str, object]]:
    path = folder.root / f"{part}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _report(folder: Folder) -> str:
    files = _read(folder, "files")
    rows = [("", *(setting.name for setting in TIMED))]
    parts = [str(_read(folder, "machine")), table(("file", "size [MB], or why there is none"), files.items())]
    for shape, times in _read(folder, "latency").items():
        rows = [_latency_row(label, times, shape) for label in times]
        parts.append(f"## {shape}\n\n" + table(("file", *(f"{s.name} [ms]" for s in TIMED), "float f32 / this"), rows))
    for setting, scores in _read(folder, "scores").items():
        rows = [(name, *(f"{value:.5f}" for value in values)) for name, values in scores.items()]
        padded = [(*row, *[""] * (6 - len(row))) for row in rows]
        parts.append(f"## Scores, {setting}\n\n" + table(("score", "float", "int8", "loss", "low", "high"), padded))
    return "\n\n".join(parts)


def _latency_row(label: str, times: dict, shape: str) -> tuple[str, ...]:
    own, whole = times[label], times["float"]
    cells = [f"{own[s.name]['median_ms']:.1f} ({own[s.name]['counted']})" if s.name in own else "-" for s in TIMED]
    reference = {
        OPENVINO_F32.name: OPENVINO_F32.name,
        OPENVINO.name: OPENVINO_F32.name,
        ONNXRUNTIME.name: ONNXRUNTIME.name,
    }
    ratios = [
        number(whole[reference[s.name]]["median_ms"] / own[s.name]["median_ms"], 2) if s.name in own else "-"
        for s in TIMED
    ]
    return (label, *cells, " / ".join(ratios))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("latency", "scores"), default=("latency", "scores"))
    parser.add_argument(
        "--sequences", type=int, help="evaluation sequences, all that calibration has not seen if left out"
    )
    parser.add_argument("--rounds", type=int, default=11, help="timed turns")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of the turns on each engine")
    parser.add_argument("--results", type=Path, default=Folder(name="").results, help="work folder")
    parser.add_argument("--peers-python", type=Path, help="the interpreter of an environment that has the peers")
    parser.add_argument("--report", action="store_true", help="only print what was measured before")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
