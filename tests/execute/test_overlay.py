from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fptq.calibrate import CalibrationOptions, calibrate
from fptq.execute import Executor, Objective, Overlay
from fptq.execute.objective import difference, loss
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
