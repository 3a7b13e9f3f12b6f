"""Mixed precision: the integer program, accuracy control beside NNCF's, and how often an accuracy floor holds.

python benchmarks/mixed.py                         everything; takes an hour or two on two cores
python benchmarks/mixed.py --parts solver floor    some of it
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mixed_control
import mixed_floor
import mixed_networks
import mixed_solver
from artifacts import peers_python
from layout import HERE, Folder
from measure import read_samples
from mixed_subjects import BRAIN, FASHION, NAMES, prepared, stacked

PARTS = ("solver", "networks", "control", "floor")
CHOOSING = 2
"""Calibration samples, or batches of them, that are run to choose between assignments."""
SEEN = {FASHION: {"right": (75, 150, 300), "probability": (75, 150)}, BRAIN: {"dice": (8, 16)}}
"""Samples that a search sees, by subject and score."""


def main() -> None:
    arguments = _arguments()
    arguments.results.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        for name, text, data in PART[part](arguments):
            print(f"{name}\n\n{text}\n", flush=True)
            (arguments.results / f"{part}_{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            (arguments.results / f"{part}_{name}.md").write_text(text + "\n", encoding="utf-8")


Made = Iterator[tuple[str, str, Any]]


def _solver(arguments: argparse.Namespace) -> Made:
    found = list(mixed_solver.measured())
    yield "tables", mixed_solver.markdown(found), mixed_solver.summary(found)


def _networks(arguments: argparse.Namespace) -> Made:
    for name in arguments.subjects:
        folder = prepared(name, arguments.results)
        choosing, evaluation = (read_samples(part) for part in (folder.calibration, folder.evaluation))
        if name == FASHION:  # in one batch
            choosing, evaluation = (stacked(choosing),), (stacked(evaluation),)
        found = mixed_networks.compared(name, folder, choosing=choosing[:CHOOSING], evaluation=evaluation)
        yield name, mixed_networks.markdown(found), mixed_networks.plain(found)


def _control(arguments: argparse.Namespace) -> Made:
    python = arguments.peers_python or peers_python(HERE.parent / ".venv-peers")
    for asked in mixed_control.CONTESTS:
        if asked.name in arguments.subjects:
            rows = mixed_control.contest(asked, prepared(asked.name, arguments.results), python=python)
            yield asked.name, mixed_control.markdown(asked, rows), mixed_control.plain(asked, rows)


def _floor(arguments: argparse.Namespace) -> Made:
    for name, scores in SEEN.items():
        if name not in arguments.subjects:
            continue
        for front in mixed_floor.scored(name, prepared(name, arguments.results)):
            found = [
                mixed_floor.broken(front, samples=samples, max_drop=drop, searches=arguments.searches)
                for samples in scores[front.metric]
                for drop in mixed_floor.hard_floors(front, arguments.floors)
            ]
            yield f"{name}_{front.metric}", mixed_floor.markdown(found), mixed_floor.plain(found)


PART = dict(zip(PARTS, (_solver, _networks, _control, _floor), strict=True))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--subjects", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--searches", type=int, default=200, help="for each floor and number of samples")
    parser.add_argument("--floors", type=int, default=4, help="floors for each score")
    parser.add_argument("--results", type=Path, default=Folder(name="mixed").root, help="work folder")
    parser.add_argument("--peers-python", type=Path, help="the interpreter of an environment that has NNCF")
    return parser.parse_args()


if __name__ == "__main__":
    main()
