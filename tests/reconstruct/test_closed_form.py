from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.calibrate import CalibrationOptions, calibrate, weight_observer, weight_params
from fptq.errors import DataError
from fptq.execute import Executor, Overlay
from fptq.graph.model import Model
from fptq.graph.parity import run_graph
from fptq.graph.placement import Placement
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, UniformParams, quantize
from fptq.plan import PROFILES, materialize, place
from fptq.plan.encoding import Encoding
from fptq.plan.plan import Plan
from fptq.reconstruct.closed_form import ClosedFormOptions, gptaq, output_correction, ridge_correction
from fptq.reconstruct.covariance import Covariance, Draw, covariance
from fptq.reconstruct.gptaq import MatrixGrid, steps
from fptq.reconstruct.products import Product, products
from fptq.reconstruct.ridge import ridge
from fptq.reconstruct.walk import Revised

EVERY = Draw(rows=1 << 20)


def samples_of(columns: int, *, rows: int, shift: float = 0.0, seed: int = 0, group: int = 1) -> Covariance:
    """Correlated inputs; `shift`: how far the quantized ones are from the float ones."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(group, columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(group, rows, columns, generator=generator, dtype=torch.float64) @ mixing
    noise = torch.randn(group, rows, columns, generator=generator, dtype=torch.float64)
    x_q = x + shift * (noise - 0.5 * x)
    cross = (x - x_q).mT @ x_q if shift else None
    return known(x_q.mT @ x_q, cross)


def known(hessian: torch.Tensor, cross: torch.Tensor | None = None) -> Covariance:
    mean = torch.zeros(hessian.shape[:2], dtype=hessian.dtype)
    return Covariance(hessian=hessian, cross=cross, energy=1.0, floor=0.0, rows=1, mean=mean, mean_q=mean)


def grid_of(weight: torch.Tensor, *, bits: int) -> MatrixGrid:
    scale = weight.abs().amax(-1, keepdim=True).expand_as(weight) / (2 ** (bits - 1) - 0.5)
    low, high = torch.full_like(weight, -(2 ** (bits - 1))), torch.full_like(weight, 2 ** (bits - 1) - 1)
    return MatrixGrid(scale=scale, low=low, high=high)


def total(samples: Covariance, weight: torch.Tensor, grid: MatrixGrid, found: torch.Tensor) -> float:
    return float(samples.excess(weight, found * grid.scale).sum())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    columns=st.integers(1, 24),
    bits=st.sampled_from([2, 3, 4]),
    shift=st.sampled_from([0.0, 0.3]),
    asymmetry=st.sampled_from(["none", "gptaq", "ridge"]),
)
def test_never_worse_than_nearest_on_its_own_objective(seed, columns, bits, shift, asymmetry) -> None:
    samples = samples_of(columns, rows=2 * columns, shift=shift, seed=seed, group=2)
    weight = torch.randn(2, 5, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grid = grid_of(weight, bits=bits)
    found = steps(weight, grid, samples, damping=0.01, asymmetry=asymmetry, block=7)
    assert (found >= grid.low).all()
    assert (found <= grid.high).all()
    assert torch.equal(found, found.round())
    assert total(samples, weight, grid, found) <= total(samples, weight, grid, grid.nearest(weight)) + 1e-9


def test_much_better_than_nearest_where_inputs_are_correlated() -> None:
    samples, weight = samples_of(48, rows=500), torch.randn(1, 16, 48, dtype=torch.float64)
    grid = grid_of(weight, bits=4)
    found = steps(weight, grid, samples, damping=0.01, asymmetry="gptaq")
    assert total(samples, weight, grid, found) < 0.6 * total(samples, weight, grid, grid.nearest(weight))


def test_independent_inputs_are_rounded_to_nearest() -> None:
    diagonal = torch.diag_embed(torch.rand(1, 12, dtype=torch.float64) + 0.1)
    samples = known(diagonal)
    weight = torch.randn(1, 6, 12, dtype=torch.float64)
    grid = grid_of(weight, bits=3)
    found = steps(weight, grid, samples, damping=0.01, asymmetry="gptaq")
    assert torch.equal(found, grid.nearest(weight))


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_close_to_the_best_of_all_codes(shift: float) -> None:
    ratios = []
    for seed in range(12):
        samples = samples_of(5, rows=40, seed=seed, shift=shift)
        weight = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        grid = grid_of(weight, bits=2)
        every = torch.tensor(list(itertools.product(range(-2, 2), repeat=5)), dtype=torch.float64)[None]
        errors = samples.excess(weight.expand(1, len(every[0]), 5), every * grid.scale[:, :1])
        floor = float(errors.min())
        spread = total(samples, weight, grid, grid.nearest(weight)) - floor
        found = steps(weight, grid, samples, damping=0.01, asymmetry="ridge" if shift else "none")
        reached = total(samples, weight, grid, found) - floor
        assert reached >= -1e-9
        ratios.append(reached / spread if spread > 1e-12 else 0.0)
    assert np.mean(ratios) < 0.5  # of the way from the optimum to nearest rounding


@pytest.mark.parametrize("asymmetry", ["gptaq", "ridge"])
def test_the_asymmetric_term_helps_where_inputs_differ(asymmetry) -> None:
    plain, better = 0.0, 0.0
    for seed in range(5):
        samples = samples_of(32, rows=400, shift=0.2, seed=seed)
        weight = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        grid = grid_of(weight, bits=4)
        plain += total(samples, weight, grid, steps(weight, grid, samples, damping=0.01, asymmetry="none"))
        better += total(samples, weight, grid, steps(weight, grid, samples, damping=0.01, asymmetry=asymmetry))
    assert better < plain


def literal(weight: torch.Tensor, grid: MatrixGrid, samples: Covariance, damping: float) -> torch.Tensor:
    """The formulas as they are printed, one column at a time, for one group without reordering."""
    H, C = samples.hessian[0], samples.cross[0] if samples.cross is not None else torch.zeros_like(samples.hessian[0])
    H = H + damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    P = torch.triu(C @ U.T, diagonal=1) @ U
    W, q = weight[0].clone(), torch.empty_like(weight[0])
    for j in range(W.shape[1]):
        w = W[:, j].clone()
        q[:, j] = (w / grid.scale[0, :, j]).round().clamp(grid.low[0, :, j], grid.high[0, :, j])
        e = (w - q[:, j] * grid.scale[0, :, j]) / U[j, j]
        W[:, j:] += -e[:, None] * U[j, j:] + w[:, None] * P[j, j:]
    return q[None]


@pytest.mark.parametrize("shift", [0.0, 0.2])
@pytest.mark.parametrize("block", [1, 5, 128])
def test_blocks_compute_what_the_formulas_say(shift: float, block: int) -> None:
    samples = samples_of(20, rows=300, shift=shift)
    falling = samples.hessian[0].diagonal().argsort(descending=True)
    samples = replace(
        samples,
        hessian=samples.hessian[:, falling][:, :, falling],
        cross=None if samples.cross is None else samples.cross[:, falling][:, :, falling],
    )
    weight = torch.randn(1, 6, 20, dtype=torch.float64)
    grid = grid_of(weight, bits=4)
    expected = literal(weight, grid, samples, 0.01)
    better = samples.excess(weight, expected * grid.scale) < samples.excess(weight, grid.nearest(weight) * grid.scale)
    found = steps(weight, grid, samples, damping=0.01, asymmetry="gptaq", block=block)
    assert torch.equal(found, torch.where(better[..., None], expected, grid.nearest(weight)))


def test_inputs_that_are_always_zero_are_no_obstacle() -> None:
    samples = known(torch.zeros(1, 4, 4))
    weight = torch.randn(1, 2, 4)
    grid = grid_of(weight, bits=4)
    assert torch.equal(steps(weight, grid, samples, damping=0.01, asymmetry="gptaq"), grid.nearest(weight))


def test_ridge_is_least_squares_and_fades_with_its_strength() -> None:
    samples, weight = samples_of(8, rows=100, shift=0.3), torch.randn(1, 3, 8, dtype=torch.float64)
    free, stiff = ridge(weight, samples, 0.0), ridge(weight, samples, 1e9)
    for wobble in torch.randn(10, 1, 3, 8, dtype=torch.float64) * 0.1:
        assert (samples.excess(weight, free + wobble) >= samples.excess(weight, free)).all()
    assert torch.allclose(stiff, weight, atol=1e-6)
    assert ridge(weight, samples, float("inf")) is weight


# ------------------------------------------------------------------------------------------------ layers as matrices

CONVS = [
    pytest.param({}, {}, id="plain"),
    pytest.param({"strides": 2}, {}, id="stride"),
    pytest.param({"dilations": 2, "pads": 1}, {}, id="dilation"),
    pytest.param({"group": 2, "pads": 1}, {}, id="group"),
    pytest.param({"group": 4, "strides": 2}, {}, id="depthwise"),
    pytest.param({"strides": 2}, {"auto_pad": "SAME_UPPER"}, id="same-upper"),
    pytest.param({"strides": 2}, {"auto_pad": "SAME_LOWER"}, id="same-lower"),
    pytest.param({}, {"auto_pad": "VALID"}, id="valid"),
]
TRANSPOSED = [
    pytest.param({"strides": 2, "output_padding": 1, "pads": 1}, {}, id="output-padding"),
    pytest.param({"strides": 3, "dilations": 2}, {}, id="dilation-and-stride"),
]


def conv_net(net, op: str, rank: int, options: dict[str, int], rest: dict[str, str]) -> Model:
    n = net((2, 4, *(6, 7, 5)[:rank]))
    group, kernel = options.get("group", 1), [3, 2, 3][:rank]
    shape = (8, 4 // group) if op == "Conv" else (4, 8 // group)
    lists = {name: [value] * rank * (2 if name == "pads" else 1) for name, value in options.items() if name != "group"}
    n(op, n.stored(*shape, *kernel), kernel_shape=kernel, group=group, **lists, **rest)
    return n.model()


def one_weight(model: Model, *, bits: int = 4, granularity=None) -> tuple[Product, Plan]:
    node = next(node for node in model.graph if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"))
    index = next(i for i, value in enumerate(node.inputs) if value is not None and value.const_value is not None)
    placement = Placement(str(node.inputs[index].name), str(node.name), index)
    spec = QuantizerSpec(bits=bits, granularity=granularity or PerTensor())
    plan = Plan(engine="", specs={placement: spec}, weights=frozenset({placement}))
    (product,), refused = products(model, plan)
    assert not refused
    return product, plan


def check_product(model: Model) -> None:
    """Rows times matrix is what the executor computes; covariances are those of the outputs' derivatives by weights."""
    executor = Executor.open(model, dtype=torch.float64)
    product, _ = one_weight(model)
    weight = executor.weights[product.weight.value]
    matrix = product.matrix(weight)
    assert torch.equal(product.stored(matrix), weight)
    x = torch.randn([int(d) for d in model.inputs[0].shape or ()], dtype=torch.float64)
    windows = product.windows(x)
    rows = product.rows(windows, torch.arange(product.positions(windows)))
    y = executor.run({"x": x})[product.output].movedim(product.channel_axis, -1)
    expected = y.reshape(-1, matrix.shape[0], matrix.shape[1]).movedim(1, 0)
    assert torch.allclose(rows @ matrix.mT, expected, atol=1e-10)

    first = torch.zeros_like(matrix).expand(matrix.shape[-1], *matrix.shape).clone()
    first[:, 0, 0] = torch.eye(matrix.shape[-1], dtype=torch.float64)  # one weight of the first output channel each
    parts = [replace(executor, weights={**executor.weights, product.weight.value: product.stored(m)}) for m in first]
    outputs = [part.run({"x": x})[product.output].movedim(product.channel_axis, -1) for part in parts]
    unfolded = torch.stack([y.reshape(-1, *matrix.shape[:2])[:, 0, 0] for y in outputs], dim=1)
    samples = covariance(product, matrix, [(x, x)], EVERY)
    assert torch.allclose(samples.hessian[0], unfolded.T @ unfolded, atol=1e-9)
    assert samples.cross is None
    assert samples.energy == pytest.approx(float(y.square().sum()))


