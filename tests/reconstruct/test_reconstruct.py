from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fptq.cache import Cache
from fptq.errors import ConfigError, DataError
from fptq.execute import Executor, Objective, Overlay
from fptq.execute.objective import loss
from fptq.graph.model import Model
from fptq.graph.parity import run_graph, sqnr
from fptq.plan import materialize
from fptq.plan.encoding import Encoding, load_encoding, save_encoding
from fptq.reconstruct import METHODS, Rates, Reconstructed, ReconstructionOptions, UnitResult, reconstruct


@pytest.fixture
def encoding(resnet: Model, images, make_encoding) -> Encoding:
    return make_encoding(resnet, images)


@pytest.fixture
def executor(resnet: Model) -> Executor:
    return Executor.open(resnet)


def same(one: Encoding, other: Encoding) -> bool:
    """Whether two encodings hold the same numbers."""
    return (
        one.codes.keys() == other.codes.keys()
        and all(np.array_equal(one.codes[p], other.codes[p]) for p in one.codes)
        and all(np.array_equal(one.params[p].scale, other.params[p].scale) for p in one.params)
    )


def error(executor: Executor, encoding: Encoding, feeds, objective: Objective = Objective.SQUARED) -> float:
    with torch.no_grad():
        runs = [(executor.run(feed), executor.run(feed, hook=Overlay(encoding=encoding))) for feed in feeds]
    return float(np.mean([loss(objective, exact, found) for exact, found in runs]))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lowers_its_own_loss_and_the_error_at_the_outputs(name, executor, encoding, images, quick) -> None:
    found = reconstruct(executor, encoding, images, method=quick(name, iterations=120))
    assert not found.interrupted
    assert all(unit.final_loss <= unit.initial_loss for unit in found.units)
    assert sum(unit.final_loss < 0.95 * unit.initial_loss for unit in found.units) >= 2
    assert all(unit.kept == (unit.final_loss < unit.initial_loss) for unit in found.units)
    assert error(executor, found.encoding, images) < 0.8 * error(executor, encoding, images)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_file_computes_what_the_overlay_does(engine, resnet, images, make_encoding, quick, tmp_path) -> None:
    encoding, executor = make_encoding(resnet, images, engine=engine), Executor.open(resnet)
    found = reconstruct(executor, encoding, images, method=quick("auto")).encoding
    assert error(executor, found, images) < error(executor, encoding, images)
    assert any(not np.array_equal(found.params[p].scale, encoding.params[p].scale) for p in found.codes)
    file = run_graph(materialize(resnet, found).graph_model, images[0])
    with torch.no_grad():
        here = executor.run(images[0], hook=Overlay(encoding=found))
    for name, there in file.items():
        assert sqnr(there, here[name].numpy()) > 60
    save_encoding(found, tmp_path)
    assert same(load_encoding(tmp_path), found)


def test_rounding_stays_next_to_the_weight(resnet, executor, encoding, images, quick) -> None:
    found = reconstruct(executor, encoding, images, method=quick("qdrop")).encoding
    moved = 0
    for placement, codes in found.codes.items():
        spec, params = found.plan.specs[placement], encoding.params[placement]
        np.testing.assert_array_equal(found.params[placement].scale, params.scale)
        weight = resnet.graph.initializers[placement.value].const_value.numpy()
        scale, zero_point = params.expanded(spec, weight.shape)
        floor = np.floor(weight / scale) + zero_point
        low, high = (np.clip(steps, spec.qmin, spec.qmax) for steps in (floor, floor + 1))
        assert ((codes == low) | (codes == high)).all()
        moved += int((codes != np.clip(np.rint(weight / scale) + zero_point, spec.qmin, spec.qmax)).sum())
    assert moved > 0


def test_qdrop_without_drops_is_brecq_with_joint_activations(executor, encoding, images, quick) -> None:
    brecq = quick("brecq", activations="joint", name="one")
    qdrop = quick("qdrop", drop_prob=0.0, name="one")
    one, other = (reconstruct(executor, encoding, images, method=method) for method in (brecq, qdrop))
    assert [unit.history for unit in one.units] == [unit.history for unit in other.units]
    assert one.units[0].history
    assert same(one.encoding, other.encoding)
    dropped = reconstruct(executor, encoding, images, method=quick("qdrop", name="one"))
    assert not same(dropped.encoding, one.encoding)


def test_a_layer_is_a_block_of_one_node(make_net, make_encoding, draw, quick) -> None:
    chain = make_net(
        """g (float[N, 3, 9] x) => (float[N, 4, 9] y) {
            a = Conv<pads = [1, 1]>(x, w0)
            b = Relu(a)
            y = Conv<pads = [1, 1]>(b, w1)
        }""",
        {"w0": (5, 3, 3), "w1": (4, 5, 3)},
    )
    feeds = draw(8, (1, 3, 9))
    start, executor = make_encoding(chain, feeds), Executor.open(chain)
    layer, block = (reconstruct(executor, start, feeds, method=quick("qdrop", unit=u)) for u in ("layer", "block"))
    assert same(layer.encoding, block.encoding)
    assert [unit.history for unit in layer.units] == [unit.history for unit in block.units]


