import numpy as np
import pytest
import torch

from fptq.errors import DataError, MetricError
from fptq.tasks import MetricTask


def double(feeds):
    return {"y": feeds["x"] * 2}


def test_the_metric_runs_the_model():
    def total(predict):
        return predict({"x": np.ones(3)})["y"].sum()

    scores = MetricTask(metric=total).evaluate(double)
    assert scores.primary.name == "total"
    assert scores.primary.value == 6.0


def test_a_module_metric_sees_what_the_adapter_makes():
    def adapt(runner):
        return lambda x: torch.from_numpy(runner({"x": x.numpy()})["y"])

    def metric(net):
        return {"error": net(torch.ones(2)).mean().item(), "accuracy": 1}

    scores = MetricTask(metric=metric, adapt=adapt, higher_is_better={"error": False}).evaluate(double)
    assert [(s.name, s.value, s.higher_is_better) for s in scores] == [("error", 2.0, False), ("accuracy", 1.0, True)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor(1.0), r"torch.Tensor.*Return value.item\(\)"),
        (np.array(1.0), r"numpy.ndarray.*Return value.item\(\)"),
        (None, "NoneType.*Return a float"),
        (True, "bool"),
        ("0.9", "str"),
        (float("nan"), "= nan.*finite"),
        ({"a": float("inf")}, "a = inf"),
        ({}, "empty mapping"),
    ],
)
def test_what_is_not_a_number_is_refused(value, message):
    with pytest.raises(MetricError, match=message):
        MetricTask(metric=lambda _: value).evaluate(double)


def test_a_metric_that_raises_is_named():
    def broken(predict):
        return predict({})["y"]

    with pytest.raises(MetricError, match="broken raised KeyError: 'x'"):
        MetricTask(metric=broken).evaluate(double)

    def bad_data(_):
        raise DataError("volume 3")

    with pytest.raises(DataError, match="volume 3"):
        MetricTask(metric=bad_data).evaluate(double)
