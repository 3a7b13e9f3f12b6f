"""The small file in a result's folder, and the script that runs it without fptq."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fptq
from fptq.engines import ENGINES
from fptq.graph.metadata import PACKED
from fptq.graph.write import file_bytes, save
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, params_from_range, ranges
from fptq.plan import Encoding, Placement, Plan, materialize, packed
from fptq.recipes import predict

OPTIONS = {"threads": 1, "gate": "off", "observer": "minmax", "bias_correction": "off"}
ENGINE = [pytest.param(n, marks=pytest.mark.engine(ENGINES[n].extra)) for n in ("onnxruntime", "openvino")]


@pytest.fixture(scope="module")
def made():
    """Results that were made already, by engine."""
    return {}


@pytest.fixture
def result(made, cnn, samples, tmp_path):
    """Makes a result of 4-bit weights for an engine."""

    def of(engine: str):
        if engine not in made:
            options = {**OPTIONS, "engine": engine, "weight_bits": 4, "cache": tmp_path / "cache"}
            made[engine] = fptq.quantize(cnn.graph_model, calibration=samples, **options)
        return made[engine]

    return of


def alone(out: Path, target: Path) -> Path:
    """The folder as someone ships it who wants the small file only."""
    shutil.copytree(out, target)
    (target / "model.onnx").unlink()
    return target


@pytest.mark.parametrize("engine", ENGINE)
def test_the_small_file_runs_without_fptq(engine: str, result, samples, tmp_path) -> None:
    out = alone(result(engine).save(tmp_path / "out"), tmp_path / "small")
    np.savez(tmp_path / "in.npz", **samples[0])
    command = [sys.executable, "-I", str(out / "run.py"), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    with np.load(tmp_path / "out.npz") as found:
        for name, array in result(engine).session()(samples[0]).items():
            np.testing.assert_array_equal(found[name], array)


def test_both_files_are_written_and_the_small_one_is_counted(result, tmp_path) -> None:
    out = result("onnxruntime").save(tmp_path / "out")
    assert result("onnxruntime").packed_bytes == file_bytes(out / "model.packed.onnx")
    assert file_bytes(out / "model.packed.onnx") < 0.8 * file_bytes(out / "model.onnx")
    wide, small = (ir.load(out / name).metadata_props for name in ("model.onnx", "model.packed.onnx"))
    assert small.pop(PACKED)
    assert small == wide


def test_prediction_takes_the_small_file_where_it_stands_alone(result, samples, tmp_path) -> None:
    out = result("onnxruntime").save(tmp_path / "out")
    small = alone(out, tmp_path / "small")
    (first,) = predict(out, samples[:1], output=tmp_path / "a")
    (second,) = predict(small, samples[:1], output=tmp_path / "b")
    with np.load(first) as wide, np.load(second) as found:
        assert wide.files == found.files
        for name in wide.files:
            np.testing.assert_array_equal(found[name], wide[name])


def test_weights_of_8_bits_make_one_file_and_take_an_older_second_one_away(result, cnn, samples, tmp_path) -> None:
    out = result("onnxruntime").save(tmp_path / "out")
    eight = fptq.quantize(
        cnn.graph_model, calibration=samples, engine="onnxruntime", cache=tmp_path / "cache", **OPTIONS
    )
    assert eight.packed_bytes is None
    eight.save(out)
    assert not (out / "model.packed.onnx").exists()
    assert "packed" not in (out / "run.py").read_text()


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=1), PerBlock(axis=-2, size=3)], ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_script_expands_as_fptq_does(net, bits: int, signed: bool, granularity, tmp_path) -> None:
    n = net((1, 4, 6))
    n.conv(4, 5, rank=1)
    model, weight = n.model(), Placement("w0", "Conv_0", 1)
    spec = QuantizerSpec(bits=bits, signed=signed, symmetric=False, granularity=granularity)
    floats = model.graph.initializers["w0"].const_value.numpy() + np.float32(0.1)
    params = {weight: params_from_range(spec, *ranges(floats, granularity))}
    encoding = Encoding(
        plan=Plan(engine="", specs={weight: spec}, weights=frozenset({weight})), params=params, model_sha256=""
    )
    wide = materialize(model, encoding)
    save(packed(wide, encoding), tmp_path / "model.packed.onnx")
    functions = files("fptq.recipes").joinpath("scripts", "expand.py.txt").read_text()
    script = {"np": np, "Path": Path, "__file__": str(tmp_path / "run.py")}
    exec(functions, script)
    found = onnx.load_from_string(script["loaded"]())
    assert {used.domain: used.version for used in found.opset_import} == {"": 21}
    assert found.ir_version == 10
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    assert arrays.keys() == wide.graph.initializers.keys()
    for name, value in wide.graph.initializers.items():
        assert arrays[name].dtype == value.const_value.numpy().dtype
        np.testing.assert_array_equal(arrays[name], value.const_value.numpy())


def test_the_script_prefers_the_wide_file(tmp_path) -> None:
    (tmp_path / "model.onnx").touch()
    script = {"np": np, "Path": Path, "__file__": str(tmp_path / "run.py")}
    exec(files("fptq.recipes").joinpath("scripts", "expand.py.txt").read_text(), script)
    assert script["loaded"]() == str(tmp_path / "model.onnx")


def test_learned_codes_survive(result, samples, tmp_path) -> None:
    """A reconstruction rounds otherwise than to nearest."""
    base = result("onnxruntime")
    prepared = base.prepared
    placement = next(p for p in prepared.encoding.plan.specs if p in prepared.encoding.plan.weights)
    shape = prepared.float_model.graph.initializers[placement.value].const_value.shape.numpy()
    codes = np.random.default_rng(0).integers(-8, 8, shape).astype(np.int32)
    encoding = replace(prepared.encoding, codes={placement: codes})
    learned = replace(
        base, prepared=replace(prepared, encoding=encoding, model=materialize(prepared.float_model, encoding))
    )
    out = alone(learned.save(tmp_path / "out"), tmp_path / "small")
    (path,) = predict(out, samples[:1], output=tmp_path / "o")
    with np.load(path) as found:
        for name, array in learned.session()(samples[0]).items():
            np.testing.assert_array_equal(found[name], array)


def test_bench_times_the_small_file_as_the_engine_runs_it(result, tmp_path) -> None:
    out = result("onnxruntime").save(tmp_path / "out")
    paths = [out / "model.onnx", out / "model.packed.onnx"]
    wide, small = fptq.bench(paths, engines=["onnxruntime"], threads=1, rounds=3)
    assert small.median_ms > 0
    assert small.size_mb < wide.size_mb
