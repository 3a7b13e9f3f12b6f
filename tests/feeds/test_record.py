import numpy as np
import pytest
import torch
from torch import nn

from fptq.errors import DataError
from fptq.feeds import open_feeds, record
from fptq.graph.model import TensorInfo


class Net(nn.Module):
    def forward(self, x, context=None, *, scale=1.0):
        return x * scale if context is None else x + context


def test_calls_are_copied_and_arguments_kept():
    net, buffer = Net(), torch.zeros(1, 2)
    with record(net) as samples:
        for i in range(3):
            buffer.fill_(i)
            net(buffer, scale=0.5)
    net(buffer)
    assert len(samples) == samples.calls == 3
    assert [args[0][0, 0].item() for args, _ in samples] == [0, 1, 2]
    assert samples[0][1] == {"scale": 0.5}
    assert len(samples[1:]) == 2


def test_a_recording_is_calibration_data():
    net = Net()
    with record(net) as samples:
        net(torch.ones(1, 2), context=torch.full((1, 2), 3.0))
    inputs = tuple(TensorInfo(name=n, dtype=np.dtype(np.float32), shape=("n", 2)) for n in ("x", "context"))
    (run,) = open_feeds(samples, inputs)
    assert run["x"].tolist() == [[1, 1]]
    assert run["context"].tolist() == [[3, 3]]


def test_a_limit_keeps_a_uniform_sample_in_order():
    kept = []
    for seed in range(200):
        net = Net()
        with record(net, limit=3, seed=seed) as samples:
            for i in range(10):
                net(torch.tensor([[float(i)]]))
        order = [int(args[0]) for args, _ in samples]
        assert order == sorted(order)
        assert len(order) == 3
        kept += order
    # 60 expected of each; the standard deviation is about 6.5.
    assert np.bincount(kept, minlength=10).min() > 30


def test_the_hook_is_removed_when_the_pipeline_fails():
    net = Net()
    with pytest.raises(RuntimeError, match="pipeline"), record(net):
        raise RuntimeError("pipeline")
    assert not net._forward_pre_hooks


def test_a_module_that_is_never_called_is_an_error():
    with pytest.raises(DataError, match="Net was not called"), record(Net()):
        pass


def test_an_empty_limit_is_an_error():
    with pytest.raises(DataError, match="limit=0"), record(Net(), limit=0):
        pass
