import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fptq.errors import DataError
from fptq.feeds.conform import conform
from fptq.graph.model import TensorInfo


def info(name="x", dtype="float32", shape=("batch", 1, 4, 4)):
    return TensorInfo(name=name, dtype=np.dtype(dtype), shape=shape)


def one(sample, *inputs):
    (run,) = conform(sample, inputs or (info(),), name="sample 7")
    return run


@pytest.mark.parametrize(
    "sample",
    [
        torch.ones(1, 1, 4, 4),
        torch.ones(1, 4, 4, requires_grad=True),
        torch.ones(4, 4, dtype=torch.bfloat16),
        np.ones((1, 1, 4, 4)),
        (np.ones((1, 1, 4, 4), np.float32), np.zeros(1, np.int64)),
        [torch.ones(1, 1, 4, 4), torch.zeros(1, 2)],
        {"x": np.ones((1, 4, 4)), "target": 3, "path": "a.nii"},
        ((torch.ones(1, 1, 4, 4),), {"flag": True, "context": None}),
        ((), {"x": torch.ones(1, 1, 4, 4)}),
        np.ones((4, 4)).tolist(),
    ],
    ids=["tensor", "no batch", "bf16", "float64", "tuple", "list", "mapping", "call", "keyword call", "numbers"],
)
def test_what_users_have_becomes_one_run(sample):
    run = one(sample)
    assert list(run) == ["x"]
    assert run["x"].dtype == np.float32
    assert run["x"].shape == (1, 1, 4, 4)
    assert (run["x"] == 1).all()


def test_several_inputs_by_position_by_name_and_by_both():
    ids, mask = info("ids", "int64", ("n", 5)), info("mask", "float32", ("n", 5))
    a, b = np.arange(10, dtype=np.int32).reshape(2, 5), np.ones((2, 5))
    for sample in [(a, b), {"mask": b, "ids": a}, ((a,), {"mask": b}), (([a, b],), {})]:
        run = one(sample, ids, mask)
        assert run["ids"].dtype == np.int64
        np.testing.assert_array_equal(run["ids"], a)
        np.testing.assert_array_equal(run["mask"], b)


@given(batch=st.integers(1, 3), runs=st.integers(1, 4))
def test_a_batch_is_split_into_runs_of_the_fixed_batch_in_order(batch, runs):
    rows = np.arange(batch * runs, dtype=np.float32)[:, None]
    step = np.array([5], np.int64)
    inputs = (info(shape=(batch, 1)), info("step", "int64", (1,)))
    found = conform((rows, step), inputs, name="s")
    assert len(found) == runs
    np.testing.assert_array_equal(np.concatenate([run["x"] for run in found]), rows)
    assert all(run["step"] == step for run in found)


def test_a_dynamic_batch_is_kept():
    assert one(np.zeros((6, 1, 4, 4)))["x"].shape == (6, 1, 4, 4)


def test_bfloat16_inputs_take_float32_samples():
    assert one(np.ones((1, 1, 4, 4)), info(dtype=ml_dtypes.bfloat16))["x"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("sample", "inputs", "message"),
    [
        ({"y": np.ones((1, 1, 4, 4))}, (info(),), r"no input 'x' .*'y'.*the model takes x: float32\[batch, 1, 4, 4\]"),
        (np.ones((1, 1, 4, 4)), (info(), info("m")), "no input 'm' .*1 arrays"),
        ("text", (info(),), "no input 'x'"),
        (np.ones((1, 2, 4, 4)), (info(),), r"shape \[1, 2, 4, 4\]"),
        (np.ones((2, 3)), (info(shape=(1, 4)),), r"shape \[2, 3\]"),
        (np.ones((3, 1)), (info(shape=(2, 1)),), r"shape \[3, 1\]"),
        (np.ones((0, 1, 4, 4)), (info(shape=(1, 1, 4, 4)),), r"shape \[0, 1, 4, 4\]"),
        (np.ones((1, 1, 4, 4), np.uint8), (info(),), "is uint8.*scaling"),
        (np.full((1, 1, 4, 4), 1e30), (info(dtype="float16"),), "values do not fit"),
        (np.full((1, 5), 2**40), (info(dtype="int32", shape=(1, 5)),), "values do not fit"),
        (np.full((1, 1, 4, 4), np.nan), (info(),), "16 NaN or Inf"),
        (np.full((1, 1, 4, 4), np.inf, np.float32), (info(),), "16 NaN or Inf"),
        (np.array([["a"]]), (info(shape=(1, 1)),), "is <U1"),
        ((np.ones((2, 1)), np.ones((3, 1))), (info("a", shape=("n", 1)), info("b", shape=("n", 1))), "axis 'n' is 2"),
        ((np.ones((2, 1)), np.ones((3, 1))), (info("a", shape=(1, 1)), info("b", shape=(1, 1))), "batches of 2"),
    ],
)
def test_what_does_not_fit_is_named(sample, inputs, message):
    with pytest.raises(DataError, match=message) as caught:
        conform(sample, inputs, name="sample 7")
    assert "sample 7" in str(caught.value)