@pytest.mark.parametrize("rounding", ["sigmoid", "progressive", "flexround"])
def test_a_converged_block_ends_early(rounding, executor, encoding, images, quick) -> None:
    def iterations(tolerance: float) -> list[int]:
        method = quick("qdrop", iterations=100, rounding=rounding, warm_up=0.9, tolerance=tolerance)
        return [unit.iterations for unit in reconstruct(executor, encoding, images, method=method).units]

    assert iterations(-1e9) == [100] * 4
    assert all(taken < 100 for taken in iterations(1.0))


def test_training_that_diverges_is_not_kept(executor, encoding, images, quick) -> None:
    rates = Rates(rounding=1e3, weight_scale=1e3, activation_scale=1e3, whole=1e3)
    found = reconstruct(executor, encoding, images, method=quick("auto", rates=rates))
    assert not any(unit.kept for unit in found.units)
    assert same(found.encoding, encoding)


def test_codes_that_another_method_found_are_not_made_worse(executor, encoding, images, quick) -> None:
    first = reconstruct(executor, encoding, images, method=quick("auto")).encoding
    second = reconstruct(executor, first, images, method=quick("qdrop", iterations=3, rates=Rates(rounding=1e-9)))
    assert sum(not unit.kept for unit in second.units) >= 2, "nearest rounding would be a step back"
    assert all(unit.final_loss <= unit.initial_loss for unit in second.units)


def test_every_sample_counts(executor, encoding, images, quick) -> None:
    method = quick("qdrop", batch_size=4)
    few, all_ = (reconstruct(executor, encoding, feeds, method=method).encoding for feeds in (images[:4], images))
    assert not same(few, all_)


def test_batches_are_taken_apart(executor, encoding, images, quick) -> None:
    batches = [{"x": np.concatenate([image["x"] for image in images[at : at + 6]])} for at in (0, 6)]
    single, joined = (reconstruct(executor, encoding, feeds, method=quick("qdrop")) for feeds in (images, batches))
    assert same(single.encoding, joined.encoding)


@pytest.mark.parametrize("name", ["pd-quant", "auto"])
def test_values_on_disk_give_what_values_in_memory_give(name, executor, encoding, images, quick) -> None:
    roomy, tight = (
        reconstruct(executor, encoding, images, method=quick(name), options=ReconstructionOptions(memory=memory))
        for memory in (1 << 30, 0)
    )
    assert same(roomy.encoding, tight.encoding)
    assert [unit.history for unit in roomy.units] == [unit.history for unit in tight.units]


def test_a_batch_in_pieces_is_the_same_batch(executor, encoding, images, quick) -> None:
    method = quick("qdrop", drop_prob=0.0, iterations=10)
    whole, pieces = (
        reconstruct(executor, encoding, images, method=method, options=ReconstructionOptions(batch_memory=memory))
        for memory in (1 << 30, 1)
    )
    for one, other in zip(whole.units, pieces.units, strict=True):
        assert one.history == pytest.approx(other.history, rel=1e-3)


def test_the_seed_decides(executor, encoding, images, quick) -> None:
    def run(seed: int) -> Encoding:
        options = ReconstructionOptions(seed=seed)
        return reconstruct(executor, encoding, images, method=quick("auto"), options=options).encoding

    assert same(run(0), run(0))
    assert not same(run(0), run(1))


def numbers(units: tuple[UnitResult, ...]) -> list[tuple[object, ...]]:
    return [
        (unit.name, unit.stage, unit.initial_loss, unit.final_loss, unit.iterations, unit.history) for unit in units
    ]


@pytest.mark.parametrize("name", ["brecq", "ae-qdrop"])
def test_a_killed_run_goes_on_with_the_next_block(name, executor, encoding, images, quick, tmp_path) -> None:
    store, method = Cache(tmp_path), quick(name)
    whole = reconstruct(executor, encoding, images, method=method)

    class Killed(BaseException):
        pass

    def kill(done: int, total: int, what: str) -> None:
        if done > total / 2:
            raise Killed

    with pytest.raises(Killed):
        reconstruct(executor, encoding, images, method=method, store=store, progress=kill)
    kept = sum(usage.entries for usage in store.usage())
    assert 0 < kept < len(whole.units)
    resumed = reconstruct(executor, encoding, images, method=method, store=store)
    assert same(resumed.encoding, whole.encoding)
    assert numbers(resumed.units) == numbers(whole.units)
    told: list[str] = []
    again = reconstruct(
        executor, encoding, images, method=method, store=store, progress=lambda done, total, what: told.append(what)
    )
    assert same(again.encoding, whole.encoding)
    assert len(told) == len(whole.units), "nothing was trained"


