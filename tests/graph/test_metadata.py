from __future__ import annotations

import onnx_ir as ir
import pytest

from fptq.graph.metadata import has_property
from fptq.graph.model import Model
from fptq.graph.write import save


def test_names_are_found_behind_the_graph(cnn: Model, tmp_path) -> None:
    save(cnn, tmp_path / "m.onnx", metadata={"first": "1" * 300, "second": ""})
    assert has_property(tmp_path / "m.onnx", "first")
    assert has_property(tmp_path / "m.onnx", "second")
    assert not has_property(tmp_path / "m.onnx", "sec")
    assert not has_property(tmp_path / "m.onnx", "third")


def test_tensors_that_look_alike_are_not_metadata(cnn: Model, tmp_path) -> None:
    graph_model = cnn.clone()
    graph_model.graph.doc_string = graph_model.doc_string = "\n\x05first"
    ir.save(graph_model, tmp_path / "m.onnx")
    assert not has_property(tmp_path / "m.onnx", "first")


@pytest.mark.parametrize("content", [b"", b"<xml/>", b"this is no model", b"\xff" * 40, b"\x3a\xff\xff\xff\x7f"])
def test_what_is_no_onnx_file_has_none(content: bytes, tmp_path) -> None:
    (tmp_path / "m").write_bytes(content)
    assert not has_property(tmp_path / "m", "first")
    assert not has_property(tmp_path / "missing", "first")


def test_a_truncated_file_has_none(cnn: Model, tmp_path) -> None:
    save(cnn, tmp_path / "m.onnx", metadata={"first": "1"})
    whole = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: len(whole) // 2])
    assert not has_property(tmp_path / "m.onnx", "first")
