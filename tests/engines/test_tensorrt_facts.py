"""What the profile states of TensorRT's parser and builder, tried on the installed one: RTX builds without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fptq.cache import Cache
from fptq.calibrate import calibrate
from fptq.engines.tensorrt_build import BuildOptions, built, parsed
from fptq.engines.tensorrt_file import typed
from fptq.engines.tensorrt_package import api, installed, log
from fptq.errors import EngineError
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import PROFILES, materialize, place

pytestmark = pytest.mark.skipif(installed() is None, reason="the engine tensorrt is not installed")
TENSORRT = PROFILES["tensorrt"]


def pair(net, zero_point: np.integer) -> Model:
    n = net((1, 16, 8, 8))
    numbers = {"scale": np.float32(0.03), "zero_point": zero_point}
    values = [ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in numbers.items()]
    n.initializers += values
    n("QuantizeLinear", *values)
    n.last.dtype = ir.DataType.from_numpy(np.dtype(type(zero_point)))
    n("DequantizeLinear", *values)
    n.conv(16, 16)
    return n.model()


def read(model: Model, folder: Path) -> object:
    save(model, folder / "m.onnx")
    return parsed(api().Builder(log()), folder / "m.onnx")


@pytest.mark.parametrize("zero_point", [np.int8(3), np.uint8(128)])
def test_zero_points_are_refused(net, zero_point, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"[Zz]ero.?point"):
        read(pair(net, zero_point), tmp_path)


def test_unsigned_codes_are_read_as_signed_ones(net, tmp_path: Path) -> None:
    network = read(pair(net, np.uint8(0)), tmp_path)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    quantize = next(layer for layer in layers if layer.type == api().LayerType.QUANTIZE)
    assert quantize.get_output(0).dtype == api().DataType.INT8


@pytest.mark.parametrize("kind", TENSORRT.variants, ids=lambda v: v.name)
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_types_of_the_network_are_those_of_the_file(cnn: Model, samples, kind, precision: str, tmp_path: Path) -> None:
    save(materialize(cnn, calibrate(cnn, place(cnn, TENSORRT, kind), samples)), tmp_path / "q.onnx")
    with typed(tmp_path / "q.onnx", precision) as file:
        network = parsed(api().Builder(log()), file)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    products = {layer.get_output(0).dtype for layer in layers if layer.type == api().LayerType.CONVOLUTION}
    assert products == {api().DataType.FLOAT if precision == "f32" else api().DataType.HALF}
    assert any(layer.type == api().LayerType.QUANTIZE for layer in layers)


@pytest.mark.skipif(installed() is not None and not installed().is_rtx, reason="only RTX builds without a GPU")
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_a_network_is_built_where_there_is_no_gpu(cnn: Model, samples, precision: str, tmp_path: Path) -> None:
    plan = place(cnn, TENSORRT, TENSORRT.variants[-1])
    save(materialize(cnn, calibrate(cnn, plan, samples)), tmp_path / "q.onnx")
    with typed(tmp_path / "q.onnx", precision) as file:
        made = built(file, BuildOptions(device="none", tf32=False), store=Cache(tmp_path))
    assert len(made) > 10_000


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"this is no model")
    with pytest.raises(EngineError, match=r"bad\.onnx"):
        parsed(api().Builder(log()), tmp_path / "bad.onnx")
