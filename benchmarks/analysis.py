"""The executor and the sensitivities: as right and as fast as they should be?

python benchmarks/analysis.py                               everything
python benchmarks/analysis.py executor --networks deepbet   one part, some networks
python benchmarks/analysis.py report                        the tables of the last runs again
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis_memory import peak_mb
from analysis_ranking import ranking
from analysis_subjects import NAMES, loaded, opened, subject
from fptq.analyze import fisher_sensitivity, split
from fptq.execute import Executor
from fptq.graph.parity import run_graph
from layout import HERE
from tables import table
from turns import in_turns

RESULTS = HERE / "results" / "analysis"
EXECUTOR = ("deepbet", "basicunet", "swinunetr", "antiberty", *(name for name in NAMES if name.startswith("resnet18")))
SENSITIVITY = {"deepbrain": 1, "fashion-w16": 8, "deepbet": 1, "basicunet": 1, "encoder": 2}
"""Networks, and samples that are timed: what is done once for all samples weighs more on small networks."""

RANKING = {"deepbrain": 4, "fashion-w16": 8, "deepbet": 2}
"""Networks, and samples that judge: batches of 32 images of FashionMNIST, single heads."""

Row = dict[str, Any]


def executor_row(name: str, arguments: argparse.Namespace) -> Row:
    """Difference from ONNX Runtime, and time beside torch eager."""
    found = subject(name)
    model, sample = loaded(name, found), found.samples[0]
    executor = Executor.open(model)
    expected = run_graph(model.graph_model, sample)
    with torch.no_grad():
        outputs = executor.run(sample)
        errors = [np.abs(outputs[key].numpy() - value).max() / np.abs(value).max() for key, value in expected.items()]
        work = {"eager": found.eager(sample), "executor": partial(executor.run, sample)}
        times = in_turns(work, turns=arguments.turns, seconds=arguments.seconds)
    ratio = times.ratio("executor", "eager")
    return {"error": float(max(errors)), "eager_s": times.seconds("eager"), **asdict(ratio)}


def sensitivity_row(name: str, arguments: argparse.Namespace) -> Row:
    """Time in plain forward runs, and memory beside a plain backward pass."""
    found = opened(name)
    samples = found.samples[: SENSITIVITY[name]]

    def forward() -> None:
        with torch.no_grad():
            for sample in samples:
                found.executor.run(sample)

    def fisher(units: Any) -> None:
        fisher_sensitivity(found.executor, units, found.encodings, samples)

    work = {
        "forward": forward,
        "together": partial(fisher, found.units),
        "apart": partial(fisher, split(found.units)),
    }
    times = in_turns(work, turns=arguments.turns, seconds=arguments.seconds)
    row: Row = {"units": len(found.units), "samples": len(samples), "forward_s": times.seconds("forward")}
    row |= {what: asdict(times.ratio(what, "forward")) for what in ("together", "apart")}
    return row | {"peak_mb": {what: peak_mb(name, what) for what in ("backward", "together", "apart")}}


def ranking_row(name: str, arguments: argparse.Namespace) -> Row:
    """Rank correlation with leave-one-in."""
    found = opened(name)
    return asdict(ranking(found, found.samples[: arguments.samples or RANKING[name]]))


PARTS: Mapping[str, tuple[Iterable[str], Callable[[str, argparse.Namespace], Row]]] = {
    "executor": (EXECUTOR, executor_row),
    "sensitivity": (SENSITIVITY, sensitivity_row),
    "ranking": (RANKING, ranking_row),
}


def markdown(rows: Mapping[str, Mapping[str, Row]]) -> str:
    """The tables of what was measured."""
    cells = {"executor": _executor_cells, "sensitivity": _sensitivity_cells, "ranking": _ranking_cells}
    heads = {
        "executor": ("network", "error", "time / eager", "CPU time / eager", "turns", "eager [ms]"),
        "sensitivity": (
            "network", "units", "together", "together, CPU", "apart", "apart, CPU", "turns", "forward [ms]",
            "peak / backward", "apart, peak / backward", "backward [MB]",
        ),
        "ranking": ("network", "units", "samples", "all pairs", "95 %", "by format"),
    }  # fmt: skip
    parts = (
        f"## {part}\n\n" + table(heads[part], ([name, *cells[part](row)] for name, row in found.items()))
        for part, found in rows.items()
        if found
    )
    return "\n\n".join(parts)


def _executor_cells(row: Row) -> list[str]:
    numbers = [f"{row['error']:.1e}", f"{row['wall']:.2f}", f"{row['cpu']:.2f}", str(row["turns"])]
    return [*numbers, f"{row['eager_s'] * 1e3:.1f}"]


def _sensitivity_cells(row: Row) -> list[str]:
    ratios = [f"{row[what][clock]:.1f}" for what in ("together", "apart") for clock in ("wall", "cpu")]
    peak = row["peak_mb"]
    memory = [f"{peak[what] / peak['backward']:.2f}" for what in ("together", "apart")]
    turns = str(row["together"]["turns"])
    return [str(row["units"]), *ratios, turns, f"{row['forward_s'] * 1e3:.1f}", *memory, f"{peak['backward']:.0f}"]


def _ranking_cells(row: Row) -> list[str]:
    low, high = row["interval"]
    by_format = ", ".join(f"{name} {value:.3f}" for name, value in row["by_format"].items())
    return [str(row["units"]), str(row["samples"]), f"{row['overall']:.3f}", f"{low:.3f} to {high:.3f}", by_format]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    for part in [] if arguments.part == "report" else [arguments.part] if arguments.part != "all" else PARTS:
        names, measure = PARTS[part]
        for name in names:
            if not arguments.networks or name in arguments.networks:
                row = measure(name, arguments)
                path = RESULTS / part / f"{name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
                print(part, name, json.dumps(row), flush=True)
    print(markdown({part: _read(RESULTS / part, names) for part, (names, _) in PARTS.items()}))


def _read(folder: Path, names: Iterable[str]) -> dict[str, Row]:
    paths = ((name, folder / f"{name}.json") for name in names)
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths if path.exists()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="all", choices=("all", "report", *PARTS))
    parser.add_argument("--networks", nargs="+", choices=list(NAMES))
    parser.add_argument("--turns", type=int, default=25, help="timed turns at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="no new turn after this long")
    parser.add_argument("--samples", type=int, default=0, help="that judge the ranking; 0: as many as usual")
    parser.add_argument("--threads", type=int, default=1, help="with one, processor time does not count neighbours")
    return parser.parse_args()


if __name__ == "__main__":
    main()
