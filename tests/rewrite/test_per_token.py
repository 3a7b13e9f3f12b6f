"""A scale for each token on fixed quantizers: integer for integer what numpy says, on engines, at any length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

from fptq.calibrate import calibrate
from fptq.graph import query
from fptq.graph.model import Model
from fptq.numerics import QuantizerSpec, params_from_range, quantize
from fptq.plan import Encoding, Placement, materialize
from fptq.rewrite import ProductInput, applied, product_inputs, scale_tokens, takes_tokens
from fptq.rewrite.per_token import LEAST, reach

BOTH = [pytest.param(name, marks=pytest.mark.engine(name)) for name in ("onnxruntime", "openvino")]
U8, S8 = QuantizerSpec(signed=False, symmetric=False), QuantizerSpec()
NETS = ("gemm", "transposed", "biased", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Case:
    model: Model
    encoding: Encoding
    cut: ProductInput
    changed: Model
    scaled: Encoding


def drawn(shape: tuple[int, ...], *, seed: int = 1) -> np.ndarray:
    """Rows of very different sizes, and two of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32) * np.float32(10) ** rng.integers(-3, 4, (*shape[:-1], 1))
    x[..., :1, :] = 0
    return x.astype(np.float32)


def shape_of(name: str) -> tuple[int, ...]:
    return (6, 8) if name in ("gemm", "transposed") else (2, 6, 8)


def dynamic(model: Model) -> Model:
    graph = model.clone()
    for value in (*graph.graph.inputs, *(node.outputs[0] for node in graph.graph)):
        value.shape = ir.Shape(["batch", "length", 8 if value.name in ("x", "v0") else 16])
    return model.with_graph(graph)


@pytest.fixture
def case(product: Callable, planned: Callable) -> Callable[..., Case]:
    def made(name: str, *, spec: QuantizerSpec = U8, ends: tuple[float, float] = (-1.0, 1.0)) -> Case:
        model = dynamic(product("biased")) if name == "dynamic" else product(name)
        encoding = calibrate(model, planned(model, spec), [{"x": drawn(shape_of(name))}])
        (cut,) = product_inputs(model, encoding.plan)
        assert takes_tokens(model, cut)
        changed, scaled = applied(model, encoding, partial(scale_tokens, cut=cut, ends=ends))
        return Case(model=model, encoding=encoding, cut=cut, changed=changed, scaled=scaled)

    return made


def in_integers(found: Case, x: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Codes of rows divided by their reach, an integer product, and one multiplication behind it."""
    rows = -x
    far, params = reach(rows, ends), params_from_range(found.cut.spec, *ends)
    codes = quantize(rows / far, found.cut.spec, params).astype(np.int64) - int(params.zero_point.item())
    (weight,) = found.encoding.plan.weights
    content = query.constant(found.model.graph.initializers[weight.value])
    bias = query.constant(found.model.graph.initializers["w1"])
    assert content is not None
    assert bias is not None
    numbers = found.encoding.params[weight]
    stored = quantize(content, found.encoding.plan.specs[weight], numbers).astype(np.int64)
    if content.shape[0] == 16:
        stored = stored.T
    return (codes @ stored) * (params.scale.astype(np.float64) * numbers.scale) * far + bias


def assert_same_codes(result: np.ndarray, expected: np.ndarray) -> None:
    """A code that is off by one would differ by about one in a thousand of the row's largest product."""
    assert result.shape == expected.shape
    assert (np.abs(result - expected) <= 2e-5 * np.abs(expected).max(-1, keepdims=True)).all()


@pytest.mark.parametrize("name", NETS)
def test_the_float_network_computes_the_same(case: Callable, run: Callable, name: str) -> None:
    found = case(name)
    assert {str(node.name) for node in found.model.graph} <= {str(node.name) for node in found.changed.graph}
    assert set(query.values(found.model.graph_model)) <= set(query.values(found.changed.graph_model))
    x = drawn(shape_of(name), seed=2)
    np.testing.assert_allclose(run(found.changed, x), run(found.model, x), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (-0.25, 1.0)], ids=str)
