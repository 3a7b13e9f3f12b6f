"""Two regions as two products: the same network in float, the simulation of the numerics in integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

from fptq.calibrate import calibrate
from fptq.graph import query
from fptq.graph.model import Model
from fptq.numerics import (
    PerBlock,
    PiecewiseSpec,
    QuantizerSpec,
    fake_quantize,
    fake_quantize_piecewise,
    params_from_breakpoints,
)
from fptq.plan import PROFILES, Encoding, Placement, Plan, materialize, place
from fptq.rewrite import ProductInput, Regions, applied, cut_in_regions, product_inputs

ENGINE_NAMES = ["onnxruntime", "openvino"]
OUTLIERS = (1, 6)
U8, S8 = QuantizerSpec(signed=False, symmetric=False), QuantizerSpec()


def gemm(net: Callable) -> Model:
    n = net((6, 8))
    n("Sub", n.stored(8))
    n("Gemm", n.stored(16, 8), n.stored(16), transB=1)
    return n.model()


def matmul(net: Callable) -> Model:
    n = net((2, 6, 8))
    n("Sub", n.stored(8))
    n("MatMul", n.stored(8, 16))
    return n.model()


def conv(rank: int) -> Callable[[Callable], Model]:
    def made(net: Callable) -> Model:
        n = net((1, 8, *[6] * rank))
        n("Neg")
        n.conv(8, 16, rank=rank)
        return n.model()

    return made


NETS = {"gemm": gemm, "matmul": matmul, "conv1d": conv(1), "conv2d": conv(2), "conv3d": conv(3)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network that was cut, with what it was before."""

    model: Model
    encoding: Encoding
    cut: ProductInput
    regions: Regions
    changed: Model
    cut_encoding: Encoding

    @property
    def x(self) -> np.ndarray:
        return drawn(self.model)


def drawn(model: Model, seed: int = 1, factor: float = 60.0) -> np.ndarray:
    """Two channels a lot larger than the others."""
    shape = tuple(model.inputs[0].shape or ())
    x = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    axis = 1 if any(node.op_type == "Conv" for node in model.graph) else x.ndim - 1
    index = [slice(None)] * x.ndim
    index[axis] = list(OUTLIERS)  # type: ignore[call-overload]
    x[tuple(index)] *= factor
    return x


INNER = {2: [(-1.7, 1.6)], 3: [(-0.7, 0.8), (-9.0, 6.0)]}


@pytest.fixture
def case(net: Callable, planned: Callable) -> Callable[..., Case]:
    def made(name: str, *, spec: QuantizerSpec = U8, channels: tuple[int, ...] = OUTLIERS, regions: int = 2) -> Case:
        model = NETS[name](net)
        encoding = calibrate(model, planned(model, spec), [{"x": drawn(model)}])
        (cut,) = product_inputs(model, encoding.plan)
        params = params_from_breakpoints(PiecewiseSpec(region=spec, regions=regions), -61.0, 61.0, INNER[regions])
        cut_at = Regions(params=params, channels=channels)
        changed, cut_encoding = applied(model, encoding, partial(cut_in_regions, cut=cut, regions=cut_at))
        return Case(model=model, encoding=encoding, cut=cut, regions=cut_at, changed=changed, cut_encoding=cut_encoding)

    return made


def simulated(found: Case, run: Callable[..., np.ndarray]) -> np.ndarray:
    """The product with what the numerics make of its input and its weight."""
    spec = PiecewiseSpec(region=found.cut.spec, regions=len(found.regions.params.regions))
    plan = found.encoding.plan
    (weight,) = plan.weights
    constant = query.constant(found.model.graph.initializers[weight.value])
    assert constant is not None
    changed = found.model.clone()
    value = query.values(changed)[found.cut.value]
    changed.graph.outputs[:] = [value]
    seen = run(found.model.with_graph(changed), found.x)
    exact = fake_quantize_piecewise(seen, spec, found.regions.params)
    centre = fake_quantize(seen, found.cut.spec, found.regions.params.regions[0])
    in_two = np.isin(np.arange(found.cut.channels), found.regions.channels)
    shape = [-1 if axis == found.cut.axis else 1 for axis in range(seen.ndim)]
    inner = np.where(in_two.reshape(shape), exact, centre)
    rest = found.model.clone()
    rest.graph.initializers[weight.value].const_value = ir.tensor(
        fake_quantize(constant, plan.specs[weight], found.encoding.params[weight]), name=weight.value
    )
    values = query.values(rest)
    values[found.cut.value].replace_all_uses_with(values["x"])
    return run(found.model.with_graph(rest), inner)