def test_an_interrupt_keeps_the_blocks_that_are_done(executor, encoding, images, quick) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("learning: Conv_7 (3/4)"):
            raise KeyboardInterrupt

    found = reconstruct(executor, encoding, images, method=quick("qdrop"), progress=stop)
    assert found.interrupted
    assert [unit.name for unit in found.units] == ["Conv_0", "Conv_2"]
    assert {p.value for p in found.encoding.codes} <= {"w0", "w1", "w2"}
    assert "interrupted after 2 units" in found.notes[0]
    assert error(executor, found.encoding, images) < error(executor, encoding, images)


def test_progress_ends_at_its_total(executor, encoding, images, quick) -> None:
    told: list[tuple[int, int, str]] = []
    method = quick("ae-qdrop", iterations=20)
    reconstruct(executor, encoding, images, method=method, progress=lambda *now: told.append(now))
    assert told[-1][0] == told[-1][1]
    done = [now[0] for now in told]
    assert done == sorted(done)
    assert all("loss" in what or what == "learning: all blocks" for _, _, what in told)


RANKS = {
    "conv1d": ("Conv<pads = [2, 2], dilations = [2], group = 2>", (6, 2, 3), (4, 10)),
    "conv2d": ("Conv<pads = [1, 1, 1, 1], strides = [2, 2]>", (6, 4, 3, 3), (4, 6, 6)),
    "conv3d": ("Conv<pads = [1, 1, 1, 1, 1, 1]>", (6, 4, 3, 3, 3), (4, 4, 4, 4)),
    "transposed1d": ("ConvTranspose<strides = [2], output_padding = [1], group = 2>", (4, 3, 3), (4, 8)),
    "transposed2d": ("ConvTranspose<strides = [2, 2], output_padding = [1, 0]>", (4, 6, 3, 3), (4, 5, 5)),
    "dilated2d": ("ConvTranspose<dilations = [1, 2], pads = [1, 0, 1, 0]>", (4, 6, 3, 3), (4, 5, 5)),
    "transposed3d": ("ConvTranspose<strides = [2, 2, 2], output_padding = [1, 1, 0]>", (4, 6, 2, 2, 2), (4, 3, 3, 3)),
    "gemm": ("Gemm<transB = 1>", (6, 4), (4,)),
    "matmul": ("MatMul", (4, 6), (5, 4)),
}


@pytest.mark.parametrize("kind", RANKS)
def test_all_ranks_learn(kind: str, make_net, make_encoding, draw, quick) -> None:
    op, weight, sample = RANKS[kind]
    taken, returned = ", ".join(("N", *map(str, sample))), ", ".join("NABCD"[: len(sample) + 1])
    model = make_net(f"g (float[{taken}] x) => (float[{returned}] y) {{ y = {op}(x, w) }}", {"w": weight})
    # Values of one sign: of independent ones with mean 0, nearest rounding would be the best.
    feeds = [{"x": np.abs(feed["x"])} for feed in draw(8, (1, *sample))]
    start, executor = make_encoding(model, feeds, activation_bits=8), Executor.open(model)
    for rounding in ("progressive", "sigmoid", "straight-through", "flexround"):
        method = quick("qdrop", iterations=80, rounding=rounding, rates=Rates(rounding=1e-2))
        found = reconstruct(executor, start, feeds, method=method)
        assert found.units[0].final_loss <= found.units[0].initial_loss
        if rounding == "progressive":  # the others do not reach this far in so few iterations
            assert found.units[0].final_loss < 0.95 * found.units[0].initial_loss
            assert error(executor, found.encoding, feeds) < error(executor, start, feeds)


def test_weights_with_zero_points_learn(executor, encoding, images, quick) -> None:
    plan = encoding.plan
    specs = {p: replace(s, signed=False, symmetric=False) if p in plan.weights else s for p, s in plan.specs.items()}
    from fptq.calibrate.calibrate import weight_params
    from fptq.calibrate.observers.minmax import MinMax

    weights = {p: executor.weights[p.value].numpy() for p in plan.weights}
    params = {p: weight_params(weights[p], specs[p], MinMax()) if p in weights else encoding.params[p] for p in specs}
    start = replace(encoding, plan=replace(plan, specs=specs), params=params)
    assert any(params[p].zero_point.any() for p in weights)
    found = reconstruct(executor, start, images, method=quick("qdrop", iterations=60))
    assert error(executor, found.encoding, images) < error(executor, start, images)
    assert all(codes.dtype == np.uint8 and codes.max() <= 7 for codes in found.encoding.codes.values())