@pytest.mark.parametrize("spec", [U8, S8], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_engines_compute_the_integers_of_numpy(
    case: Callable, run: Callable, name: str, spec: QuantizerSpec, ends: tuple[float, float], engine: str
) -> None:
    found = case(name, spec=spec, ends=ends)
    x = drawn(shape_of(name), seed=3)
    expected = in_integers(found, x, ends)
    result = run(materialize(found.changed, found.scaled), x, engine=engine)
    assert np.isfinite(result).all()
    assert_same_codes(result, expected)


@pytest.mark.parametrize("engine", BOTH)
def test_batch_and_length_stay_dynamic(case: Callable, compiled: Callable, engine: str) -> None:
    found = case("dynamic")
    session = compiled(materialize(found.changed, found.scaled), engine)
    for shape in ((1, 1, 8), (3, 11, 8)):
        x = drawn(shape, seed=4)
        (result,) = session({"x": x}).values()
        expected = in_integers(found, x, (-1.0, 1.0))
        assert_same_codes(result, expected)


@pytest.mark.parametrize("engine", BOTH)
def test_a_row_of_zeros_gives_the_bias(case: Callable, run: Callable, engine: str) -> None:
    found = case("gemm")
    result = run(materialize(found.changed, found.scaled), np.zeros((6, 8), np.float32), engine=engine)
    bias = query.constant(found.model.graph.initializers["w1"])
    assert bias is not None
    np.testing.assert_array_equal(result, np.broadcast_to(bias, (6, 16)))


@pytest.mark.parametrize("engine", BOTH)
def test_the_product_runs_on_an_integer_kernel(case: Callable, compiled: Callable, engine: str) -> None:
    found = case("gemm" if engine == "onnxruntime" else "biased")
    session = compiled(materialize(found.changed, found.scaled), engine)
    x = drawn((6, 8) if engine == "onnxruntime" else (2, 6, 8))
    ran = {name: run.precision for run in session.profile({"x": x}) for name in run.nodes}
    assert ran[found.cut.readers[0]] == "int8"


def test_rows_lie_within_the_ends() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    for ends in ((-1.0, 1.0), (-0.25, 1.0), (-1.0, 0.5)):
        scaled = rows / reach(rows, ends)
        assert scaled.min() >= ends[0] * (1 + 1e-6)
        assert scaled.max() <= ends[1] * (1 + 1e-6)
    assert reach(np.zeros((2, 4), np.float32), (-1.0, 1.0)).tolist() == [[np.float32(LEAST)]] * 2


def test_small_tokens_beside_large_ones_keep_their_values(case: Callable, run: Callable) -> None:
    found = case("biased")
    x = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    x[:, 1:] *= 0.01
    exact = run(found.model, x)[:, 1:]
    uniform, scaled = (
        run(materialize(model, encoding), x)[:, 1:]
        for model, encoding in ((found.model, found.encoding), (found.changed, found.scaled))
    )
    bias = exact.mean((0, 1))
    assert np.square(scaled - exact).mean() < 0.01 * np.square(uniform - exact).mean()
    assert np.square(scaled - exact).mean() < 0.01 * np.square(exact - bias).mean()


def test_the_encoding_has_a_fixed_quantizer_and_no_int32_bias(case: Callable) -> None:
    found = case("gemm")
    placement = Placement("v0_per_token", "Gemm_1", 0)
    assert placement in found.scaled.plan.activations
    assert found.scaled.params[placement].scale == np.float32(2 / 255)
    assert found.scaled.plan.int32_bias == frozenset()
    assert found.scaled.model_sha256 == found.changed.sha256


def test_channels_that_are_not_last_and_scaled_gemms_are_left_alone(net: Callable, planned: Callable) -> None:
    n = net((1, 8, 6, 6))
    n.conv(8, 16)
    model = n.model()
    (cut,) = product_inputs(model, planned(model, U8))
    assert not takes_tokens(model, cut)
    n = net((6, 8))
    n("Gemm", n.stored(8, 16), n.stored(16), alpha=0.5)
    model = n.model()
    (cut,) = product_inputs(model, planned(model, U8))
    assert not takes_tokens(model, cut)
