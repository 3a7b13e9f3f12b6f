"""In torch every element is what numpy, and so ONNX Runtime, makes of it: in parts, in place and with gradients."""

import numpy as np
import pytest
import torch

import fptq.numerics.torch_uniform as module
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, fake_quantize, params_from_range, ranges
from fptq.numerics.torch_uniform import fake_quantize_tensor, pack

SHAPE = (3, 10, 8)


def quantizer(x, spec):
    return params_from_range(spec, *ranges(x, spec.granularity))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "_PART", 50)


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=1), PerBlock(axis=1, size=4)], ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_every_element_equals_numpy(bits, signed, granularity, learning):
    spec = QuantizerSpec(bits=bits, signed=signed, symmetric=False, granularity=granularity)
    x = np.random.default_rng(bits).standard_normal(SHAPE).astype(np.float32)
    params = quantizer(x, spec)
    tensor = torch.tensor(1.5 * x, requires_grad=learning)
    found = fake_quantize_tensor(tensor, spec, params).detach().numpy()
    np.testing.assert_array_equal(found, fake_quantize(1.5 * x, spec, params))
    assert not np.signbit(found[found == 0]).any(), "zero has no sign"


def test_ties_go_to_even():
    spec = QuantizerSpec(signed=False, symmetric=False)
    params = params_from_range(spec, -1.0, 1.55)  # a scale of 0.01 and an even zero point
    x = ((np.arange(-300, 300) + 0.5) * params.scale).astype(np.float32)
    found = fake_quantize_tensor(torch.from_numpy(x), spec, params)
    np.testing.assert_array_equal(found.numpy(), fake_quantize(x, spec, params))


@pytest.mark.parametrize("moved", [False, True])
def test_the_layout_in_memory_does_not_matter(moved):
    spec = QuantizerSpec(bits=4)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    tensor = torch.from_numpy(x).movedim(0, 2) if moved else torch.from_numpy(x)[:, ::2]
    found = fake_quantize_tensor(tensor, spec, quantizer(x, spec))
    np.testing.assert_array_equal(found.numpy(), fake_quantize(tensor.numpy(), spec, quantizer(x, spec)))


def test_what_is_quantized_stays_as_it_was():
    spec = QuantizerSpec(bits=2)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    fake_quantize_tensor(x, spec, quantizer(x.numpy(), spec))
    assert torch.equal(x, before)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=1), PerBlock(axis=1, size=4)], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "width"), [(2, 1), (4, 1), (8, 1), (16, 2)])
def test_packed_is_the_same_in_less_memory(bits, width, symmetric, granularity):
    spec = QuantizerSpec(bits=bits, symmetric=symmetric, granularity=granularity)
    x = np.random.default_rng(bits).standard_normal(SHAPE).astype(np.float32)
    packed = pack(torch.from_numpy(1.5 * x), spec, quantizer(x, spec))
    found = packed.unpacked().numpy()
    np.testing.assert_array_equal(found, fake_quantize(1.5 * x, spec, quantizer(x, spec)))
    assert not np.signbit(found[found == 0]).any()
    assert not symmetric or packed.steps.element_size() == width
