from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fptq.analyze import (
    Objective,
    Overlay,
    SensitivityOptions,
    fisher_sensitivity,
    layer_errors,
    leave_one_in,
    leave_one_out,
    sensitivity,
    split,
    units_of,
)
from fptq.analyze.tiles import tiled_square, weighted_square
from fptq.calibrate import CalibrationOptions, collect, needed, solve
from fptq.execute import Executor, verify
from fptq.graph.model import Model
from fptq.graph.parity import run_graph, sqnr
from fptq.plan import PROFILES, materialize, place
from fptq.plan.encoding import Encoding

BITS = (8, 4, 3, 2)


def encodings_of(model: Model, samples, *, variant: int = 0, engine: str = "openvino") -> dict[str, Encoding]:
    """One encoding for each width, from one pass over the samples."""
    options = CalibrationOptions()
    plan = place(model, PROFILES[engine], PROFILES[engine].variants[variant])
    statistics = collect(model, needed(plan, [options.observer]), samples)
    widths = {f"int{bits}": plan.with_bits(dict.fromkeys(plan.specs, bits)) for bits in BITS}
    return {name: solve(model, wide, statistics, options=options) for name, wide in widths.items()}


@pytest.fixture
def deep(net) -> Model:
    """Six convolutions, of which some matter more than others, and a skip."""
    n = net((1, 4, 16, 16), seed=3)
    n.conv(4, 8)
    n("Relu")
    skip = n.conv(8, 8)
    n("Relu")
    n.conv(8, 8)
    n("Add", skip)
    n("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    n.conv(8, 16)
    n("Relu")
    n.conv(16, 16, kernel=1)
    n.conv(16, 3)
    return n.model()


@pytest.fixture
def images() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 4, 16, 16)).astype(np.float32)} for _ in range(6)]


@pytest.mark.parametrize("variant", range(len(PROFILES["openvino"].variants)))
def test_the_overlay_computes_what_the_materialised_file_computes(variant: int, deep: Model, images) -> None:
    encoding = encodings_of(deep, images, variant=variant)["int8"]
    file = run_graph(materialize(deep, encoding).graph_model, images[0])
    with torch.no_grad():
        found = Executor.open(deep).run(images[0], hook=Overlay(encoding=encoding))
    for name, expected in file.items():
        assert sqnr(found[name].numpy(), expected) > 60, "beyond a code or two on a rounding tie"


def test_every_placement_is_in_one_unit(deep: Model, images) -> None:
    encoding = encodings_of(deep, images, variant=1)["int8"]
    units = units_of(deep, encoding.plan)
    found = [placement for unit in units for placement in unit.placements]
    assert sorted(found) == sorted(encoding.plan.specs)
    for tie in encoding.plan.ties:
        assert sum(bool(unit.placements & tie) for unit in units) == 1
    parts = split(units)
    assert sorted(p for part in parts for p in part.placements) == sorted(encoding.plan.specs)
    assert all(not part.weights or part.weights == part.placements for part in parts)


def test_fisher_ranks_units_as_leave_one_in_does(deep: Model, images) -> None:
    from scipy.stats import spearmanr

    encodings = encodings_of(deep, images)
    executor, units = Executor.open(deep), units_of(deep, encodings["int8"].plan)
    predicted = fisher_sensitivity(executor, units, encodings, images)
    exact = leave_one_in(executor, units, encodings, images)
    assert predicted.loss.shape == exact.loss.shape == (len(units), len(BITS))
    small = slice(0, 2)  # with 8 and 4 bits the error is small enough for a first-order prediction
    assert spearmanr(predicted.loss[:, small].ravel(), exact.loss[:, small].ravel()).statistic >= 0.9
    assert np.abs(np.log10(predicted.loss[:, small] / exact.loss[:, small])).max() < 0.4
    assert (np.diff(exact.loss, axis=1) > 0).all(), "fewer bits, more error"
    assert predicted.ranked("int4")[0][1] == predicted.loss[:, 1].max()


