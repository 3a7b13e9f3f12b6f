"""Latencies by layer are measured once for an engine, a processor and a structure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fptq.analyze.cost import shapes_of
from fptq.config import Recipe
from fptq.engines import CompileOptions, Session, engine_named
from fptq.execute import Executor
from fptq.recipes.costs import Target, cost_table
from fptq.recipes.problem import open_problem
from fptq.recipes.study import open_study
from fptq.types import silent


@dataclass
class Counting:
    """An engine that counts what it compiles."""

    inner: object = field(default_factory=lambda: engine_named("onnxruntime"))
    compiled: int = 0
    name: str = "onnxruntime"
    extra: str = ""

    def version(self) -> str | None:
        return self.inner.version()

    def compile(self, model: Path, options: CompileOptions) -> Session:
        self.compiled += 1
        return self.inner.compile(model, options)


@pytest.fixture
def tabled(net, samples, tmp_path):
    """The table of a network whose weights are drawn by a seed."""

    def made(engine: Counting, *, seed: int = 3, threads: int = 1):
        n = net((1, 4, 16, 16), seed=seed)
        for c_in, c_out in ((4, 16), (16, 16), (16, 4)):
            n.conv(c_in, c_out)
            n("Relu")
        n.conv(4, 4)
        recipe = Recipe(cache=tmp_path / "cache", threads=1, engine="onnxruntime")
        study = open_study(open_problem(n.model().graph_model, samples, recipe), engine, ("w8a8",), silent)
        found = study.sensitivity("fisher", silent)
        shapes = shapes_of(Executor.open(study.model), study.samples[0])
        return cost_table(study, found, shapes, target=Target(engine=engine, threads=threads), progress=silent)

    return made


def test_a_second_search_measures_nothing_again_and_other_weights_take_the_same_time(tabled) -> None:
    engine = Counting()
    first = tabled(engine)
    assert engine.compiled == 2  # the float network and w8a8
    again, other = tabled(engine), tabled(engine, seed=4)
    assert engine.compiled == 2
    for table in (again, other):
        np.testing.assert_array_equal(table.costs["latency"], first.costs["latency"])
    tabled(engine, threads=2)
    assert engine.compiled == 4


def test_the_rows_add_up_to_the_float_network(tabled) -> None:
    table = tabled(Counting())
    assert table.costs["latency"][:, 0].sum() > 0
    assert (table.costs["latency"][:-1, 0] > 0).all()
    assert table.items[-1] == "(everything else)"
