from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, dequantize, params_from_range, ranges
from fptq.numerics.torch_uniform import expanded, fake_quantize_tensor
from fptq.reconstruct import METHODS, Method
from fptq.reconstruct.activations import LearnedScale, groups_of, learnable
from fptq.reconstruct.hook import Mixer
from fptq.reconstruct.rounding import LearnedGrid, Rounding, rounding_of

ROUNDINGS = ("sigmoid", "progressive", "straight-through", "flexround")
GRANULARITIES = (
    PerTensor(),
    PerChannel(axis=0),
    PerChannel(axis=1),
    PerBlock(axis=1, size=2),
    PerBlock(axis=0, size=3),
)
SPECS = [
    QuantizerSpec(bits=bits, signed=signed, symmetric=symmetric, granularity=granularity)
    for bits in (2, 4, 8)
    for signed, symmetric in ((True, True), (False, False), (True, False))
    for granularity in GRANULARITIES
]


def drawn(spec: QuantizerSpec, rounding: str, *, share: float = 1.0) -> tuple[torch.Tensor, Rounding]:
    """A weight of mean 0.3 whose range, or a share of it, is covered by the quantizer."""
    weight = torch.from_numpy(np.random.default_rng(0).normal(0.3, 1, (4, 5, 3)).astype(np.float32))
    low, high = ranges(weight.numpy(), spec.granularity)
    grid = LearnedGrid.of(weight, spec, params_from_range(spec, low * share, high * share))
    return weight, rounding_of(weight, grid, Method(name="", rounding=rounding))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("rounding", ["sigmoid", "progressive"])
def test_training_starts_at_the_weight_itself(spec: QuantizerSpec, rounding: str) -> None:
    weight, found = drawn(spec, rounding)
    scale = found.grid.scale
    soft = found.soft(0.0).detach()
    assert (soft - weight.clamp(found.grid.low * scale, found.grid.high * scale)).abs().max() < 1e-5


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_untrained_rounding_is_nearest(spec: QuantizerSpec, rounding: str) -> None:
    weight, found = drawn(spec, rounding, share=0.7)
    low, high = (share * 0.7 for share in ranges(weight.numpy(), spec.granularity))
    params = params_from_range(spec, low, high)
    nearest = fake_quantize_tensor(weight, spec, params)
    np.testing.assert_array_equal((found.steps() * found.grid.scale).detach() + 0.0, nearest)
    codes = (found.steps() - found.grid.low + spec.qmin).numpy()
    assert codes.min() >= spec.qmin
    assert codes.max() <= spec.qmax
    np.testing.assert_array_equal(dequantize(codes, spec, params) + 0.0, nearest)


@given(seed=st.integers(0, 1000), bits=st.sampled_from([2, 3, 8]), signed=st.booleans())
def test_the_sigmoid_rounds_down_or_up_whatever_was_learned(seed: int, bits: int, signed: bool) -> None:
    spec = QuantizerSpec(bits=bits, signed=signed, symmetric=False, granularity=PerChannel(axis=0))
    weight, found = drawn(spec, "sigmoid")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        found.variables[0].copy_(torch.randn(weight.shape, generator=generator))
    floor = torch.floor(weight / found.grid.scale)
    steps = found.steps()
    low, high = found.grid.clipped(floor), found.grid.clipped(floor + 1)
    assert ((steps == low) | (steps == high)).all()


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_weights_and_their_scales_have_gradients(rounding: str, granularity) -> None:
    _, found = drawn(QuantizerSpec(bits=3, granularity=granularity), rounding)
    generator = torch.Generator().manual_seed(0)
    (found.soft(0.3) * torch.randn(4, 5, 3, generator=generator)).sum().backward()
    for variable in (*found.variables, found.grid.stretch):
        assert variable.grad is not None
        assert variable.grad.abs().sum() > 0


def test_progressive_rounding_ends_on_codes() -> None:
    _, found = drawn(QuantizerSpec(bits=3, granularity=PerChannel(axis=0)), "progressive")
    steps = (found.soft(1.0) / found.grid.scale).detach()
    assert (steps - steps.round()).abs().max() < 1e-5