@pytest.mark.parametrize(("options", "rest"), CONVS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_as_matrices(net, rank: int, options, rest) -> None:
    check_product(conv_net(net, "Conv", rank, options, rest))


@pytest.mark.parametrize(("options", "rest"), CONVS[:5] + CONVS[5:7] + TRANSPOSED)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions_as_matrices(net, rank: int, options, rest) -> None:
    check_product(conv_net(net, "ConvTranspose", rank, options, rest))


@pytest.mark.parametrize(
    ("op", "shape", "stored", "attributes"),
    [
        ("Gemm", (5, 6), (6, 3), {}),
        ("Gemm", (5, 6), (3, 6), {"transB": 1}),
        ("Gemm", (6, 5), (6, 3), {"transA": 1}),
        ("MatMul", (2, 5, 6), (6, 3), {}),
        ("MatMul", (2, 4, 5, 6), (6, 3), {}),
    ],
)
def test_matrix_products_as_matrices(net, op: str, shape, stored, attributes) -> None:
    n = net(shape)
    n(op, n.stored(*stored), **attributes)
    check_product(n.model())


def test_a_stored_matrix_on_the_left(net) -> None:
    n = net((2, 6, 5))
    weight, x = n.stored(3, 6), n.last
    n.last = weight
    n("MatMul", x)
    check_product(n.model())


def test_chunks_and_seeds(net) -> None:
    model = conv_net(net, "Conv", 3, {"pads": 1}, {})
    product, _ = one_weight(model)
    executor = Executor.open(model, dtype=torch.float64)
    matrix = product.matrix(executor.weights[product.weight.value])
    inputs = [(x, x + 0.1 * torch.randn_like(x)) for x in torch.randn(3, 2, 4, 6, 7, 5, dtype=torch.float64)]
    whole = covariance(product, matrix, inputs, EVERY)
    pieces = covariance(product, matrix, inputs, replace(EVERY, chunk=1000))
    assert torch.allclose(whole.hessian, pieces.hessian)
    assert whole.cross is not None
    assert pieces.cross is not None
    assert torch.allclose(whole.cross, pieces.cross)
    drawn = [covariance(product, matrix, inputs, Draw(rows=50, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0].rows == 150
    assert torch.equal(drawn[0].hessian, drawn[1].hessian)
    assert not torch.equal(drawn[0].hessian, drawn[2].hessian)


# -------------------------------------------------------------------------------------------------------- networks


def deep(net, rank: int) -> Model:
    n = net((1, 4, *[8] * rank), seed=3)
    n.conv(4, 8, rank=rank)
    n("Relu")
    skip = n.conv(8, 8, rank=rank)
    n("Relu")
    n.conv(8, 8, rank=rank)
    n("Add", skip)
    n("ConvTranspose", n.stored(8, 8, *[2] * rank), n.stored(8), kernel_shape=[2] * rank, strides=[2] * rank)
    n("Relu")
    n.conv(8, 4, rank=rank, kernel=1)
    return n.model()


def images(rank: int, count: int, *, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Neighbours are alike, as in pictures."""
    rng = np.random.default_rng(seed)
    smooth = rng.standard_normal((count, 1, 4, *[4] * rank)).astype(np.float32)
    for axis in range(3, 3 + rank):
        smooth = smooth.repeat(2, axis)
    return [{"x": x + 0.2 * rng.standard_normal(x.shape).astype(np.float32)} for x in smooth]


def encoded(model: Model, feeds, *, weight_bits=4, activation_bits=8, granularity=None, spec=None) -> Encoding:
    specs: dict[Placement, QuantizerSpec] = {}
    weights = set()
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            source, weight = (Placement(str(node.inputs[i].name), str(node.name), i) for i in (0, 1))
            specs[source] = QuantizerSpec(bits=activation_bits, signed=False, symmetric=False)
            axis = int(node.op_type == "ConvTranspose")
            specs[weight] = spec or QuantizerSpec(bits=weight_bits, granularity=granularity or PerChannel(axis=axis))
            weights.add(weight)
    plan = Plan(engine="", specs=specs, weights=frozenset(weights))
    options = CalibrationOptions(weight_observer=weight_observer("lp"))
    return calibrate(model, plan, feeds, options=options)


def network_error(model: Model, encoding: Encoding, feeds, *, reference: Model | None = None) -> float:
    """Squared error of the file in ONNX Runtime relative to the float file's squared output."""
    quantized = materialize(model, encoding)
    exact = [run_graph((reference or model).graph_model, x) for x in feeds]
    outputs = [run_graph(quantized.graph_model, x) for x in feeds]
    name = model.outputs[0].name
    error = sum(float(np.square(a[name] - b[name]).sum()) for a, b in zip(exact, outputs, strict=True))
    return error / sum(float(np.square(a[name]).sum()) for a in exact)


@pytest.mark.parametrize("asymmetry", ["gptaq", "ridge"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_network_comes_nearer_to_float_on_other_samples(net, rank: int, asymmetry) -> None:
    model, feeds, others = deep(net, rank), images(rank, 12), images(rank, 6, seed=9)
    encoding = encoded(model, feeds)
    found = gptaq(Executor.open(model), encoding, feeds, options=ClosedFormOptions(asymmetry=asymmetry))
    assert not found.skipped
    assert [gain.node for gain in found.gains] == [
        p.consumer for p in encoding.plan.specs if p in encoding.plan.weights
    ]
    assert all(gain.after <= gain.before for gain in found.gains)
    before, after = network_error(model, encoding, others), network_error(model, found.encoding, others)
    assert after < before
    for placement, codes in found.encoding.codes.items():
        spec = encoding.plan.specs[placement]
        assert codes.dtype == np.int8
        assert spec.qmin <= codes.min() <= codes.max() <= spec.qmax


def assert_file_equals_simulation(executor: Executor, encoding: Encoding, feeds) -> None:
    """The Q/DQ file in ONNX Runtime computes what the methods saw."""
    quantized, hook = materialize(executor.model, encoding), Revised(overlay=Overlay(encoding=encoding))
    name = executor.model.outputs[0].name
    for x in feeds:
        found = run_graph(quantized.graph_model, x)[name]
        expected = executor.run(x, hook=hook)[name].numpy()
        difference = np.abs(found - expected)
        assert np.mean(difference > 1e-4 * np.abs(expected).max()) < 0.02  # a code at a tie may fall either way


GRANULARITIES = [
    QuantizerSpec(bits=4, granularity=PerTensor()),
    QuantizerSpec(bits=4, granularity=PerBlock(axis=1, size=4)),
    QuantizerSpec(bits=4, granularity=PerBlock(axis=0, size=4)),
    QuantizerSpec(bits=3, signed=False, symmetric=False, granularity=PerChannel(axis=0)),
    QuantizerSpec(bits=2, narrow=True, granularity=PerChannel(axis=0)),
]


@pytest.mark.parametrize("spec", GRANULARITIES, ids=str)
def test_whatever_shares_a_scale(net, spec: QuantizerSpec) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 8)
    n("Relu")
    n.conv(8, 6)
    model, feeds = n.model(), images(2, 8)
    encoding = encoded(model, feeds, spec=spec)
    executor = Executor.open(model)
    found = gptaq(executor, encoding, feeds)
    for placement, codes in found.encoding.codes.items():
        assert spec.qmin <= codes.min() <= codes.max() <= spec.qmax
        weight = executor.weights[placement.value].numpy()
        assert (codes != quantize(weight, spec, encoding.params[placement])).any()
    assert all(gain.after < gain.before for gain in found.gains)
    assert_file_equals_simulation(executor, found.encoding, feeds[:2])


def test_matrix_products_in_a_network(net) -> None:
    n = net((3, 5, 8))
    n("MatMul", n.stored(8, 12))
    n("Relu")
    n("Reshape", constant_of(n, [-1, 12]))
    n("Gemm", n.stored(6, 12), n.stored(6), transB=1, alpha=0.5)
    model, rng = n.model(), np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((3, 5, 8)).astype(np.float32)} for _ in range(20)]
    encoding = encoded(model, feeds, weight_bits=3, granularity=PerTensor())
    executor = Executor.open(model)
    found = gptaq(executor, encoding, feeds)
    assert [gain.node for gain in found.gains] == ["MatMul_0", "Gemm_3"]
    assert network_error(model, found.encoding, feeds) < network_error(model, encoding, feeds)
    assert_file_equals_simulation(executor, found.encoding, feeds[:2])


def constant_of(n, numbers: list[int]) -> ir.Value:
    value = ir.val("shape", const_value=ir.tensor(np.array(numbers, np.int64), name="shape"))
    n.initializers.append(value)
    return value


def test_memory_changes_time_not_codes_and_seeds_repeat(net) -> None:
    model, feeds = deep(net, 2), images(2, 6)
    encoding, executor = encoded(model, feeds), Executor.open(model)
    runs = [
        gptaq(executor, encoding, feeds, options=ClosedFormOptions(memory=memory, rows=rows, seed=seed)).encoding.codes
        for memory, rows, seed in [(1 << 30, 60, 0), (0, 60, 0), (8 << 10, 60, 0), (1 << 30, 60, 1)]
    ]
    for placement in runs[0]:
        assert np.array_equal(runs[0][placement], runs[1][placement])
        assert np.array_equal(runs[0][placement], runs[2][placement])
    assert any(not np.array_equal(runs[0][p], runs[3][p]) for p in runs[0])


def test_what_is_left_out_says_why(net) -> None:
    n = net((1, 4, 8, 8))
    shared = n.stored(4, 4, 1, 1)
    n("Conv", shared, kernel_shape=[1, 1])
    n("Conv", shared, kernel_shape=[1, 1])
    n.conv(4, 8)
    n.conv(8, 4)
    model, feeds = n.model(), images(2, 4)
    encoding = encoded(model, feeds)
    last = next(p for p in encoding.plan.weights if p.consumer == "Conv_3")
    learned = np.zeros((4, 8, 3, 3), np.int8)
    options = ClosedFormOptions(columns=35)
    found = gptaq(Executor.open(model), replace(encoding, codes={last: learned}), feeds, options=options)
    reasons = {refusal.node: refusal.reason for refusal in found.skipped}
    assert reasons == {
        "Conv_0": "its weight is read by several nodes, whose inputs differ",
        "Conv_1": "its weight is read by several nodes, whose inputs differ",
        "Conv_2": "36 inputs per output are more than 35",
        "Conv_3": "its rounding is learned already",
    }
    assert found.encoding.codes[last] is learned


def test_samples_are_needed_and_must_be_finite(net) -> None:
    model, feeds = deep(net, 1), images(1, 3)
    encoding, executor = encoded(model, feeds), Executor.open(model)
    with pytest.raises(DataError, match="no sample"):
        gptaq(executor, encoding, [])
    with pytest.raises(DataError, match="one sample"):
        output_correction(executor, encoding, feeds[:1])
    float_inputs = encoding.restricted(encoding.plan.only(*encoding.plan.weights))
    with pytest.raises(DataError, match="not finite"):
        gptaq(executor, float_inputs, [{"x": np.full((1, 4, 8), np.nan, np.float32)}])


def refit(weight: np.ndarray, spec: QuantizerSpec) -> UniformParams:
    return weight_params(weight, spec, weight_observer("lp"))


def test_ridge_brings_low_bit_activations_nearer(net) -> None:
    model, feeds, others = deep(net, 2), images(2, 40), images(2, 24, seed=9)
    encoding, executor = encoded(model, feeds, weight_bits=8, activation_bits=3), Executor.open(model)
    found = ridge_correction(executor, encoding, feeds, refit)
    kept = [gain for gain in found.gains if gain.kept]
    assert kept
    assert all(gain.after < gain.before for gain in kept)
    assert found.encoding.model_sha256 == found.executor.model.sha256 != model.sha256
    assert found.encoding.rewrites == (f"ridge correction of {len(kept)} layers",)
    before = network_error(model, encoding, others)
    assert network_error(found.executor.model, found.encoding, others, reference=model) < before
    assert_file_equals_simulation(found.executor, found.encoding, others[:2])


def test_a_stiff_ridge_changes_nothing(net) -> None:
    model, feeds = deep(net, 1), images(1, 8)
    encoding, executor = encoded(model, feeds, activation_bits=3), Executor.open(model)
    found = ridge_correction(executor, encoding, feeds, refit, options=ClosedFormOptions(strength=float("inf")))
    assert found.executor is executor
    assert found.encoding is encoding
    assert not any(gain.kept for gain in found.gains)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("granularity", [None, PerTensor(), PerBlock(axis=1, size=4)])
def test_outputs_are_corrected_without_a_trace_in_the_graph(net, rank: int, granularity) -> None:
    model, feeds, others = deep(net, rank), images(rank, 24), images(rank, 6, seed=9)
    encoding = encoded(model, feeds, weight_bits=3, granularity=granularity)
    found = output_correction(Executor.open(model), encoding, feeds)
    assert not found.skipped
    kept = [gain for gain in found.gains if gain.kept]
    assert kept
    assert all(gain.after < gain.before for gain in kept)
    assert [n.op_type for n in found.executor.model.graph] == [n.op_type for n in model.graph]
    assert bool(found.encoding.codes) == (granularity != PerTensor())
    before = network_error(model, encoding, others)
    assert network_error(found.executor.model, found.encoding, others, reference=model) < before
    assert_file_equals_simulation(found.executor, found.encoding, others[:2])


def test_a_channel_that_is_half_as_loud_gets_its_scale_and_offset_back(net) -> None:
    """A wrong scale is what slopes are for: here it is repaired exactly, in a layer that had no bias."""
    n = net((1, 4, 8, 8))
    n("Conv", n.stored(6, 4, 3, 3), kernel_shape=[3, 3])
    model, feeds = n.model(), images(2, 8)
    placement = Placement("w0", "Conv_0", 1)
    spec = QuantizerSpec(granularity=PerChannel(axis=0))
    plan = Plan(engine="", specs={placement: spec}, weights=frozenset({placement}))
    encoding = calibrate(model, plan, feeds)
    right = encoding.params[placement]
    codes = quantize(model.graph.initializers["w0"].const_value.numpy(), spec, right)
    half = UniformParams(scale=right.scale * np.float32([1, 0.5, 1, 1, 2, 1]), zero_point=right.zero_point)
    wrong = replace(encoding, params={placement: half}, codes={placement: codes})
    found = output_correction(Executor.open(model), wrong, feeds)
    np.testing.assert_allclose(found.encoding.params[placement].scale, right.scale, rtol=0.01)
    assert network_error(found.executor.model, found.encoding, feeds, reference=model) < 1e-4


def test_a_normalisation_behind_a_layer_makes_correction_pointless(net) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 8)
    n("InstanceNormalization", n.stored(8), n.stored(8))
    model, feeds = n.model(), images(2, 4)
    found = output_correction(Executor.open(model), encoded(model, feeds, weight_bits=3), feeds)
    assert [r.reason for r in found.skipped] == ["the InstanceNormalization behind it removes slopes and offsets"]


def test_rounding_after_a_correction_aims_at_the_float_network(net) -> None:
    model, feeds = deep(net, 2), images(2, 16)
    encoding, reference = encoded(model, feeds, weight_bits=3, granularity=PerTensor()), Executor.open(model)
    corrected = output_correction(reference, encoding, feeds)
    found = gptaq(corrected.executor, corrected.encoding, feeds, reference=reference)
    assert len(found.gains) == 5
    assert all(gain.after <= gain.before for gain in found.gains)


def test_covariances_around_the_means_are_those_of_centred_rows(net) -> None:
    model = conv_net(net, "Conv", 2, {"group": 2}, {})
    product, _ = one_weight(model)
    executor = Executor.open(model, dtype=torch.float64)
    weight = product.matrix(executor.weights[product.weight.value])
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64) + 1.0
    x_q = x + 0.3 * torch.rand_like(x)
    samples = covariance(product, weight, [(x, x_q)], EVERY)
    centred = samples.centred(weight)
    every = torch.arange(samples.rows)
    rows, rows_q = (product.rows(product.windows(each), every) for each in (x, x_q))
    gap = (rows - rows_q) - (rows - rows_q).mean(1, keepdim=True)
    around = rows_q - rows_q.mean(1, keepdim=True)
    assert centred.cross is not None
    assert torch.allclose(centred.hessian, around.mT @ around)
    assert torch.allclose(centred.cross, gap.mT @ around)
    assert centred.floor == pytest.approx(float((gap @ weight.mT).square().sum()))
    changed = weight + 0.1
    offset = samples.offset(weight, changed)
    error = rows @ weight.mT - rows_q @ changed.mT - offset[:, None]
    assert torch.allclose(error.mean(1), torch.zeros_like(offset), atol=1e-12)
    assert centred.error(weight, changed) == pytest.approx(float(error.square().sum()) / samples.energy)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_biases_fitted_with_the_codes(net, rank: int) -> None:
    n = net((1, 4, *[8] * rank))
    n.conv(4, 8, rank=rank)
    n("Relu")
    n("Conv", n.stored(6, 8, *[1] * rank), kernel_shape=[1] * rank)
    n("InstanceNormalization", n.stored(6, scale=1.0), n.stored(6))
    n("ConvTranspose", n.stored(6, 4, *[2] * rank), kernel_shape=[2] * rank, strides=[2] * rank)
    model, feeds, others = n.model(), images(rank, 16), images(rank, 6, seed=9)
    encoding, executor = encoded(model, feeds, weight_bits=3), Executor.open(model)
    found = gptaq(executor, encoding, feeds, options=ClosedFormOptions(biases="fit", rows=1 << 20))
    assert [len(node.inputs) for node in found.executor.model.graph if "Conv" in node.op_type] == [3, 2, 3]
    assert found.encoding.model_sha256 == found.executor.model.sha256
    assert all(gain.after <= gain.before for gain in found.gains)
    before = network_error(model, encoding, others)
    assert network_error(found.executor.model, found.encoding, others, reference=model) < before
    assert_file_equals_simulation(found.executor, found.encoding, others[:2])
    means = [float(run_graph(model.graph_model, x)[model.outputs[0].name].mean()) for x in feeds]
    quantized = materialize(found.executor.model, found.encoding)
    again = [float(run_graph(quantized.graph_model, x)[model.outputs[0].name].mean()) for x in feeds]
    assert np.mean(again) == pytest.approx(np.mean(means), abs=1e-4)


def test_fitted_biases_of_gemms_respect_alpha_and_beta(net) -> None:
    n = net((6, 8))
    n("Gemm", n.stored(5, 8), n.stored(5), transB=1, alpha=0.5, beta=2.0)
    model, rng = n.model(), np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((6, 8)).astype(np.float32) + 1} for _ in range(10)]
    encoding = encoded(model, feeds, weight_bits=3, granularity=PerTensor())
    found = gptaq(Executor.open(model), encoding, feeds, options=ClosedFormOptions(biases="fit"))
    quantized, name = materialize(found.executor.model, found.encoding), model.outputs[0].name
    gaps = [run_graph(model.graph_model, x)[name] - run_graph(quantized.graph_model, x)[name] for x in feeds]
    np.testing.assert_allclose(np.mean(gaps, axis=(0, 1)), 0, atol=1e-5)


def test_a_few_whole_volumes_stand_for_all(net) -> None:
    n = net((1, 1, 72, 8, 8), seed=4)
    n.conv(1, 4, rank=3)
    n("Relu")
    n.conv(4, 2, rank=3)
    rng, model = np.random.default_rng(5), n.model()
    feeds = [{"x": rng.standard_normal((1, 1, 72, 8, 8)).astype(np.float32)} for _ in range(3)]
    profile = PROFILES["openvino"]
    plan = place(model, profile, profile.variants[0])
    encoding = calibrate(model, plan.with_bits(dict.fromkeys(plan.weights, 3)), feeds)
    few, first, every = (
        gptaq(Executor.open(model), encoding, given, options=ClosedFormOptions(volumes=volumes)).encoding.codes
        for given, volumes in ((feeds, 2), (feeds[:2], 4), (feeds, 4))
    )
    assert all(np.array_equal(few[placement], first[placement]) for placement in few)
    assert not all(np.array_equal(few[placement], every[placement]) for placement in few)