@pytest.mark.parametrize("regions", [2, 3])
@pytest.mark.parametrize("channels", [OUTLIERS, tuple(range(8))], ids=["some", "all"])
@pytest.mark.parametrize("name", NETS)
def test_the_float_network_computes_the_same_whatever_its_input(
    case: Callable, run: Callable, name: str, channels: tuple[int, ...], regions: int
) -> None:
    found = case(name, channels=channels, regions=regions)
    kept = {str(node.name) for node in found.model.graph} - {str(node.name) for node in found.changed.graph}
    assert not kept
    assert set(query.values(found.model.graph_model)) <= set(query.values(found.changed.graph_model))
    for factor in (0.1, 60.0, 5000.0):  # far beyond what was seen, in channels without a tail too
        x = drawn(found.model, seed=2, factor=factor) * np.float32(100 if factor == 0.1 else 1)
        before, after = run(found.model, x), run(found.changed, x)
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6 * np.abs(before).max())


@pytest.mark.parametrize("engine", [pytest.param(name, marks=pytest.mark.engine(name)) for name in ENGINE_NAMES])
@pytest.mark.parametrize("regions", [2, 3])
@pytest.mark.parametrize("channels", [OUTLIERS, tuple(range(8))], ids=["some", "all"])
@pytest.mark.parametrize("spec", [U8, S8], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_engines_compute_what_the_numerics_say(
    case: Callable, run: Callable, name: str, spec: QuantizerSpec, channels: tuple[int, ...], engine: str, regions: int
) -> None:
    found = case(name, spec=spec, channels=channels, regions=regions)
    expected = simulated(found, run)
    result = run(materialize(found.changed, found.cut_encoding), found.x, engine=engine)
    step = found.regions.params.regions[0].scale * found.encoding.params[next(iter(found.encoding.plan.weights))].scale
    # The bias of a Gemm is rounded to half a step of the product; sums of integers are exact.
    np.testing.assert_allclose(result, expected, atol=1.01 * float(step.max()) / 2 + 1e-5 * np.abs(expected).max())
    if name != "gemm":
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("engine", [pytest.param(name, marks=pytest.mark.engine(name)) for name in ENGINE_NAMES])
def test_heavy_tails_cost_less_in_two_regions(net: Callable, planned: Callable, run: Callable, engine: str) -> None:
    n = net((64, 64))
    n("Neg")
    n("Gemm", n.stored(32, 64), n.stored(32), transB=1)
    model, x = n.model(), np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    x[::16, [5, 40]] *= 50  # few tokens, few channels
    uniform = calibrate(model, planned(model, U8), [{"x": x}])
    (cut,) = product_inputs(model, uniform.plan)
    rest = -np.delete(x, [5, 40], axis=1)
    inner = [(float(rest.min()), float(rest.max()))]
    params = params_from_breakpoints(PiecewiseSpec(region=U8), float(-x.max()), float(-x.min()), inner)
    changed, in_two = applied(
        model, uniform, partial(cut_in_regions, cut=cut, regions=Regions(params=params, channels=(5, 40)))
    )
    exact = run(model, x)
    errors = [
        np.square(run(materialize(made, encoding), x, engine=engine) - exact).mean()
        for made, encoding in ((model, uniform), (changed, in_two))
    ]
    assert errors[1] < errors[0] / 10


@pytest.mark.parametrize("engine", [pytest.param(name, marks=pytest.mark.engine(name)) for name in ENGINE_NAMES])
def test_both_products_run_on_integer_kernels(case: Callable, compiled: Callable, engine: str) -> None:
    name = "gemm" if engine == "onnxruntime" else "matmul"
    found = case(name, channels=(1, 2, 5, 6))
    session = compiled(materialize(found.changed, found.cut_encoding), engine)
    ran = {name: run.precision for run in session.profile({"x": found.x}) for name in run.nodes}
    (reader,) = found.cut.readers
    assert ran[reader] == "int8"
    assert ran[f"{reader}_tail"] == "int8"


@pytest.mark.parametrize("regions", [2, 3])
def test_tails_of_all_channels_share_the_stored_weight(case: Callable, regions: int) -> None:
    found = case("gemm", channels=tuple(range(8)), regions=regions)
    made = materialize(found.changed, found.cut_encoding)
    stored = [name for name in made.graph.initializers if name.startswith("w1")]
    assert sum("quantized" in name for name in stored) == 1
    assert len(found.cut_encoding.plan.ties) == 1


def test_codes_of_a_part_are_those_of_the_whole(case: Callable) -> None:
    found = case("gemm")
    made = materialize(found.changed, found.cut_encoding)
    whole, part = (query.constant(made.graph.initializers[f"{n}_quantized"]) for n in ("w1", "Gemm_1_tail_weight"))
    assert whole is not None
    np.testing.assert_array_equal(part, whole[:, list(OUTLIERS)])
    again = calibrate(found.changed, found.cut_encoding.plan, [{"x": found.x}])  # also where scales are found again
    whole, part = (
        again.params[Placement(w, n, 1)].scale for w, n in (("w1", "Gemm_1"), ("Gemm_1_tail_weight", "Gemm_1_tail"))
    )
    np.testing.assert_array_equal(part, whole)


def test_learned_codes_of_a_part_are_those_of_the_whole(case: Callable) -> None:
    found = case("gemm")
    (weight,) = found.encoding.plan.weights
    learned = np.random.default_rng(0).integers(-127, 128, (16, 8))
    encoding = replace(found.encoding, codes={weight: learned})
    _, cut = applied(found.model, encoding, partial(cut_in_regions, cut=found.cut, regions=found.regions))
    np.testing.assert_array_equal(cut.codes[Placement("Gemm_1_tail_weight", "Gemm_1_tail", 1)], learned[:, [1, 6]])


def test_readers_of_one_activation_share_its_parts(net: Callable, planned: Callable, run: Callable) -> None:
    n = net((6, 8))
    source = n("Neg")
    first = n("MatMul", n.stored(8, 5))
    n.last = source
    n("MatMul", n.stored(8, 5))
    n("Add", first)
    model = n.model()
    encoding = calibrate(model, planned(model, U8), [{"x": drawn(model)}])
    (cut,) = product_inputs(model, encoding.plan)
    assert cut.readers == ("MatMul_1", "MatMul_2")
    assert cut.weights == 80
    params = params_from_breakpoints(PiecewiseSpec(region=U8), -61.0, 61.0, [(-1.7, 1.6)])
    changed, both = applied(
        model, encoding, partial(cut_in_regions, cut=cut, regions=Regions(params=params, channels=OUTLIERS))
    )
    assert sum(node.op_type == "Gather" for node in changed.graph) == 1
    quantizers = [node for node in materialize(changed, both).graph if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 2
    np.testing.assert_allclose(run(changed, drawn(model)), run(model, drawn(model)), atol=1e-4)


def test_new_nodes_come_from_the_users_node(case: Callable) -> None:
    found = case("matmul")
    model = replace(found.model, origin={"MatMul_1": ("encoder.0.dense",)})
    changed, _ = applied(model, found.encoding, partial(cut_in_regions, cut=found.cut, regions=found.regions))
    assert {changed.module_of(str(node.name)) for node in changed.graph} == {"", "encoder.0.dense"}
    assert changed.module_of("MatMul_1_tail") == "encoder.0.dense"


def test_what_cannot_be_cut_is_not_offered(net: Callable, planned: Callable) -> None:
    n = net((1, 8, 6, 6))
    n.conv(8, 8)
    n("Relu")
    n("Conv", n.stored(8, 2, 1, 1), group=4)
    model = n.model()
    profile = PROFILES["onnxruntime"]
    # ONNX Runtime's convolution rounds its result, and a grouped one has no slice for a channel.
    assert product_inputs(model, place(model, profile, profile.variants[0])) == ()
    assert [cut.readers for cut in product_inputs(model, planned(model, U8))] == [("Conv_0",)]
    tied = planned(model, U8)
    ties = (frozenset({Placement("x", "Conv_0", 0), Placement("v1", "Conv_2", 0)}),)
    assert product_inputs(model, Plan(engine="", specs=tied.specs, weights=tied.weights, ties=ties)) == ()
    blocks = {p: s.with_granularity(PerBlock(axis=1, size=2)) for p, s in tied.specs.items() if p in tied.weights}
    assert product_inputs(model, tied.with_specs(blocks)) == ()
    assert product_inputs(model, tied.only(*tied.weights)) == ()
