import numpy as np
import pytest

from fptq.errors import DataError
from fptq.feeds import bucket_by_length, open_feeds
from fptq.feeds.lengths import unpadded
from fptq.graph.model import TensorInfo

INPUTS = (
    TensorInfo(name="input_ids", dtype=np.dtype(np.int64), shape=("batch", "length")),
    TensorInfo(name="attention_mask", dtype=np.dtype(np.int64), shape=("batch", "length")),
    TensorInfo(name="bias", dtype=np.dtype(np.float32), shape=("batch", 1, "length", "length")),
    TensorInfo(name="step", dtype=np.dtype(np.int64), shape=(1,)),
)


def run(mask, length=5):
    mask = np.array(mask)
    ids = np.arange(mask.size).reshape(mask.shape)
    bias = np.arange(len(mask) * length * length, dtype=np.float32).reshape(-1, 1, length, length)
    return {"input_ids": ids, "attention_mask": mask, "bias": bias, "step": np.zeros(1, int)}


def test_padded_sequences_become_runs_of_their_own_extent():
    feeds = run([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    right, left = unpadded(feeds, INPUTS)
    assert right["input_ids"].tolist() == [[0, 1, 2], [10, 11, 12]]
    assert left["input_ids"].tolist() == [[6, 7, 8, 9]]
    np.testing.assert_array_equal(right["bias"], feeds["bias"][[0, 2], :, :3, :3])
    assert all(part["attention_mask"].all() and part["step"].shape == (1,) for part in (right, left))


@pytest.mark.parametrize("mask", [[[1] * 5], [[1, 0, 1, 1, 1]], [[0] * 5]], ids=["whole", "a hole", "empty"])
def test_what_stays_as_it_is(mask):
    feeds = run(mask)
    assert unpadded(feeds, INPUTS)[0] is feeds


def test_without_dynamic_axes_nothing_is_cut():
    feeds = run([[1, 1, 1, 0, 0]])
    fixed = (INPUTS[0], TensorInfo(name="attention_mask", dtype=np.dtype(np.int64), shape=("batch", 5)))
    assert unpadded(feeds, fixed)[0] is feeds


def test_samples_are_counted_without_padding():
    whole, padded = run([[1] * 5]), run([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    samples = open_feeds([whole, padded], INPUTS)
    assert len(samples) == 3
    assert [feeds["input_ids"].shape for feeds in samples] == [(1, 5), (1, 2), (1, 5)]
    assert len(open_feeds([whole, padded], INPUTS, limit=2)) == 2


def test_buckets_hold_one_length_each():
    samples = [{"input_ids": list(range(n)), "attention_mask": [1] * n, "flag": True} for n in (4, 7, 4, 4, 9, 7)]
    batches = bucket_by_length(samples, batch_size=2)
    assert sorted(batch["input_ids"].shape for batch in batches) == [(1, 4), (1, 9), (2, 4), (2, 7)]
    assert all(batch["flag"] is True and batch["attention_mask"].all() for batch in batches)
    again = bucket_by_length(samples, batch_size=2)
    assert [b["input_ids"].tolist() for b in again] == [b["input_ids"].tolist() for b in batches]


def test_flags_of_other_values_part_buckets():
    samples = [{"ids": np.zeros((1, 3), int), "flag": flag} for flag in (True, False)]
    assert {batch["flag"] for batch in bucket_by_length(samples)} == {True, False}


def test_a_batch_is_no_sequence():
    with pytest.raises(DataError, match=r"sample 0: 'ids' has shape \[2, 3\]"):
        bucket_by_length([{"ids": np.zeros((2, 3), int)}])