def test_the_penalty_vanishes_when_all_is_decided() -> None:
    _, found = drawn(QuantizerSpec(bits=3, granularity=PerChannel(axis=0)), "sigmoid")
    assert float(found.penalty(2.0).detach()) > 0
    assert found.undecided() > 0.9
    with torch.no_grad():
        found.variables[0].mul_(100)
    assert float(found.penalty(2.0).detach()) == pytest.approx(0)
    assert found.undecided() == 0


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_expanded_scales_equal_those_of_numpy(granularity) -> None:
    spec = QuantizerSpec(bits=4, granularity=granularity)
    array = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
    params = params_from_range(spec, *ranges(array, granularity))
    there, _ = params.expanded(spec, array.shape)
    here = expanded(torch.tensor(params.scale), granularity, array.shape)
    np.testing.assert_array_equal(np.broadcast_to(there, array.shape), here.expand(4, 5, 3))


def test_a_learned_scale_starts_at_the_calibrated_one_and_has_the_gradient_of_lsq() -> None:
    spec = QuantizerSpec(bits=2, signed=False, symmetric=False)
    params = params_from_range(spec, -1.0, 2.0)
    scale = LearnedScale.of(spec, params, "cpu")
    x = torch.tensor([-5.0, -0.4, 0.3, 1.2, 9.0], requires_grad=True)
    found = scale(x)
    np.testing.assert_array_equal(found.detach(), fake_quantize_tensor(x.detach(), spec, params))
    found.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0], "straight through inside the range"
    ratio = x.detach().numpy() / params.scale
    inside = (np.rint(ratio) - ratio)[1:4].sum()
    expected = (-1 + inside + 2) * params.scale  # codes beyond the ends are -1 and 2; times scale: of its logarithm
    assert scale.stretch.grad.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(scale.params().scale, params.scale)


def test_drops_are_by_element_and_off_at_probability_0() -> None:
    exact, quantized = torch.zeros(4000), torch.ones(4000)

    def mixed(name: str, **changes: float) -> torch.Tensor:
        method = Method(name=name, inputs=name, **changes)
        return Mixer(method=method, generator=torch.Generator().manual_seed(0))(exact, quantized)

    assert 0.15 < float(mixed("drop", drop_prob=0.8).mean()) < 0.25
    assert set(mixed("drop").tolist()) == {0.0, 1.0}
    assert mixed("drop", drop_prob=0.0).equal(quantized)
    assert mixed("drop", drop_prob=1.0).equal(exact)
    assert mixed("quantized").equal(quantized)
    assert mixed("float").equal(exact)
    assert 0.45 < float(mixed("mixture").mean()) < 0.55


def test_a_short_run_has_rates_that_reach_as_far() -> None:
    short = METHODS["qdrop"].shortened(2_000)
    assert short.rates.rounding == pytest.approx(1e-2)
    assert METHODS["qdrop"].shortened(10).rates.rounding == 3e-2, "but they do not grow without end"
    assert METHODS["brecq"].shortened(2_000).activation_iterations == 500
    assert METHODS["ae-qdrop"].shortened(100).global_iterations == 20
    with pytest.raises(ValueError, match="probability"):
        Method(name="x", drop_prob=1.5)


def test_scales_that_are_shared_in_the_file_are_learned_as_one(resnet, images, make_encoding) -> None:
    encoding = make_encoding(resnet, images, variant=5)
    groups = groups_of(encoding)
    assert set(groups) == set(encoding.plan.specs)
    readers = [p for p in encoding.plan.activations if p.value == "a"]
    assert len(readers) == 2, "a convolution and an addition"
    assert groups[readers[0]] == frozenset(readers)
    inside = {readers[0]: groups[readers[0]]}
    assert learnable(inside, frozenset()) == (groups[readers[0]],)
    assert learnable(inside, frozenset({readers[1]})) == (), "an earlier block has used it"
