"""Networks of few bits through the front door: methods by name, settings, files, and what bad input gets."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import fptq
from fptq.engines import CompileOptions, engine_named
from fptq.errors import ConfigError
from fptq.execute import Executor, Overlay
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.parity import sqnr
from fptq.numerics import PerBlock
from fptq.recipes import bases
from fptq.recipes.lowbit import METHODS
from fptq.report.html import render


@pytest.fixture
def given(net, samples, tmp_path):
    n = net((1, 4, 16, 16), seed=3)
    for c_in, c_out in ((4, 16), (16, 16), (16, 16)):
        n.conv(c_in, c_out)
        n("Relu")
    n.conv(16, 4)
    options = {"calibration": samples, "cache": tmp_path / "cache", "threads": 1, "engine": "onnxruntime"}
    return n.model().graph_model, options


@pytest.mark.parametrize("method", ["ridge", "gptaq", "correction", "auto", "adaround", "genie"])
def test_methods_by_name_lose_less_than_nearest_rounding(given, method) -> None:
    model, options = given
    learned = {"iterations": 40} if method in ("adaround", "genie") else {}
    repair = fptq.quantize(model, bits="w3a8", method=method, **learned, **options).report.repair
    assert (repair.format, repair.method, repair.setting) == ("w3a8", method, "qdrop")
    assert repair.held_out_db > repair.nearest_db
    assert all(unit.after <= unit.before for unit in repair.units if unit.kept)


def test_auto_learns_where_iterations_are_given(given) -> None:
    model, options = given
    closed, learned = (
        fptq.quantize(model, bits="w3a8", **more, **options).report.repair.units for more in ({}, {"iterations": 20})
    )
    assert {unit.name for unit in closed} != {unit.name for unit in learned}
    assert learned


def test_auto_learns_where_activations_are_narrow(given) -> None:
    model, options = given
    stages = {}
    for bits in ("w3a4", "w3a3"):
        repair = fptq.quantize(model, bits=bits, **options).report.repair
        stages[bits] = {unit.name for unit in repair.units}
        assert repair.held_out_db > repair.nearest_db
    assert "all blocks" not in stages["w3a4"]
    assert "all blocks" in stages["w3a3"]


def test_branches_of_a_skip_are_levelled_before_any_method(net, tmp_path) -> None:
    n = net((1, 4, 16, 16), seed=3)
    n.conv(4, 8)
    skip = n("Relu")
    n.conv(8, 8)
    n("Relu")
    large = n.stored(8, 8, 1, 1, scale=200.0)
    n("Conv", large, kernel_shape=[1, 1])
    n("Concat", skip, axis=1)
    behind = n.stored(8, 16, 3, 3)  # as trained networks do: large values meet small weights
    content = behind.const_value.numpy()
    behind.const_value = ir.tensor(np.concatenate([content[:, :8] / 1000, content[:, 8:]], 1), name=behind.name)
    n("Conv", behind, kernel_shape=[3, 3], pads=[1] * 4)
    n("Relu")
    n.conv(8, 3)
    rng, model = np.random.default_rng(2), n.model().graph_model
    feeds = [{"x": rng.standard_normal((1, 4, 16, 16)).astype(np.float32)} for _ in range(6)]
    options = {"calibration": feeds, "cache": tmp_path / "cache", "threads": 1, "engine": "openvino"}
    for recipe, levelled in (("auto", True), ("fast", False)):
        found = fptq.quantize(model, bits="w4a8", method="nearest", recipe=recipe, **options)
        assert any("levelled" in note for note in found.encoding.rewrites) == levelled


def test_a_form_that_computes_something_else_is_left_out_and_that_is_said(given, monkeypatch, caplog) -> None:
    def broken(model: Model) -> Model:
        changed = model.clone()
        weight = query.constant(changed.graph.initializers["w0"])
        changed.graph.initializers["w0"].const_value = ir.tensor(2 * weight, name="w0")
        return model.with_graph(changed)

    model, options = given
    untouched = fptq.quantize(model, bits="w4a8", method="nearest", recipe="fast", **options)
    monkeypatch.setattr(bases, "equalized", broken)
    found = fptq.quantize(model, bits="w4a8", method="nearest", **options)
    assert "cross-layer equalization: not tried, the network would not compute the same" in found.report.warnings
    assert "cross-layer equalization is not tried" in caplog.text
    assert found.prepared.float_model.sha256 == untouched.prepared.float_model.sha256
    assert found.encoding.rewrites == ()


def test_every_name_of_the_recipe_is_a_method() -> None:
    names = fptq.Recipe.model_fields["method"].annotation.__args__
    assert set(names) == set(METHODS)


def test_the_ends_keep_eight_bits(given) -> None:
    model, options = given
    for setting, narrow in (("qdrop", {4}), ("brecq", {4, 8})):
        plan = fptq.quantize(model, bits="w2a4", method="nearest", setting=setting, **options).encoding.plan
        weights = {str(p.consumer): plan.specs[p].bits for p in plan.weights}
        assert "Conv_6" not in weights  # the last one stays float on this engine
        assert (weights["Conv_0"], weights["Conv_2"], weights["Conv_4"]) == (8, 2, 2)
        second = [plan.specs[p].bits for p in plan.activations if p.value == "v1"]
        assert set(second) <= narrow
        assert (8 in second) == (setting == "brecq")


def test_the_folder_runs_and_holds_a_smaller_file(given, tmp_path) -> None:
    model, options = given
    result = fptq.quantize(model, bits="w4a8", method="gptaq", **options)
    folder = result.save(tmp_path / "out")
    packed, whole = (folder / "model.packed.onnx").stat().st_size, (folder / "model.onnx").stat().st_size
    assert packed < whole
    assert result.report.repair.packed_mb == pytest.approx(packed / 1e6, rel=0.05)
    sample = options["calibration"][0]
    session = engine_named("onnxruntime").compile(folder / "model.packed.onnx", CompileOptions(threads=1))
    for name, array in result.session()(sample).items():
        np.testing.assert_array_equal(session(sample)[name], array)


@pytest.fixture
def kinds(net, samples, tmp_path):
    """Every kind of layer that has rows, some with input channels that are no multiple of 8."""
    n = net((1, 4, 16, 16), seed=3)
    n.conv(4, 16)
    n("Relu")
    n.conv(16, 16)
    n("Relu")
    n("Conv", n.stored(16, 1, 3, 3), kernel_shape=[3, 3], group=16)
    n("Relu")
    n("ConvTranspose", n.stored(16, 8, 2, 2), n.stored(8), strides=[2, 2], kernel_shape=[2, 2])
    n("Relu")
    n("GlobalAveragePool")
    n("Flatten")
    n("Gemm", n.stored(24, 8, scale=1.0), n.stored(24), transB=1)
    n("Relu")
    n("MatMul", n.stored(24, 12))
    n("Relu")
    n("Gemm", n.stored(12, 12), n.stored(12))
    n("Relu")
    n("Gemm", n.stored(12, 5), n.stored(5))
    options = {"calibration": samples, "cache": tmp_path / "cache", "threads": 1}
    return n.model().graph_model, options


@pytest.mark.engine("openvino")
@pytest.mark.parametrize(
    ("engine", "method"),
    [
        ("onnxruntime", "gptaq"),
        ("onnxruntime", "correction"),
        ("openvino", "nearest"),
        ("openvino", "ridge"),
        ("openvino", "auto"),
        ("openvino", "brecq"),
        ("openvino", "genie"),
        ("openvino", "ae-qdrop"),
    ],
)
def test_blocks_run_as_the_simulation_says(kinds, engine, method) -> None:
    model, options = kinds
    learned = {"iterations": 10} if method in ("brecq", "genie", "ae-qdrop") else {}
    made = fptq.quantize(model, bits="w3a8/block8", method=method, engine=engine, **learned, **options)
    plan, codes = made.encoding.plan, made.encoding.codes
    blocked = {p: plan.specs[p] for p in plan.weights if isinstance(plan.specs[p].granularity, PerBlock)}
    operations = {"Conv", "MatMul", "Gemm" if engine == "onnxruntime" else "ConvTranspose"}
    assert {str(p.consumer).split("_")[0] for p in blocked} >= operations
    for placement in blocked.keys() & codes.keys():
        spec = blocked[placement]
        assert spec.qmin <= codes[placement].min() <= codes[placement].max() <= spec.qmax
    executor, session = Executor.open(made.prepared.float_model), made.session(float_precision="f32")
    for sample in options["calibration"]:
        with torch.no_grad():
            simulated = executor.run(sample, hook=Overlay(encoding=made.encoding))
        for name, array in session(sample).items():
            assert sqnr(simulated[name].numpy(), array) > (100 if engine == "openvino" else 30)


@pytest.mark.engine("openvino")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_layers_with_blocks_run_in_float_and_the_report_says_so(kinds, engine, tmp_path) -> None:
    model, options = kinds
    made = fptq.quantize(model, bits="w4a8/block8", method="nearest", engine=engine, **options)
    assert "w4a8/block8: emulated, codes live in 8 bits in model.onnx; layers with a scale per block run in float" in (
        made.report.warnings
    )
    (exceptions,) = [warning for warning in made.report.warnings if "no scale per block" in warning]
    assert "Conv_4, " in exceptions
    assert "no multiple of 8" in exceptions
    blocked = {p.consumer for p in made.encoding.plan.weights if "block" in str(made.encoding.plan.specs[p])}
    assert "Conv_2" in blocked
    assert "Conv_4" not in blocked
    session = engine_named(engine).compile(made.save(tmp_path / "out") / "model.packed.onnx", CompileOptions(threads=1))
    runs = [run for run in session.profile(options["calibration"][0]) if blocked.intersection(run.nodes)]
    assert runs
    # OpenVINO calls a matrix product int8 by its stored weight; the kernel's name tells what it multiplies in.
    assert not [run for run in runs if run.precision == "int8" and not run.kernel.endswith("f32")]


def test_the_page_tells_held_out_from_calibration(given) -> None:
    model, options = given
    page = render(fptq.quantize(model, bits="w3a4", method="auto", **options).report)
    assert "Few bits, repaired" in page
    assert "on samples that it learned from" in page


@pytest.mark.parametrize("task", ["generic", "segmentation"])
def test_volumes_are_cut_and_judged_by_their_task(net, tmp_path, monkeypatch, task) -> None:
    import fptq.reconstruct
    from fptq.execute import Objective

    seen = []

    def spied(executor, encoding, feeds, *, options, **others):
        seen.append(options)
        return learn(executor, encoding, feeds, options=options, **others)

    learn = fptq.reconstruct.reconstruct
    monkeypatch.setattr(fptq.reconstruct, "reconstruct", spied)
    rng, shape = np.random.default_rng(0), (1, 4, 80, 8, 8)
    samples = [{"x": np.abs(rng.standard_normal(shape)).astype(np.float32)} for _ in range(3)]
    n = net(shape)
    for c_in, c_out in ((4, 16), (16, 16), (16, 1)):
        n("Relu")
        n.conv(c_in, c_out, rank=3)
    if task == "generic":
        n("GlobalAveragePool")
    options = {"bits": "w3a8", "method": "qdrop", "iterations": 2, "engine": "onnxruntime", "task": task}
    made = fptq.quantize(n.model().graph_model, calibration=samples, cache=tmp_path / "cache", threads=1, **options)
    whole = any("not from crops of 64 voxels" in note for note in made.report.warnings)
    expected = (Objective.SQUARED, True) if task == "generic" else (Objective.BINARY, False)
    assert (seen[0].objective, whole) == expected


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bits": "int4"}, "'int4' is not a format"),
        ({"bits": "w4a4", "method": "magic"}, "method = 'magic' should be"),
        ({"bits": "w4a4", "setting": "other"}, "setting = 'other' should be"),
        ({"bits": "w4a4", "max_size": "0.3x"}, "one format for all layers"),
        ({"bits": "w4a4", "plan": "plan.json"}, "one format for all layers"),
        ({"method": "qdrop"}, "method = 'qdrop' without bits"),
        ({"bits": "w4a4", "memory": "much", "method": "qdrop"}, "memory = 'much' is no amount"),
    ],
)
def test_bad_input_is_one_line(given, wrong, says) -> None:
    model, options = given
    with pytest.raises(ConfigError, match=says):
        fptq.quantize(model, **wrong, **options)
