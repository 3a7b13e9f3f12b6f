"""In torch every element is what numpy makes of it, and gradients pass within the range."""

import numpy as np
import pytest
import torch

from fptq.numerics import (
    LAPLACE,
    PerBlock,
    PerChannel,
    PerTensor,
    PiecewiseSpec,
    QuantizerSpec,
    fake_quantize_piecewise,
    params_from_breakpoints,
    params_from_tensor,
)
from fptq.numerics.torch_piecewise import fake_quantize_piecewise_tensor

SHAPE = (3, 10, 8)


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=1), PerBlock(axis=-1, size=8)], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("regions", [2, 3])
def test_every_element_equals_numpy(regions, symmetric, granularity, learning):
    region = QuantizerSpec(bits=4, symmetric=symmetric, narrow=symmetric, granularity=granularity)
    spec = PiecewiseSpec(region=region, regions=regions)
    x = np.random.default_rng(regions).standard_t(2, SHAPE).astype(np.float32)
    params = params_from_tensor(x, spec, density=LAPLACE)
    tensor = torch.tensor(1.5 * x, requires_grad=learning)
    found = fake_quantize_piecewise_tensor(tensor, spec, params).detach().numpy()
    np.testing.assert_array_equal(found, fake_quantize_piecewise(1.5 * x, spec, params))


def test_gradients_pass_within_the_range():
    spec = PiecewiseSpec()
    params = params_from_breakpoints(spec, -4.0, 4.0, [(-1.0, 1.0)])
    x = torch.tensor([-9.0, -3.0, -0.3, 0.0, 0.3, 3.0, 9.0], requires_grad=True)
    fake_quantize_piecewise_tensor(x, spec, params).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]
