"""Networks of few bits: every method in every format, on a ResNet-18 trained on FashionMNIST.

python benchmarks/lowbit.py                                        the table; what was run is not run again
python benchmarks/lowbit.py --formats w2a2 --methods qdrop genie   some of it
python benchmarks/lowbit.py --report                               the table of what was run
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

import fashion
from fptq.calibrate import collect, needed, weight_params
from fptq.config import Recipe
from fptq.execute import Executor, Overlay
from fptq.graph.load import load
from fptq.plan import PROFILES, Encoding, place
from fptq.plan.edges import Setting
from fptq.recipes.formats import Format
from fptq.recipes.lowbit import low_bit_plan
from fptq.recipes.narrow import Source
from fptq.recipes.observers import calibration_options
from fptq.reconstruct import METHODS, ReconstructionOptions, reconstruct
from fptq.reconstruct.closed_form import ClosedFormOptions, gptaq, output_correction, ridge_correction
from fptq.reconstruct.task import MEASURED
from fptq.types import Feeds
from layout import HERE

FORMATS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a4", "w2a2")
CLOSED = ("nearest", "correction", "ridge", "gptaq", "closed")
"""Without learning; "closed" is fptq's own default."""
LEARNED = ("adaround", "brecq", "qdrop", "genie", "pd-quant", "ae-qdrop", "auto")
IMAGES, BATCH = 1024, 32
ENGINE = "onnxruntime"
"""Its placement leaves the batch free."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of few bits.

    Attributes:
        accuracy: Top-1 on the 10,000 test images.
        agreement: Share of them on which it says what the float network says.
        seen: The same share on the calibration images: far above `agreement` it has over-fitted.
        divergence: Mean KL divergence to the float network on the test images [nat].
        seconds: Elapsed time of the method [s].
        cpu_s: Its processor time [s].
        suffix_s: What running the frozen rest of the network took of that [s].
    """

    accuracy: float
    agreement: float
    seen: float
    divergence: float
    seconds: float
    cpu_s: float
    suffix_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is run.

    Attributes:
        width: Of the ResNet-18.
        precision: Format of the layers between the ends.
        setting: What keeps eight bits at the ends.
        method: How codes are found.
        iterations: For each block, of a learned method.
        seed: Of the calibration images and the method.
    """

    width: int
    precision: str
    setting: Setting
    method: str
    iterations: int
    seed: int

    @property
    def path(self) -> Path:
        name = f"{self.precision}-{self.setting}-{self.method}-{self.iterations}-{self.seed}.json"
        return HERE / "results" / "lowbit" / f"w{self.width}" / name


@dataclass(frozen=True)
class Batches:
    """Calibration images in batches."""

    images: np.ndarray

    def __iter__(self) -> Iterator[Feeds]:
        return ({"image": part} for part in np.split(self.images, len(self.images) // BATCH))

    def __len__(self) -> int:
        return len(self.images) // BATCH


@cache
def executor_of(width: int) -> Executor:
    """The float network; its batch axis is free."""
    images = _calibration(0).images
    model = load(fashion.train(width, 3), example=torch.from_numpy(images[:2]), others=[torch.from_numpy(images[:3])])
    return Executor.open(model)


@cache
def _calibration(seed: int) -> Batches:
    images = fashion.train_images()
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(images))[:IMAGES].copy())
    return Batches(images.normalized(chosen).numpy())


def start(case: Case) -> Encoding:
    """The numbers before any repair: nearest rounding, in the ranges that lose least."""
    executor, given, profile = executor_of(case.width), Format.parse(case.precision), PROFILES[ENGINE]
    name = executor.input_names[0]
    placed = place(executor.model, profile, profile.variants[0])
    plan = low_bit_plan(executor.model, placed, given, case.setting)
    options = calibration_options(Recipe(), ("lp", "minmax"), 1)
    feeds = [{name: feeds["image"]} for feeds in _calibration(case.seed)]
    found = collect(executor.model, needed(plan, [options.observer]), feeds)
    source = Source(model=executor.model, statistics=found, recipe=Recipe(), pair=("lp", "minmax"), samples=feeds)
    return source.numbers(plan, given)


def run(case: Case) -> Row:
    """Find the codes and score them."""
    executor, encoding = executor_of(case.width), start(case)
    name = executor.input_names[0]
    feeds = [{name: feeds["image"]} for feeds in _calibration(case.seed)]
    begun, cpu = time.perf_counter(), time.process_time()
    repaired, found, suffix_s = _repaired(case, executor, encoding, feeds)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    test = fashion.test_images()
    exact, logits = (_logits(one, hook, test.normalized(slice(None))) for one, hook in _pair(executor, repaired, found))
    seen = torch.from_numpy(_calibration(case.seed).images)
    before, after = (_logits(one, hook, seen).argmax(1) for one, hook in _pair(executor, repaired, found))
    log_p, log_q = exact.double().log_softmax(1), logits.double().log_softmax(1)
    return Row(
        accuracy=float((logits.argmax(1) == test.labels).double().mean()),
        agreement=float((logits.argmax(1) == exact.argmax(1)).double().mean()),
        seen=float((before == after).double().mean()),
        divergence=float((log_p.exp() * (log_p - log_q)).sum(1).mean()),
        seconds=seconds,
        cpu_s=cpu_s,
        suffix_s=suffix_s,
    )


def _repaired(
    case: Case, executor: Executor, encoding: Encoding, feeds: Sequence[Feeds]
) -> tuple[Executor, Encoding, float]:
    """The network, its encoding, and the seconds that the frozen suffix took."""
    match case.method:
        case "nearest":
            return executor, encoding, 0.0
        case "gptaq" | "closed":
            options = ClosedFormOptions(seed=case.seed) if case.method == "gptaq" else replace(MEASURED, seed=case.seed)
            made = gptaq(executor, encoding, feeds, options=options)
        case "correction":
            made = output_correction(executor, encoding, feeds, options=ClosedFormOptions(seed=case.seed))
        case "ridge":
            observer = calibration_options(Recipe(), ("lp", "lp"), 1).weight_observer
            made = ridge_correction(executor, encoding, feeds, lambda w, spec: weight_params(w, spec, observer))
        case _:
            method = METHODS[case.method].shortened(case.iterations)
            learned = reconstruct(
                executor, encoding, feeds, method=method, options=ReconstructionOptions(seed=case.seed)
            )
            return executor, learned.encoding, sum(unit.prediction_seconds for unit in learned.units)
    return made.executor, made.encoding, 0.0


def _pair(executor: Executor, repaired: Executor, encoding: Encoding):
    return ((executor, None), (repaired, Overlay(encoding=encoding)))


@torch.no_grad()
def _logits(executor: Executor, hook: Overlay | None, images: torch.Tensor) -> torch.Tensor:
    name = executor.input_names[0]
    parts = (next(iter(executor.run({name: part}, hook=hook).values())) for part in images.split(500))
    return torch.cat(list(parts))


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Everything that is asked for; methods without chance or iterations once for each seed of the images."""
    for seed in range(arguments.seeds):
        for precision in arguments.formats:
            for method in arguments.methods:
                iterations = arguments.iterations if method in LEARNED else 0
                yield Case(
                    width=arguments.width,
                    precision=precision,
                    setting=arguments.setting,
                    method=method,
                    iterations=iterations,
                    seed=seed,
                )


