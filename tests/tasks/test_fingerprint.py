"""Tasks that compute the same have one fingerprint; those that may not have another one, or none."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from fptq.graph.model import TensorInfo
from fptq.tasks import MetricTask, SegmentationTask, VolumeInput, open_cases
from fptq.tasks.fingerprint import fingerprint

LABELS = [1, 2, 3]


def scored(run: object) -> float:
    return float(len(LABELS))


def made(threshold: float, data: np.ndarray):
    return lambda run: float((data > threshold).mean())


def test_the_same_function_has_the_same_fingerprint() -> None:
    data = np.arange(4.0)
    assert fingerprint(scored) == fingerprint(scored)
    assert fingerprint(made(1.0, data)) == fingerprint(made(1.0, data.copy()))


def test_code_defaults_closures_and_data_count() -> None:
    data = np.arange(4.0)
    first = fingerprint(made(1.0, data))
    assert first != fingerprint(made(2.0, data))
    assert first != fingerprint(made(1.0, data + 1))
    assert fingerprint(lambda run: 1.0) != fingerprint(lambda run: 2.0)
    assert fingerprint(lambda run, k=1: k) != fingerprint(lambda run, k=2: k)
    assert fingerprint(functools.partial) is not None


def test_globals_that_a_function_names_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(scored)
    monkeypatch.setitem(scored.__globals__, "LABELS", [1, 2, 4])
    assert fingerprint(scored) not in (None, before)


def test_functions_inside_functions_count() -> None:
    def outer(k: int):
        def inner(run: object) -> int:
            return sum(x * k for x in range(3))

        return lambda run: inner(run)

    assert fingerprint(outer(1)) == fingerprint(outer(1)) != fingerprint(outer(2))


def test_tensors_and_modules_count_by_their_values() -> None:
    torch.manual_seed(0)
    judge = torch.nn.Linear(2, 2)

    def metric(run: object) -> float:
        return float(judge(torch.ones(2)).sum())

    before = fingerprint(metric)
    assert before == fingerprint(metric) is not None
    with torch.no_grad():
        judge.weight += 1
    assert fingerprint(metric) != before
    assert fingerprint(torch.nn.Conv2d(1, 1, 1, stride=1)) != fingerprint(torch.nn.Conv2d(1, 1, 1, stride=2))


def test_what_cannot_be_told_apart_has_none() -> None:
    generator = np.random.default_rng(0)
    stream = iter([1, 2])
    assert fingerprint(lambda run: generator.random()) is None
    assert fingerprint(lambda run: next(stream)) is None


def test_a_metric_task_counts_its_direction() -> None:
    assert fingerprint(MetricTask(metric=scored)) != fingerprint(MetricTask(metric=scored, higher_is_better=False))


def test_files_count_by_their_content(tmp_path: Path) -> None:
    def task() -> SegmentationTask:
        info = TensorInfo(name="x", dtype=np.dtype(np.float32), shape=(1, 1, 4, 4, 4))
        network = VolumeInput(info=info)
        return SegmentationTask(cases=open_cases(tmp_path), network=network)

    np.save(tmp_path / "a.npy", np.zeros((4, 4, 4), np.float32))
    before = fingerprint(task())
    assert before == fingerprint(task()) is not None
    np.save(tmp_path / "a.npy", np.ones((4, 4, 4), np.float32))
    assert fingerprint(task()) != before
