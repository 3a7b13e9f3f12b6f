"""From a file to the layers that hurt."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from fptq.errors import ConfigError, MissingExtra
from fptq.graph.write import save
from fptq.recipes import sensitivity


@pytest.fixture
def given(cnn, samples, tmp_path):
    save(cnn, tmp_path / "net.onnx")
    return {"model": tmp_path / "net.onnx", "calibration": samples, "cache": tmp_path / "cache", "threads": 1}


def call(given, **more):
    model, *_ = given.values()
    return sensitivity(str(model), **{name: value for name, value in given.items() if name != "model"} | more)


def test_every_quantized_layer_has_a_row(given) -> None:
    table = call(given, engine="onnxruntime")
    assert table.formats == ("w16a16", "w8a8", "w4a4", "w2a2")
    assert table.compared == "w8a8"
    assert table.method == "fisher"
    for row in table.rows:
        losses = [row.loss[name] for name in table.formats]
        assert losses == sorted(losses), "fewer bits, more error"
        assert math.isfinite(row.local_db)
        assert row.accumulated_db <= row.local_db + 1
    assert sum(row.parameters for row in table.rows) > 0


def test_fisher_agrees_with_leave_one_in(given) -> None:
    formats = ("w8a8", "w4a4")
    predicted = call(given, formats=formats)
    exact = call(given, formats=formats, method="leave-one-in")
    assert exact.method == "leave-one-in"
    for one, other in zip(predicted.rows, exact.rows, strict=True):
        assert one.layer == other.layer
        assert abs(math.log10(one.loss["w8a8"] / other.loss["w8a8"])) < 0.5


def test_a_second_call_computes_nothing(given, monkeypatch) -> None:
    first = call(given)
    monkeypatch.setattr("fptq.analyze.fisher_sensitivity", None)
    assert call(given) == first


@pytest.mark.parametrize("change", ["weight", "sample", "seed", "formats"])
def test_nothing_stale_is_used(change: str, given, cnn, samples, net, tmp_path) -> None:
    first = call(given)
    more = {}
    if change == "weight":
        model = cnn.clone()
        value = next(v for v in model.graph.initializers.values() if v.const_value.numpy().ndim == 4)
        array = value.const_value.numpy().copy()
        array.flat[0] += 1.0
        value.const_value = ir.tensor(array, name=value.name)
        save(cnn.with_graph(model), tmp_path / "net.onnx")
    elif change == "sample":
        more = {"calibration": [{"x": samples[0]["x"] + np.float32(0.5)}, *samples[1:]]}
    else:
        more = {"seed": 7} if change == "seed" else {"formats": ("w8a8", "w3a3")}
    second = call(given, **more)
    assert [row.loss for row in second.rows] != [row.loss for row in first.rows]


@pytest.mark.parametrize("last", [("Round", {}), ("ArgMax", {"axis": 1})])
def test_a_network_without_gradient_falls_back_and_says_so(last, net, samples, tmp_path, caplog) -> None:
    n = net((1, 4, 16, 16))
    n.conv(4, 8)
    n.conv(8, 8)
    op, attributes = last
    n(op, **attributes)
    if op == "ArgMax":
        n.last.dtype = ir.DataType.INT64
    save(n.model(), tmp_path / "last.onnx")
    table = sensitivity(str(tmp_path / "last.onnx"), calibration=samples, cache=tmp_path / "cache", threads=1)
    assert table.method == "leave-one-in"
    assert "Leave-one-in is used instead" in caplog.text
    assert all(row.loss["w2a2"] > 0 for row in table.rows)


@pytest.mark.parametrize("name", ["int8", "w8", "w1a8", "w8a17"])
def test_what_is_no_format_is_named(name: str, given) -> None:
    with pytest.raises(ConfigError, match="w4a8 means"):
        call(given, formats=(name,))


def test_a_method_must_exist(given) -> None:
    with pytest.raises(ConfigError, match="fisher and leave-one-in"):
        call(given, method="hessian")


def test_without_torch_the_extra_is_named(given, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"fptq\[torch\]"):
        call(given)
