from __future__ import annotations

import numpy as np
import pytest

from fptq.errors import EngineError
from fptq.rewrite import channels
from fptq.rewrite.channels import channel_extremes, channel_maxima, channel_means


def test_channels_are_reduced_over_samples_and_all_other_axes(net) -> None:
    n = net((2, 4, 6))
    n("Relu")
    n("Neg")
    model = n.model()
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((2, 4, 6)).astype(np.float32)} for _ in range(3)]
    x = np.stack([sample["x"] for sample in feeds])
    means = channel_means(model, {"x": 1, "v0": -1}, feeds)
    np.testing.assert_allclose(means["x"], x.mean(axis=(0, 1, 3)), atol=1e-6)
    np.testing.assert_allclose(means["v0"], np.maximum(x, 0).mean(axis=(0, 1, 2)), atol=1e-6)
    maxima = channel_maxima(model, {"x": 1, "v1": 2}, feeds)
    np.testing.assert_array_equal(maxima["x"], np.abs(x).max(axis=(0, 1, 3)))
    np.testing.assert_array_equal(maxima["v1"], np.maximum(x, 0).max(axis=(0, 1, 2)))
    low, high = channel_extremes(model, {"x": -1, "v1": 2}, feeds)["x"]
    np.testing.assert_array_equal(low, x.min(axis=(0, 1, 2)))
    np.testing.assert_array_equal(high, x.max(axis=(0, 1, 2)))


def test_a_sample_that_does_not_fit_is_an_error(net) -> None:
    n = net((2, 4, 6))
    n("Relu")
    with pytest.raises(EngineError, match="channels could not be measured"):
        channel_means(n.model(), {"v0": 1}, [{"x": np.zeros((2, 5, 6), np.float32)}])


def test_rows_are_vectors_of_channels_whatever_their_axis(cnn, samples, monkeypatch) -> None:
    monkeypatch.setattr(channels, "ROWS", 5)
    found = channels.channel_rows(cnn, {"x": 1, "v0": 1}, samples[:2])
    assert {name: rows.shape for name, rows in found.items()} == {"x": (10, 4), "v0": (10, 16)}
    first = np.moveaxis(samples[0]["x"], 1, -1).reshape(-1, 4)
    np.testing.assert_array_equal(found["x"][[0, 4]], first[[0, -1]])
