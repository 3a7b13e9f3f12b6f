"""Breakpoints from a sketch are those that the values themselves would give."""

import numpy as np
import pytest

from fptq.calibrate.observers import Lp
from fptq.calibrate.piecewise import piecewise_params, sketched_sqnr
from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import Reading
from fptq.numerics import (
    PerChannel,
    PiecewiseSpec,
    QuantizerSpec,
    Values,
    fake_quantize,
    fake_quantize_piecewise,
    lp_error,
    searched_params,
)

U8 = QuantizerSpec(signed=False, symmetric=False)
SPECS = [PiecewiseSpec(), PiecewiseSpec(region=U8), PiecewiseSpec(region=QuantizerSpec(bits=4, narrow=True), regions=3)]


def drawn(name):
    rng = np.random.default_rng(0)
    z = rng.standard_normal(20_000)
    return np.float32(
        {
            "gaussian": z,
            "heavy": rng.standard_t(2, 20_000),
            "relu": np.maximum(z, 0),
            "gelu": z / (1 + np.exp(-1.702 * z)),
            "outliers": z + 500 * (rng.random(20_000) < 1e-3),
        }[name]
    )


def sketch(x, stride=1):
    return Sketch.of(Reading(low=x.min(), high=x.max(), sample=x[::stride]))


def error(x, spec, params, p=2.4):
    return float(np.mean(np.abs(x - fake_quantize_piecewise(x, spec, params)).astype(np.float64) ** p))


@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", ["gaussian", "heavy", "relu", "gelu", "outliers"])
def test_a_sketch_is_as_good_as_the_values(name, spec, stride):
    """Also where the first region is narrower than a few bins of the histogram."""
    x = drawn(name)
    direct = searched_params(spec, Values(rows=x[None]), p=2.4).reshaped(())
    assert error(x, spec, piecewise_params(spec, sketch(x, stride))) <= error(x, spec, direct) * 1.5


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", ["gaussian", "heavy", "relu", "gelu", "outliers"])
def test_never_worse_than_the_best_uniform_quantizer(name, spec):
    x = drawn(name)
    uniform = lp_error(x, spec.region, Lp().params(spec.region, sketch(x)))
    assert error(x, spec, piecewise_params(spec, sketch(x))) <= uniform


def test_per_channel():
    x = np.float32(np.random.default_rng(0).standard_t(3, (4, 3000)) * [[1], [50], [0], [0.01]])
    reading = Reading(
        low=x.min(axis=1), high=x.max(axis=1), sample=x.reshape(-1), channels=np.repeat(np.arange(4), x.shape[1])
    )
    spec = PiecewiseSpec(region=U8).with_granularity(PerChannel(axis=0))
    found = piecewise_params(spec, Sketch.of(reading))
    assert [region.scale.shape for region in found.regions] == [(4,), (4,)]
    seen = fake_quantize_piecewise(x, spec, found)
    power = (x.astype(np.float64) ** 2).mean(axis=1)
    assert (((x - seen).astype(np.float64) ** 2).mean(axis=1) <= 1e-4 * power).all()


@pytest.mark.parametrize("x", [[0.0, 0.0], [2.5] * 3, [-1.0]], ids=str)
def test_degenerate_activations(x):
    x = np.float32(x)
    for spec in SPECS:
        np.testing.assert_allclose(fake_quantize_piecewise(x, spec, piecewise_params(spec, sketch(x))), x, rtol=0.02)


def test_exponents_out_of_range():
    with pytest.raises(ValueError, match="between 1 and 8"):
        piecewise_params(PiecewiseSpec(), sketch(np.float32([1, 2])), p=0.5)


@pytest.mark.parametrize("name", ["gaussian", "heavy", "relu", "gelu", "outliers"])
def test_what_a_quantizer_leaves_of_a_sketch_is_what_it_leaves_of_the_values(name):
    x, params = drawn(name), Lp().params(U8, sketch(drawn(name)))
    noise = np.square((x - fake_quantize(x, U8, params)).astype(np.float64)).sum()
    expected = 10 * np.log10(np.square(x.astype(np.float64)).sum() / noise)
    found = sketched_sqnr(sketch(x), lambda values: fake_quantize(values, U8, params))
    assert found == pytest.approx(expected, abs=1.0)


def test_a_quantizer_that_changes_nothing_leaves_everything():
    assert sketched_sqnr(sketch(drawn("gaussian")), lambda values: values) == np.inf
