import errno
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fptq.errors import ModelError, OutputError
from fptq.graph import write
from fptq.graph.load import load
from fptq.graph.write import file_bytes, loadable, save, to_bytes

RNG = np.random.default_rng(8)


def model(seed=0):
    weight = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 64))],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(64, np.float32), "b")],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def run(content) -> np.ndarray:
    return ort.InferenceSession(content).run(None, {"x": np.ones((2, 64), np.float32)})[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_small_model_is_one_file_with_metadata(tmp_path):
    made = model()
    save(made, tmp_path / "new" / "m.onnx", metadata={"fptq.engine": "openvino"})
    assert names(tmp_path / "new") == ["m.onnx"]
    assert {p.key: p.value for p in onnx.load(tmp_path / "new" / "m.onnx").metadata_props}["fptq.engine"] == "openvino"
    assert "fptq.engine" not in made.graph_model.metadata_props
    np.testing.assert_array_equal(run(str(tmp_path / "new" / "m.onnx")), run(to_bytes(made)))


def test_large_weights_go_beside_the_file_and_old_ones_vanish(tmp_path):
    path = tmp_path / "m.onnx"
    save(model(1), path, limit=1000)
    first = names(tmp_path)
    assert len(first) == 2
    assert path.stat().st_size < 2000
    np.testing.assert_array_equal(run(str(path)), run(to_bytes(model(1))))
    save(model(2), path, limit=1000)
    assert len(names(tmp_path)) == 2
    assert names(tmp_path) != first
    np.testing.assert_array_equal(run(str(path)), run(to_bytes(model(2))))
    save(model(2), path)
    assert names(tmp_path) == ["m.onnx"]


def test_a_loaded_model_can_be_written_over_its_own_file(tmp_path):
    path = tmp_path / "m.onnx"
    save(model(1), path, limit=1000)
    expected = run(str(path))
    again = load(path)
    assert isinstance(again.graph.initializers["w"].const_value, ir.ExternalTensor)
    save(again, path, limit=1000)
    np.testing.assert_array_equal(run(str(path)), expected)
    save(again, tmp_path / "elsewhere" / "m.onnx")
    np.testing.assert_array_equal(run(str(tmp_path / "elsewhere" / "m.onnx")), expected)


@pytest.mark.parametrize("limit", [1000, write.LIMIT])
def test_an_old_file_survives_a_full_disk(tmp_path, monkeypatch, limit):
    path = tmp_path / "m.onnx"
    save(model(1), path, limit=limit)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write.ir, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        save(model(2), path, limit=limit)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(_, path, **__):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(write.ir, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(model(), tmp_path / "m.onnx")
    assert names(tmp_path) == []


@pytest.mark.parametrize("limit", [1000, write.LIMIT])
def test_sessions_open_for_models_of_any_size(limit):
    with loadable(model(), limit=limit) as content:
        assert isinstance(content, str if limit == 1000 else bytes)
        session = ort.InferenceSession(content)
    result = session.run(None, {"x": np.ones((2, 64), np.float32)})[0]
    np.testing.assert_array_equal(result, run(to_bytes(model())))


def test_bytes_of_a_large_model_are_refused(monkeypatch):
    monkeypatch.setattr(write, "LIMIT", 1000)
    with pytest.raises(ModelError, match="too large"):
        to_bytes(model())


def test_external_data_count_in_the_size(cnn, tmp_path):
    save(cnn, tmp_path / "inside.onnx")
    save(cnn, tmp_path / "beside.onnx", limit=0)
    data = sum(part.stat().st_size for part in tmp_path.glob("beside.*.data"))
    assert data > 0
    assert file_bytes(tmp_path / "beside.onnx") == (tmp_path / "beside.onnx").stat().st_size + data
    assert file_bytes(tmp_path / "inside.onnx") == (tmp_path / "inside.onnx").stat().st_size