def table(found: Mapping[Case, Row]) -> str:
    """Methods by formats: means over the seeds, with the spread where there are several."""
    formats = [f for f in FORMATS if any(case.precision == f for case in found)]
    methods = [m for m in (*CLOSED, *LEARNED) if any(case.method == m for case in found)]
    heads = ["method", "iterations", *(f"{f}: accuracy, agreement (calibration), CPU [s]" for f in formats)]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for method in methods:
        longest = sorted({case.iterations for case in found if case.method == method})
        for iterations in longest:
            cells = [_cell(found, method, iterations, one) for one in formats]
            lines.append("| " + " | ".join([method, str(iterations or "-"), *cells]) + " |")
    return "\n".join(lines)


def _cell(found: Mapping[Case, Row], method: str, iterations: int, precision: str) -> str:
    asked = (method, iterations, precision)
    rows = [row for case, row in found.items() if (case.method, case.iterations, case.precision) == asked]
    if not rows:
        return "-"
    spread = f" ± {100 * statistics.stdev(r.accuracy for r in rows):.1f}" if len(rows) > 1 else ""
    means = {name: statistics.mean(getattr(row, name) for row in rows) for name in asdict(rows[0])}
    agreement = f"{100 * means['agreement']:.1f} ({100 * means['seen']:.1f})"
    return f"{100 * means['accuracy']:.2f}{spread}, {agreement}, {means['cpu_s']:.0f}"


def main() -> None:
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    found: dict[Case, Row] = {}
    for case in cases(arguments):
        if not case.path.exists() and not arguments.report:
            row = run(case)
            case.path.parent.mkdir(parents=True, exist_ok=True)
            case.path.write_text(json.dumps(asdict(row), indent=1) + "\n", encoding="utf-8")
            print(case, row, flush=True)
        if case.path.exists():
            found[case] = Row(**json.loads(case.path.read_text(encoding="utf-8")))
    exact = fashion.accuracy(fashion.train(arguments.width, 3), fashion.test_images())
    print(
        f"\nwidth {arguments.width}, {arguments.setting} setting, float accuracy {100 * exact:.2f} %\n\n{table(found)}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--methods", nargs="+", choices=(*CLOSED, *LEARNED), default=[*CLOSED, *LEARNED])
    parser.add_argument("--setting", choices=("qdrop", "brecq"), default="qdrop")
    parser.add_argument("--iterations", type=int, default=2000, help="for each block")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="only print what was run before")
    return parser.parse_args()


if __name__ == "__main__":
    main()
