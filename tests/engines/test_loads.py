"""One sample, and many at once where a network takes any number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fptq.engines import DEPLOYABLE, CompileOptions, engine_named
from fptq.engines.loads import MOST, at_once, loads
from fptq.errors import EngineError
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.types import Feeds

BOTH = [pytest.param(name, marks=pytest.mark.engine(name)) for name in DEPLOYABLE]


class Clockwork:
    """A session that takes as long for a sample as it is told, and refuses many where it shall."""

    load_s = 0.0

    def __init__(self, seconds: float, *, takes_many: bool = True) -> None:
        self.seconds, self.takes_many = seconds, takes_many

    def time(self, feeds: Feeds) -> float:
        return self.seconds

    def __call__(self, feeds: Feeds) -> Feeds:
        if not self.takes_many:
            raise EngineError("shapes disagree")
        return {}

    def profile(self, feeds: Feeds, *, runs: int = 3) -> tuple[()]:
        return ()


@pytest.fixture
def open_net(net: Callable) -> Model:
    """A layer of any batch."""
    n = net(("batch", 4, 8))
    n("MatMul", n.stored(8, 16))
    n("Relu")
    return n.model()


SAMPLE = {"x": np.arange(32, dtype=np.float32).reshape(1, 4, 8)}


@pytest.mark.parametrize("engine", BOTH)
def test_a_network_of_any_batch_is_timed_on_many_samples_too(engine: str, open_net: Model, tmp_path: Path) -> None:
    save(open_net, tmp_path / "m.onnx")
    session = engine_named(engine).compile(tmp_path / "m.onnx", CompileOptions(threads=1))
    alone, many = loads(SAMPLE, open_net.inputs, session)
    assert alone is SAMPLE
    assert many["x"].shape == (MOST, 4, 8)
    assert (many["x"] == SAMPLE["x"]).all()
    assert at_once((alone, many)) == MOST


def test_as_many_as_the_time_allows(open_net: Model) -> None:
    assert at_once(loads(SAMPLE, open_net.inputs, Clockwork(0.06))) == 5
    assert loads(SAMPLE, open_net.inputs, Clockwork(0.1)) == (SAMPLE,)


def test_batches_as_they_come_stay_what_they_are(open_net: Model) -> None:
    batch = {"x": np.zeros((3, 4, 8), np.float32)}
    assert loads(batch, open_net.inputs, Clockwork(0.001)) == (batch,)


def test_a_network_of_one_batch_is_timed_on_that(net: Callable) -> None:
    n = net((1, 4, 8))
    n("Relu")
    assert loads(SAMPLE, n.model().inputs, Clockwork(0.001)) == (SAMPLE,)


def test_a_network_that_fails_on_many_is_timed_on_one(open_net: Model) -> None:
    assert loads(SAMPLE, open_net.inputs, Clockwork(0.001, takes_many=False)) == (SAMPLE,)