def test_fisher_is_reproducible(deep: Model, images) -> None:
    encodings = encodings_of(deep, images)
    executor, units = Executor.open(deep), units_of(deep, encodings["int8"].plan)
    first, second = (fisher_sensitivity(executor, units, encodings, images).loss for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_leave_one_in_equals_whole_runs(deep: Model, images) -> None:
    encodings = encodings_of(deep, images)
    executor, units = Executor.open(deep), units_of(deep, encodings["int4"].plan)
    exact = leave_one_in(executor, units, {"int4": encodings["int4"]}, images[:1])
    with torch.no_grad():
        reference = next(iter(executor.run(images[0]).values()))
        for unit, found in zip(units, exact.loss[:, 0], strict=True):
            hook = Overlay(encoding=encodings["int4"], only=unit.placements)
            changed = next(iter(executor.run(images[0], hook=hook).values()))
            expected = float((changed - reference).square().sum() / reference.square().sum())
            assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_leave_one_out_equals_whole_runs(engine: str, deep: Model, images) -> None:
    encoding = encodings_of(deep, images, engine=engine)["int3"]
    executor, units = Executor.open(deep), units_of(deep, encoding.plan)
    gains = leave_one_out(executor, units, encoding, images[:1])
    with torch.no_grad():
        reference = next(iter(executor.run(images[0]).values()))

        def error(only) -> float:
            changed = next(iter(executor.run(images[0], hook=Overlay(encoding=encoding, only=only)).values()))
            return float((changed - reference).square().sum() / reference.square().sum())

        everything = frozenset(encoding.plan.specs)
        expected = [error(everything) - error(everything - unit.placements) for unit in units]
    np.testing.assert_allclose(gains, expected, rtol=1e-4, atol=1e-7)


def test_local_errors_do_not_see_earlier_layers(deep: Model, images) -> None:
    encoding = encodings_of(deep, images)["int4"]
    executor, units = Executor.open(deep), units_of(deep, encoding.plan)
    errors = layer_errors(executor, units, encoding, images)
    assert errors[0].local == errors[0].accumulated, "nothing lies before the first layer"
    assert all(e.local.sqnr_db > e.accumulated.sqnr_db for e in errors[2:])
    for error in errors:
        for one in (error.local, error.accumulated):
            assert one.sqnr_db == pytest.approx(-20 * math.log10(one.relative_l2))
            assert 0 < one.cosine <= 1


def test_kl_is_what_the_projection_predicts(net, images) -> None:
    n = net((1, 4, 16, 16), seed=5)
    n.conv(4, 8)
    n("Relu")
    n.conv(8, 8)
    n("GlobalAveragePool")
    n("Flatten")
    n("Gemm", n.stored(8, 5, scale=2.0))
    model = n.model()
    encodings = encodings_of(model, images)
    executor, units = Executor.open(model), units_of(model, encodings["int4"].plan)
    many = [{"x": image["x"]} for image in images] * 20
    options = SensitivityOptions(objective=Objective.KL)
    predicted = fisher_sensitivity(executor, units, encodings, many, options=options)
    exact = leave_one_in(executor, units, encodings, images, objective=Objective.KL)
    assert np.abs(np.log10(predicted.loss[:, 1] / exact.loss[:, 1])).max() < 0.5


def test_products_within_a_tile_may_cancel() -> None:
    products = torch.zeros(1, 2, 16)
    products[0, 0, 0], products[0, 1, 0], products[0, 0, 15] = 3.0, -3.0, 2.0
    assert tiled_square(products) == 4.0
    assert tiled_square(products, tiles=1) == 4.0
    assert tiled_square(products, channels=-1, tiles=2) == (3.0 + 2.0) ** 2 + 3.0**2


def test_the_executor_frees_what_nobody_reads_any_more(deep: Model, images) -> None:
    executor = Executor.open(deep)
    steps = executor.program(())
    freed = [name for step in steps for name in step.last_read]
    assert len(freed) == len(set(freed))
    made = {name for step in steps for name in step.outputs} - set(executor.output_names)
    assert made <= set(freed)
    assert verify(deep, images[0]) > 80


@pytest.mark.parametrize("channels", [1, -1])
@pytest.mark.parametrize("tiles", [1, 4])
@pytest.mark.parametrize("shape", [(5,), (2, 7), (2, 3, 10), (1, 5, 6, 9), (2, 3, 9, 80, 81)])
def test_products_in_parts_are_those_of_the_whole(shape: tuple[int, ...], tiles: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient, changed, exact = (torch.randn(shape, generator=generator) for _ in range(3))
    found = weighted_square(gradient, changed, exact, channels=channels, tiles=tiles)
    assert found == pytest.approx(tiled_square(gradient * (changed - exact), channels=channels, tiles=tiles), rel=1e-4)


@pytest.fixture
def pooled(net) -> Model:
    """Convolutions before a ReLU and before a sum, and a matrix product, down to one vector: one tile."""
    n = net((1, 4, 16, 16), seed=5)
    n.conv(4, 8)
    skip = n("Relu")
    n.conv(8, 8)
    n("Add", skip)
    n("GlobalAveragePool")
    n("Flatten")
    n("Gemm", n.stored(8, 5, scale=2.0))
    return n.model()


def test_where_an_error_is_met_does_not_change_it(pooled: Model, images, monkeypatch) -> None:
    encodings = encodings_of(pooled, images)
    executor, parts = Executor.open(pooled), split(units_of(pooled, encodings["int4"].plan))
    short = fisher_sensitivity(executor, parts, encodings, images).loss
    monkeypatch.setattr(sensitivity, "_exact", lambda model, output: output)
    monkeypatch.setattr(sensitivity, "_factor", lambda model, site, unit: None)
    long = fisher_sensitivity(executor, parts, encodings, images).loss
    np.testing.assert_allclose(short, long, rtol=1e-3)


def test_sensitivity_keeps_no_value_longer_than_it_is_read(deep: Model, images, monkeypatch) -> None:
    encodings = encodings_of(deep, images)
    left: list[int] = []
    products = sensitivity._products

    def counting(watch, gradient, values, tiles):
        left.append(len(values))
        return products(watch, gradient, values, tiles)

    monkeypatch.setattr(sensitivity, "_products", counting)
    units = units_of(deep, encodings["int4"].plan)
    fisher_sensitivity(Executor.open(deep), units, encodings, images[:1])
    assert left == sorted(left, reverse=True)
    assert left[-1] <= 2, "the first layer's input and output"
