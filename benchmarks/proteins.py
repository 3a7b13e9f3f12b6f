"""Which inputs a protein language model may have rounded, and what two regions bring: PTQ4Protein's ablation.

python benchmarks/proteins.py                                 the whole table on ONNX Runtime
python benchmarks/proteins.py --engine openvino --rows activations everything --bits 8
python benchmarks/proteins.py --report                        the tables of what was measured before

Every configuration is a file in results/proteins, so the table can be made in pieces; --again makes them anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

import antiberty
from fptq.calibrate import Statistics
from fptq.demo.assets import fetch
from fptq.engines import ENGINES, CompileOptions, Session
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import PROFILES, Plan, Policy, Refusal, materialize, place
from fptq.plan.float_inputs import with_float_inputs
from fptq.recipes.policies.everywhere import everywhere_in_regions
from fptq.recipes.policies.per_token import rows_scaled
from fptq.recipes.policies.spots import Extremes, extremes_of, lossy_inputs, worst_spots
from fptq.recipes.workbench import Refined, unrefined
from fptq.rewrite import takes_tokens
from fptq.tasks import Scores, paired_drop
from fptq.types import FeedSource
from proteins_results import LINEAR, RESULTS, ROWS, Case, Outcome, Row, cases, cell, comparison, table
from proteins_subject import RECIPE, Remembering, Split, Subject

SEQUENCES = 120


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a policy may use.

    Attributes:
        start: The network with uniform quantizers.
        extremes: What the channels of the inputs of products reach in calibration.
        samples: Of the calibration.
    """

    start: Refined
    extremes: Extremes
    samples: FeedSource


@dataclass(frozen=True, kw_only=True)
class Way:
    """How activations are quantized.

    Attributes:
        observer: How uniform ranges are found.
        made: What becomes of the network with uniform quantizers.
    """

    observer: Literal["lp", "minmax"] = "lp"
    made: Callable[[Given], Refined] = lambda given: given.start


def in_regions(count: int) -> Way:
    """Piecewise linear, so many regions for every activation, breakpoints where the histogram's error is least."""
    return Way(made=lambda given: everywhere_in_regions(given.start, given.extremes, count=count, p=RECIPE.p))


def rows_scaled_everywhere(given: Given) -> Refined:
    """A scale for each token wherever products read tokens; the rest as it is."""
    found = given.start
    for spot in worst_spots(found, given.samples, len(found.encoding.plan.activations)):
        if takes_tokens(found.model, spot.cut):
            found = rows_scaled(spot).make(found) or found
    return found


POLICIES: Mapping[str, Way] = {
    "range": Way(observer="minmax"),
    "uniform": Way(),
    "PWLQ": in_regions(2),
    "PWLQ-3": in_regions(3),
    "per token": Way(made=rows_scaled_everywhere),
}
"""Columns of the table: uniform over all that was seen, as published; uniform, clipped where the error is least, as
fptq does by default; two and three regions; a scale for each token, where products in integers read it."""


@dataclass(kw_only=True)
class Bench:
    """One engine's configurations."""

    subject: Subject
    folder: Path

    def measured(self, case: Case) -> Outcome:
        return self._outcome(self.network(case))

    def network(self, case: Case) -> Model:
        """What the engine runs."""
        if case.policy == "float":
            return self.subject.loaded
        extremes = self.extremes if ROWS[case.row].weights else {}  # of products in integers
        given = Given(start=self.started(case), extremes=extremes, samples=self.subject.calibration)
        made = POLICIES[case.policy].made(given)
        return materialize(made.model, made.encoding)

    def started(self, case: Case) -> Refined:
        """The network with uniform quantizers where the row has them."""
        plan, recipe = self._plan(ROWS[case.row], case.bits), RECIPE.merged(observer=POLICIES[case.policy].observer)
        return unrefined(self.subject.model, plan, statistics=self._statistics, recipe=recipe)

    def _plan(self, row: Row, bits: int) -> Plan:
        model, profile = self.subject.model, PROFILES[self.subject.engine]
        policy = Policy(activation_bits=bits)
        plan = place(model, profile, profile.variants[0], policy)
        if LINEAR not in row.inputs:
            plan = plan.only(*plan.weights)
        weights = plan.weights
        if not row.weights:
            names = [(str(p.consumer), "its weight stays float in this row") for p in weights]
            plan = plan.without(*weights).refusing(Refusal(node=n, op="", reason=why) for n, why in names)
        return with_float_inputs(model, plan, sorted(row.inputs - {LINEAR}), policy=policy)

    @cached_property
    def extremes(self) -> Extremes:
        whole = unrefined(
            self.subject.model, self._plan(ROWS["everything"], 8), statistics=self._statistics, recipe=RECIPE
        )
        return extremes_of(whole, self.subject.calibration, lossy_inputs(whole))

    @cached_property
    def _statistics(self) -> Statistics:
        return self.subject.statistics(self._plan(ROWS["everything"], 8))

    @cached_property
    def _float(self) -> Remembering:
        return Remembering(runner=self._session(self.subject.loaded)[0])

    def _outcome(self, network: Model) -> Outcome:
        session, size_mb = self._session(network)
        masked, embedded = (
            task.evaluate_all({"float": self._float, "other": session})
            for task in (self.subject.masked, self.subject.embedded)
        )
        drop = paired_drop(masked["float"]["accuracy"], masked["other"]["accuracy"])
        accuracy = masked["other"]["accuracy"]
        return Outcome(
            accuracy=accuracy.value,
            drop=(drop.value, drop.low, drop.high),
            perplexity=float(np.exp(masked["other"]["nll"].value)),
            embedding_error=_error(embedded["other"]),
            size_mb=size_mb,
            accuracies=accuracy.cases,
        )

    def _session(self, network: Model) -> tuple[Session, float]:
        """A session, and the size of its file [MB], which is gone by then."""
        path = self.folder / "network.onnx"
        save(network, path)
        size_mb = path.stat().st_size / 1e6
        session = ENGINES[self.subject.engine].compile(path, CompileOptions(threads=1))
        path.unlink()
        return session, size_mb


def _error(scores: Scores) -> float:
    decibels = np.asarray(scores["agreement_embedding_sqnr"].cases)
    return float(np.mean(10 ** (-decibels / 10)))


def measure(chosen: list[Case], *, again: bool) -> None:
    """Measure what is not there yet."""
    missing = [case for case in chosen if again or not case.path.exists()]
    if not missing:
        return
    split = Split.of(antiberty.read_sequences(fetch("antibodies")), missing[0].sequences)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        bench = Bench(subject=Subject(engine=missing[0].engine, split=split), folder=Path(folder))
        for case in missing:
            found = bench.measured(case)
            case.path.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
            print(f"{case.row} A{case.bits} {case.policy}: {cell(found)}, {found.sqnr_db:.2f} dB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 4])
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="of the evaluation")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    given = parser.parse_args()
    chosen = list(cases(given.engine, given.rows, given.bits, given.policies, given.sequences))
    if not given.report:
        measure(chosen, again=given.again)
    text = f"{table(chosen)}\n{comparison(chosen)}"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{given.engine}-{given.sequences}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