def test_networks_that_cannot_be_batched_learn_sample_by_sample(make_net, make_encoding, draw, quick) -> None:
    model = make_net(
        """g (float[T, 1, 4] x) => (float[T, 1, 4] y)
        <int64[3] shape = {-1, 1, 6}> {
            a = MatMul(x, w0)
            b = Reshape(a, shape)
            c = Relu(b)
            y = MatMul(c, w1)
        }""",
        {"w0": (4, 6), "w1": (6, 4)},
    )
    feeds = [*draw(3, (5, 1, 4)), *draw(3, (7, 1, 4), seed=2)]  # sequences of two lengths
    start, executor = make_encoding(model, feeds), Executor.open(model)
    for name in ("auto", "pd-quant", "ae-qdrop"):
        found = reconstruct(executor, start, feeds, method=quick(name))
        assert error(executor, found.encoding, feeds) < error(executor, start, feeds)


def test_the_fisher_weighs_what_the_outputs_feel(executor, encoding, images, quick) -> None:
    found = reconstruct(executor, encoding, images, method=quick("brecq", loss="fisher"))
    plain = reconstruct(executor, encoding, images, method=quick("brecq"))
    assert not same(found.encoding, plain.encoding)
    assert error(executor, found.encoding, images) < error(executor, encoding, images)


def test_predictions_run_every_so_often_on_some_rows(executor, encoding, images, quick) -> None:
    method = quick("pd-quant")
    found = reconstruct(executor, encoding, images, method=replace(method, tolerance=-1e9))
    assert {unit.predictions for unit in found.units} == {40 // method.prediction.every}
    assert all(0 < unit.prediction_seconds < unit.seconds for unit in found.units)


def test_skips_are_beside_the_suffix(cnn, samples, make_encoding, quick) -> None:
    start, executor = make_encoding(cnn, samples, variant=5), Executor.open(cnn)
    for name in ("auto", "qdrop"):
        found = reconstruct(executor, start, samples, method=quick(name))
        assert error(executor, found.encoding, samples) < error(executor, start, samples)


def test_a_weight_with_two_readers_is_learned_once(make_net, make_encoding, draw, quick) -> None:
    model = make_net(
        """g (float[N, 6] x) => (float[N, 6] y) {
            a = MatMul(x, w0)
            b = Relu(a)
            y = MatMul(b, w0)
        }""",
        {"w0": (6, 6)},
    )
    feeds = draw(8, (1, 6))
    start, executor = make_encoding(model, feeds), Executor.open(model)
    found = reconstruct(executor, start, feeds, method=quick("genie", iterations=80)).encoding
    first, second = found.codes.values()
    np.testing.assert_array_equal(first, second)
    file = run_graph(materialize(model, found).graph_model, feeds[0])
    with torch.no_grad():
        here = executor.run(feeds[0], hook=Overlay(encoding=found))
    assert sqnr(file["y"], here["y"].numpy()) > 60


def test_outputs_without_gradient_leave_the_local_loss(make_net, make_encoding, draw, quick) -> None:
    model = make_net(
        """g (float[N, 6] x) => (int64[N, 1] y) {
            a = MatMul(x, w0)
            b = Relu(a)
            c = MatMul(b, w1)
            y = ArgMax<axis = 1>(c)
        }""",
        {"w0": (6, 6), "w1": (6, 4)},
    )
    feeds = draw(8, (1, 6))
    start, executor = make_encoding(model, feeds), Executor.open(model)
    found = reconstruct(executor, start, feeds, method=quick("pd-quant"))
    assert "no gradient" in found.notes[0]
    assert any(unit.kept for unit in found.units)
    assert any(unit.kept for unit in reconstruct(executor, start, feeds, method=quick("auto")).units)


def test_it_says_what_is_wrong(executor, encoding, resnet, images, quick, cnn) -> None:
    with pytest.raises(DataError, match="no sample"):
        reconstruct(executor, encoding, [], method=quick("qdrop"))
    bare = encoding.restricted(encoding.plan.without(*encoding.plan.weights))
    with pytest.raises(ConfigError, match="no weight"):
        reconstruct(executor, bare, images, method=quick("qdrop"))


def test_bfloat16_where_asked(executor, encoding, images, quick) -> None:
    options = ReconstructionOptions(autocast=True)
    found: Reconstructed = reconstruct(executor, encoding, images, method=quick("qdrop"), options=options)
    assert error(executor, found.encoding, images) < error(executor, encoding, images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_learns_too(resnet, encoding, images, quick) -> None:
    executor: Executor = Executor.open(resnet, device="cuda")
    for name in METHODS:
        found = reconstruct(executor, encoding, images, method=quick(name))
        assert error(executor, found.encoding, images) < error(executor, encoding, images)
