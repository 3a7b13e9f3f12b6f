"""Networks of few bits: every method in every format, on trained ResNets and on 3-D networks.

python benchmarks/lowbit.py                                        the table; what was run is not run again
python benchmarks/lowbit.py --formats w2a2 --methods qdrop genie   some of it
python benchmarks/lowbit.py --subject deepbrain --iterations 200   another network: w16, w64, deepbrain, deepbet
python benchmarks/lowbit.py --report                               the table of what was run
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fptq.cache import Cache
from fptq.calibrate import weight_params
from fptq.config import Recipe
from fptq.execute import Executor, Overlay
from fptq.execute.objective import of_task
from fptq.plan import PROFILES, Encoding
from fptq.plan.edges import Setting
from fptq.recipes.bases import Base, base_of
from fptq.recipes.observers import calibration_options
from fptq.recipes.problem import Problem
from fptq.reconstruct import METHODS, ReconstructionOptions, reconstruct
from fptq.reconstruct.closed_form import ClosedFormOptions, gptaq, output_correction, ridge_correction
from fptq.reconstruct.task import MEASURED
from fptq.types import Feeds
from layout import HERE
from lowbit_subjects import SUBJECTS, Subject

FORMATS = ("w8a8", "w4a8", "w3a8", "w4a4", "w3a3", "w2a4", "w2a2")
CLOSED = ("nearest", "correction", "ridge", "gptaq", "closed")
"""Without learning; "closed" is fptq's own default."""
LEARNED = ("adaround", "brecq", "qdrop", "genie", "pd-quant", "ae-qdrop", "auto")

VARIANTS = {
    "adaround-blocks": replace(METHODS["adaround"], name="adaround-blocks", unit="block"),
    "adaround-blind": replace(METHODS["adaround"], name="adaround-blind", activations="after"),
    "brecq-long": replace(METHODS["brecq"], name="brecq-long", activation_iterations=4 * METHODS["brecq"].iterations),
    "brecq-seeing": replace(METHODS["brecq"], name="brecq-seeing", activations="joint"),
}
"""Why BRECQ falls behind AdaRound at W2A2: blocks, weights that never see quantized activations, or too few iterations
for these afterwards? Each takes one of them away, or gives it to AdaRound."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of few bits.

    Attributes:
        accuracy: Against labels on test samples: top-1, or Dice.
        agreement: With the float network's answers there: the share that is the same, or Dice.
        seen: The same on calibration samples: far above `agreement` it has over-fitted.
        divergence: Mean divergence from the float network on test samples [nat].
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
        subject: A key of `SUBJECTS`.
        precision: Format of the layers between the ends.
        setting: What keeps eight bits at the ends.
        method: How codes are found.
        iterations: For each block, of a learned method.
        seed: Of the calibration samples and the method.
        device: Where it learns; scores are computed on the processor.
    """

    subject: str
    precision: str
    setting: Setting
    method: str
    iterations: int
    seed: int
    device: str = "cpu"

    @property
    def network(self) -> Subject:
        return SUBJECTS[self.subject]

    @property
    def path(self) -> Path:
        where = "" if self.device == "cpu" else f"-{self.device}"
        name = f"{self.precision}-{self.setting}-{self.method}-{self.iterations}-{self.seed}{where}.json"
        return HERE / "results" / "lowbit" / self.subject / name


def start(case: Case, feeds: Sequence[Feeds]) -> Base:
    """The network and its numbers before any repair: nearest rounding, as `fptq quantize` starts from."""
    method: dict[str, Any] = {"method": case.method} if case.method in (*CLOSED[:-1], *METHODS) else {}
    problem = Problem(
        model=case.network.executor.model,
        calibration=feeds,
        held_out=(feeds[0],),
        task=None,
        recipe=Recipe(bits=case.precision, setting=case.setting, seed=case.seed, **method),
        store=Cache(HERE / "results" / "lowbit" / "cache"),
    )
    return base_of(problem, PROFILES[case.network.engine])


