"""TensorRT: what can be told without a GPU, and the rest of its contract where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from fptq.calibrate import calibrate
from fptq.engines import ENGINES, CompileOptions, engine_named
from fptq.engines.base import NodeRun
from fptq.engines.tensorrt_build import Extent, fingerprint
from fptq.engines.tensorrt_file import inputs_of, typed
from fptq.engines.tensorrt_layers import node_runs
from fptq.engines.tensorrt_package import installed
from fptq.errors import DataError, EngineError, MissingExtra
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import PROFILES, materialize, packed, place

TENSORRT = PROFILES["tensorrt"]
F32 = CompileOptions(float_precision="f32")


def quantized(model: Model, samples, engine: str = "tensorrt") -> Model:
    profile = PROFILES[engine]
    return materialize(model, calibrate(model, place(model, profile, profile.variants[0]), samples))


@pytest.mark.skipif(installed() is not None, reason="TensorRT is installed")
def test_without_the_package_one_line_says_what_to_install() -> None:
    assert ENGINES["tensorrt"].version() is None
    with pytest.raises(MissingExtra, match=r"pip install 'fptq\[tensorrt\]'") as caught:
        engine_named("tensorrt")
    assert len(str(caught.value).splitlines()) == 1


def test_unsigned_codes_are_refused_because_tensorrt_would_saturate_them(cnn: Model, samples, tmp_path: Path) -> None:
    save(quantized(cnn, samples, "openvino"), tmp_path / "u.onnx")
    with pytest.raises(EngineError, match=r"u\.onnx.*--engine tensorrt"):
        inputs_of(tmp_path / "u.onnx")
    save(quantized(cnn, samples), tmp_path / "s.onnx")
    assert inputs_of(tmp_path / "s.onnx") == ({"x": [1, 4, 16, 16]}, frozenset())


def test_open_sizes_make_an_input_dynamic(net, tmp_path: Path) -> None:
    n = net((1, 4, "height", 8))
    n("Relu")
    save(n.model(), tmp_path / "m.onnx")
    assert inputs_of(tmp_path / "m.onnx") == ({"x": [1, 4, "height", 8]}, frozenset({"x"}))


@pytest.mark.parametrize(("precision", "expected"), [("f32", 1), ("tf32", 1), ("f16", 10), ("default", 10)])
def test_half_precision_is_written_into_the_file_where_asked(
    cnn, tmp_path: Path, precision: str, expected: int
) -> None:
    save(cnn, tmp_path / "m.onnx")
    with typed(tmp_path / "m.onnx", precision) as file:
        types = {tensor.data_type for tensor in onnx.load(file).graph.initializer if len(tensor.dims) > 1}
    assert types == {expected}


def test_a_fingerprint_covers_weights_beside_the_file(cnn: Model, tmp_path: Path) -> None:
    save(cnn, tmp_path / "m.onnx", limit=0)
    before = fingerprint(tmp_path / "m.onnx")
    (beside,) = tmp_path.glob("*.data")
    content = bytearray(beside.read_bytes())
    content[0] ^= 1
    beside.write_bytes(content)
    assert fingerprint(tmp_path / "m.onnx") != before


def test_an_extent_grows_to_hold_a_shape() -> None:
    extent = Extent(least=(1, 8), usual=(1, 8), most=(1, 8))
    assert not extent.holds((2, 4))
    wider = extent.widened((2, 4))
    assert wider == Extent(least=(1, 4), usual=(2, 4), most=(2, 8))
    assert wider.holds((1, 8))
    assert wider.holds((2, 4))


LAYER = {
    "Name": "Conv_0 + Relu_1",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "float", "Location": "Device", "Dimensions": [1, 32, 8, 8]}],
    "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
    "TacticName": "sm80_xmma_fprop_i8",
}


@pytest.mark.parametrize(
    ("written", "precision"),
    [
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8"),
        ({"Format": "Channel major INT8 format where channel % 32 == 0"}, "int8"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "f16"),
        ({"DataType": "Half"}, "f16"),
        ({"DataType": "BFloat16"}, "bf16"),
        ({"DataType": "Float"}, "f32"),
        ({}, "f16"),
    ],
)
def test_precisions_are_read_from_what_a_layer_reads_else_writes(written: dict[str, str], precision: str) -> None:
    layer = {**LAYER, "Inputs": [{**LAYER["Inputs"][0], **written}]}
    (run,) = node_runs(json.dumps({"Layers": [layer]}), {"Conv_0 + Relu_1": 0.5})
    assert run == NodeRun(
        nodes=("Conv_0", "Relu_1"), op="CaskConvolution", precision=precision, kernel="sm80_xmma_fprop_i8", time_ms=0.5
    )


def test_onnx_nodes_come_from_the_metadata_where_there_are_any() -> None:
    layer = {**LAYER, "Metadata": "[ONNX Layer: Conv_0]\x1e[ONNX Layer: Relu_1]\x1e[ONNX Layer: Conv_0]"}
    (run, bare) = node_runs(json.dumps({"Layers": [layer, "only a name"]}), {})
    assert run.nodes == ("Conv_0", "Relu_1")
    assert bare.nodes == ("only a name",)
    assert bare.precision == ""


def test_tf32_shows_in_the_name_of_a_kernel() -> None:
    layer = {**LAYER, "Inputs": [{"Format/Datatype": "Row major linear FP32"}], "TacticName": "sm80_TF32_gemm"}
    (run,) = node_runs(json.dumps({"Layers": [layer]}), {})
    assert run.precision == "tf32"


@pytest.mark.engine("tensorrt")
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_quantized_products_run_on_integers(cnn: Model, samples, tmp_path: Path, precision: str) -> None:
    save(quantized(cnn, samples), tmp_path / "q.onnx")
    session = engine_named("tensorrt").compile(tmp_path / "q.onnx", CompileOptions(float_precision=precision))
    ran = {name: run.precision for run in session.profile(samples[0]) for name in run.nodes}
    assert ran.get("Conv_3") == "int8"


@pytest.mark.engine("tensorrt")
def test_a_dynamic_input_is_rebuilt_for_the_range_it_needs(net, tmp_path: Path) -> None:
    n = net((1, 16, "height", 16))
    n.conv(16, 16)
    n("Relu")
    save(n.model(), tmp_path / "m.onnx")
    session, exact = (engine_named(name).compile(tmp_path / "m.onnx", F32) for name in ("tensorrt", "simulation"))
    for height in (16, 32, 24, 8):
        x = {"x": np.random.default_rng(height).standard_normal((1, 16, height, 16)).astype(np.float32)}
        np.testing.assert_allclose(session(x)["v1"], exact(x)["v1"], atol=1e-4)


@pytest.mark.engine("tensorrt")
def test_a_fixed_shape_is_held_to(cnn: Model, samples, tmp_path: Path) -> None:
    save(cnn, tmp_path / "m.onnx")
    session = engine_named("tensorrt").compile(tmp_path / "m.onnx", F32)
    with pytest.raises(DataError, match="'x' has shape"):
        session({"x": samples[0]["x"][:, :, :8]})
    first = session(samples[0])
    session(samples[1])
    for name, array in session(samples[0]).items():
        np.testing.assert_array_equal(array, first[name])


@pytest.mark.engine("tensorrt")
def test_a_second_session_takes_the_engine_from_the_cache(cnn: Model, samples, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save(cnn, tmp_path / "m.onnx")
    first, second = (engine_named("tensorrt").compile(tmp_path / "m.onnx", F32) for _ in range(2))
    assert first.engine_bytes == second.engine_bytes > 0
    assert len(list((tmp_path / "cache/fptq/tensorrt-engines").glob("*.npz"))) == 1
    np.testing.assert_array_equal(first(samples[0])["v10"], second(samples[0])["v10"])


@pytest.mark.engine("tensorrt")
def test_a_packed_file_is_the_int8_file_to_tensorrt(cnn: Model, samples, tmp_path: Path) -> None:
    plan = place(cnn, TENSORRT, TENSORRT.variants[0])
    narrow = {p: plan.specs[p].with_bits(4) for p in plan.weights}
    encoding = calibrate(cnn, plan.with_specs(narrow), samples)
    made = materialize(cnn, encoding)
    save(made, tmp_path / "m.onnx")
    save(packed(made, encoding), tmp_path / "p.onnx")
    wide, small = (engine_named("tensorrt").compile(tmp_path / name, F32) for name in ("m.onnx", "p.onnx"))
    np.testing.assert_array_equal(wide(samples[0])["v10"], small(samples[0])["v10"])
