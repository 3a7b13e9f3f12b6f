"""A sample, and a larger load where sizes are free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fptq.engines import DEPLOYABLE, CompileOptions, engine_named
from fptq.engines.loads import MOST, loads, sizes
from fptq.errors import EngineError
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.types import Feeds

BOTH = [pytest.param(name, marks=pytest.mark.engine(name)) for name in DEPLOYABLE]


class Clockwork:
    """A session that takes so long for each row of tokens, and refuses batches and lengths where it shall."""

    load_s = 0.0

    def __init__(self, seconds: float, *, most_rows: int = 1000, longest: int = 1000) -> None:
        self.seconds, self.most_rows, self.longest = seconds, most_rows, longest

    def time(self, feeds: Feeds) -> float:
        rows, length = feeds["x"].shape[:2]
        return self.seconds * rows * length / 4

    def __call__(self, feeds: Feeds) -> Feeds:
        rows, length = feeds["x"].shape[:2]
        if rows > self.most_rows or length > self.longest:
            raise EngineError("shapes disagree")
        return {}

    def profile(self, feeds: Feeds, *, runs: int = 3) -> tuple[()]:
        return ()


@pytest.fixture
def network(net: Callable) -> Callable[..., Model]:
    """A function that makes a layer of some sizes."""

    def made(*shape: str | int) -> Model:
        n = net(shape)
        n("MatMul", n.stored(8, 16))
        n("Relu")
        return n.model()

    return made


SAMPLE = {"x": np.arange(32, dtype=np.float32).reshape(1, 4, 8)}


def timed(model: Model, session: Clockwork, sample: Feeds = SAMPLE) -> list[tuple[int, ...]]:
    """The shapes of the loads."""
    return [load["x"].shape for load in loads(sample, model.inputs, session)]


@pytest.mark.parametrize("engine", BOTH)
def test_free_sizes_grow_on_an_engine(engine: str, network, tmp_path: Path) -> None:
    model = network("batch", "length", 8)
    save(model, tmp_path / "m.onnx")
    session = engine_named(engine).compile(tmp_path / "m.onnx", CompileOptions(threads=1))
    alone, larger = loads(SAMPLE, model.inputs, session)
    assert alone is SAMPLE
    assert larger["x"].shape == (MOST, 8, 8)
    assert (larger["x"] == np.concatenate([SAMPLE["x"]] * 2, axis=1)).all()
    assert sizes(larger, model.inputs) == "16 x 8 x 8"


def test_as_many_as_the_time_allows(network) -> None:
    model = network("batch", 4, 8)
    assert timed(model, Clockwork(0.03)) == [(1, 4, 8), (6, 4, 8)]
    assert timed(model, Clockwork(0.11)) == [(1, 4, 8)]


def test_a_length_is_doubled_where_that_takes_no_longer_than_allowed(network) -> None:
    model = network(1, "length", 8)
    assert timed(model, Clockwork(0.09)) == [(1, 4, 8), (1, 8, 8)]
    assert timed(model, Clockwork(0.11)) == [(1, 4, 8)]


def test_batches_as_they_come_stay_what_they_are(network) -> None:
    batch = {"x": np.zeros((3, 4, 8), np.float32)}
    assert timed(network("batch", 4, 8), Clockwork(0.001), batch) == [(3, 4, 8)]


def test_a_network_of_one_size_is_timed_at_that(network) -> None:
    model = network(1, 4, 8)
    assert timed(model, Clockwork(0.001)) == [(1, 4, 8)]
    assert sizes(SAMPLE, model.inputs) == ""


def test_a_size_that_the_network_fails_on_is_not_timed(network) -> None:
    model = network("batch", "length", 8)
    assert timed(model, Clockwork(0.001, most_rows=1)) == [(1, 4, 8), (1, 8, 8)]
    assert timed(model, Clockwork(0.001, longest=4)) == [(1, 4, 8), (16, 4, 8)]
    assert timed(model, Clockwork(0.001, most_rows=1, longest=4)) == [(1, 4, 8)]