def run(case: Case) -> Row:
    """Find the codes and score them."""
    feeds = case.network.calibration(case.seed)
    base = start(case, feeds)
    begun, cpu = time.perf_counter(), time.process_time()
    executor = Executor.open(base.model, device=case.device)
    repaired, found, suffix_s = _repaired(case, executor, base.encoding, feeds)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    scores = case.network.scores(Executor.open(repaired.model), Overlay(encoding=found), case.seed)
    return Row(
        accuracy=scores.metric,
        agreement=scores.agreement,
        seen=scores.seen,
        divergence=scores.divergence,
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
            closed = ClosedFormOptions() if case.method == "gptaq" else MEASURED
            made = gptaq(executor, encoding, feeds, options=replace(closed, seed=case.seed))
        case "correction":
            made = output_correction(executor, encoding, feeds, options=ClosedFormOptions(seed=case.seed))
        case "ridge":
            observer = calibration_options(Recipe(), ("lp", "lp"), 1).weight_observer
            made = ridge_correction(executor, encoding, feeds, lambda w, spec: weight_params(w, spec, observer))
        case _:
            method = {**METHODS, **VARIANTS}[case.method].shortened(case.iterations)
            objective = of_task(executor.model, case.network.task)
            options = ReconstructionOptions(seed=case.seed, objective=objective)
            learned = reconstruct(executor, encoding, feeds, method=method, options=options)
            return executor, learned.encoding, sum(unit.prediction_seconds for unit in learned.units)
    return made.executor, made.encoding, 0.0


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Everything that is asked for; methods without chance or iterations once for each seed of the images."""
    for seed in range(arguments.seeds):
        for precision in arguments.formats:
            for method in arguments.methods:
                iterations = 0 if method in CLOSED else arguments.iterations
                yield Case(
                    subject=arguments.subject,
                    precision=precision,
                    setting=arguments.setting,
                    method=method,
                    iterations=iterations,
                    seed=seed,
                    device=arguments.device,
                )


def table(found: Mapping[Case, Row], metric: str) -> str:
    """Methods by formats: means over the seeds, with the spread where there are several."""
    formats = [f for f in FORMATS if any(case.precision == f for case in found)]
    methods = [m for m in (*CLOSED, *LEARNED, *VARIANTS) if any(case.method == m for case in found)]
    time_name = "CPU" if all(case.device == "cpu" for case in found) else "elapsed"
    heads = ["method", "iterations", *(f"{f}: {metric}, agreement (calibration), {time_name} [s]" for f in formats)]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for method in methods:
        longest = sorted({case.iterations for case in found if case.method == method})
        for iterations in longest:
            cells = [_cell(found, method, iterations, one) for one in formats]
            lines.append("| " + " | ".join([method, str(iterations or "-"), *cells]) + " |")
    return "\n".join(lines)


def _cell(found: Mapping[Case, Row], method: str, iterations: int, precision: str) -> str:
    asked = (method, iterations, precision)
    chosen = {case: row for case, row in found.items() if (case.method, case.iterations, case.precision) == asked}
    rows = list(chosen.values())
    if not rows:
        return "-"
    on_cpu = all(case.device == "cpu" for case in chosen)
    spread = f" ± {100 * statistics.stdev(r.accuracy for r in rows):.1f}" if len(rows) > 1 else ""
    means = {name: statistics.mean(getattr(row, name) for row in rows) for name in asdict(rows[0])}
    agreement = f"{100 * means['agreement']:.1f} ({100 * means['seen']:.1f})"
    spent = means["cpu_s" if on_cpu else "seconds"]
    return f"{100 * means['accuracy']:.2f}{spread}, {agreement}, {spent:.0f}"


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
    subject = SUBJECTS[arguments.subject]
    title = f"{arguments.subject}, {arguments.setting} setting, float {subject.metric} {100 * subject.exact():.2f} %"
    print(f"\n{title}\n\n{table(found, subject.metric)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", choices=list(SUBJECTS), default="w16")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--methods", nargs="+", choices=(*CLOSED, *LEARNED, *VARIANTS), default=[*CLOSED, *LEARNED])
    parser.add_argument("--setting", choices=("qdrop", "brecq"), default="qdrop")
    parser.add_argument("--iterations", type=int, default=2000, help="for each block")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where methods learn")
    parser.add_argument("--report", action="store_true", help="only print what was run before")
    return parser.parse_args()


if __name__ == "__main__":
    main()
