from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx_ir.passes.common import ShapeInferencePass

from fptq.calibrate import CalibrationOptions, calibrate
from fptq.execute import Executor, Objective, Overlay
from fptq.execute.objective import difference, loss, natural, of_task, projection
from fptq.graph.model import Model
from fptq.graph.parity import run_graph, sqnr
from fptq.numerics import quantize
from fptq.plan import PROFILES, Policy, materialize, place


def test_learned_codes_take_the_place_of_nearest_ones(cnn, samples) -> None:
    profile = PROFILES["openvino"]
    plan = place(cnn, profile, profile.variants[0], Policy(weight_bits=3))
    nearest = calibrate(cnn, plan, samples, options=CalibrationOptions())
    rng, codes = np.random.default_rng(0), {}
    for placement in plan.weights:
        spec, weight = plan.specs[placement], cnn.graph.initializers[placement.value].const_value.numpy()
        found = quantize(weight, spec, nearest.params[placement])
        codes[placement] = np.clip(found + rng.integers(-1, 2, found.shape), spec.qmin, spec.qmax).astype(np.int8)
    learned = replace(nearest, codes=codes)
    with torch.no_grad():
        here = Executor.open(cnn).run(samples[0], hook=Overlay(encoding=learned))
        other = Executor.open(cnn).run(samples[0], hook=Overlay(encoding=nearest))
    for name, there in run_graph(materialize(cnn, learned).graph_model, samples[0]).items():
        assert sqnr(there, here[name].numpy()) > 60
        assert sqnr(there, other[name].numpy()) < 30, "the codes matter"


@pytest.mark.parametrize("objective", list(Objective))
def test_the_loss_is_the_difference_and_has_a_gradient(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(0)
    reference = {"y": torch.randn(4, 5, generator=generator), "count": torch.ones(1, dtype=torch.int64)}
    changed = {"y": (reference["y"] + 0.1).requires_grad_(), "count": reference["count"]}
    changed["y"].data[:, 0] += 1
    found = difference(objective, reference, changed)
    found.backward()
    assert float(found.detach()) == pytest.approx(loss(objective, reference, changed), rel=1e-4)
    assert changed["y"].grad is not None
    assert changed["y"].grad.abs().sum() > 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_yes_or_no_is_a_choice_of_two_classes(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    exact, other = (10 * torch.randn(3, 1, 4, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    two, pair = ({"y": torch.cat([torch.zeros_like(z), z], 1)} for z in (exact, other))
    found = difference(Objective.BINARY, {"y": exact}, {"y": other}, temperature=temperature)
    expected = difference(Objective.KL, two, pair, temperature=temperature)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    assert float(found) > 0
    assert float(difference(Objective.BINARY, {"y": exact}, {"y": exact}, temperature=temperature)) == 0


def test_answers_of_several_channels_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    exact, other = (torch.randn(2, 3, 4, 4, 4, generator=generator) for _ in range(2))
    each = [loss(Objective.BINARY, {"y": exact[:, at : at + 1]}, {"y": other[:, at : at + 1]}) for at in range(3)]
    assert loss(Objective.BINARY, {"y": exact}, {"y": other}) == pytest.approx(sum(each))


def test_sure_answers_give_finite_losses_and_gradients() -> None:
    exact, other = {"y": torch.tensor([[200.0, -200.0]])}, {"y": torch.tensor([[-200.0, 200.0]]).requires_grad_()}
    found = difference(Objective.BINARY, exact, other)
    found.backward()
    assert float(found.detach()) == pytest.approx(400.0)
    assert other["y"].grad is not None
    assert other["y"].grad.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2, 2)])
def test_squared_products_with_a_projection_are_the_loss_of_a_small_change(objective: Objective, shape) -> None:
    generator = torch.Generator().manual_seed(0)
    exact, change = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    entry, change = (2 * exact).requires_grad_(), 1e-3 * change
    products = []
    for _ in range(4000):
        (gradient,) = torch.autograd.grad(projection(objective, {"y": entry}, generator), entry)
        products.append(float((gradient * change).sum()) ** 2)
    expected = loss(objective, {"y": entry}, {"y": entry + change})
    assert np.mean(products) == pytest.approx(expected, rel=4 * np.sqrt(2 / len(products)))


def outputs_of(net, *channels: int, end: str = "Identity", rank: int = 3):
    n = net((1, 2, *[8] * rank))
    stem = n.conv(2, 4, rank=rank)
    heads = []
    for count in channels:
        n.last = stem
        n.conv(4, count, rank=rank, kernel=1)
        heads.append(n(end))
    model = n.model()
    model.graph.outputs[:] = heads
    return Model(graph_model=ShapeInferencePass()(model.graph_model).model)


def test_segmentation_is_judged_by_what_its_outputs_mean(net) -> None:
    assert of_task(outputs_of(net, 1), "segmentation") is Objective.BINARY
    assert of_task(outputs_of(net, 1, 1), "segmentation") is Objective.BINARY
    assert of_task(outputs_of(net, 3), "segmentation") is Objective.KL
    assert of_task(outputs_of(net, 3, 3, rank=2), "segmentation") is Objective.KL
    others = [outputs_of(net, 1, 3), outputs_of(net, 1, end="Sigmoid"), outputs_of(net, 3, rank=1)]
    for model in (*others, outputs_of(net, 3, end="Softmax")):
        assert of_task(model, "segmentation") is natural(model) is Objective.SQUARED
    assert of_task(outputs_of(net, 3), "generic") is Objective.SQUARED
