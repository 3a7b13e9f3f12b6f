"""How often the float network is opened while encodings are judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fptq.engines import CompileOptions, Session, engine_named
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.recipes.trials import _Reference


@pytest.fixture
def opened() -> list[Session]:
    return []


@pytest.fixture
def compiled(net, tmp_path: Path, opened: list[Session]) -> Callable[[], Session]:
    n = net((1, 4, 8))
    n.conv(4, 4, rank=1)
    model: Model = n.model()
    save(model, tmp_path / "m.onnx")

    def compile_and_count() -> Session:
        opened.append(engine_named("onnxruntime").compile(tmp_path / "m.onnx", CompileOptions(threads=1)))
        return opened[-1]

    return compile_and_count


def samples(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((1, 4, 8), index, np.float32)} for index in range(count)]


def assert_equal(found: _Reference, session: Session, feeds: dict[str, np.ndarray]) -> None:
    for name, exact in session(feeds).items():
        np.testing.assert_array_equal(found(feeds)[name], exact)


def test_outputs_are_remembered_and_the_session_is_closed(compiled, opened) -> None:
    found, some = _Reference(compiled=compiled), samples(3)
    for _ in range(2):
        found.run_ahead(some)
        assert found._session is None
        for feeds in some:
            assert_equal(found, opened[0], feeds)
    assert len(opened) == 1


def test_a_session_whose_outputs_are_too_large_to_remember_stays_open(compiled, opened, monkeypatch) -> None:
    monkeypatch.setattr("fptq.recipes.trials._REMEMBERED", 200)
    found, some = _Reference(compiled=compiled), samples(3)
    found.run_ahead(some)
    assert found._session is not None
    for feeds in some:
        assert_equal(found, opened[0], feeds)
    assert len(opened) == 1
