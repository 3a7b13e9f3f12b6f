from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fptq.graph.model import Model
from fptq.graph.rest import Shelf, let_go, put_to_rest, unmapping
from fptq.graph.write import save


def external(model: Model) -> list[ir.ExternalTensor]:
    values = model.graph.initializers.values()
    return [v.const_value for v in values if isinstance(v.const_value, ir.ExternalTensor)]


def test_weights_read_the_same_from_the_file(cnn: Model) -> None:
    before = {name: v.const_value.numpy().copy() for name, v in cnn.graph.initializers.items()}
    fingerprint = Model(graph_model=cnn.clone()).sha256
    put_to_rest(cnn.graph_model, large=1)
    assert external(cnn)
    for name, value in cnn.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), before[name])
    assert cnn.sha256 == fingerprint


def test_small_models_stay_in_memory(cnn: Model) -> None:
    put_to_rest(cnn.graph_model)
    assert external(cnn) == []


def test_arrays_in_use_survive_letting_go(cnn: Model) -> None:
    put_to_rest(cnn.graph_model, large=1)
    held = external(cnn)[0].numpy()
    copy = held.copy()
    let_go(cnn)
    np.testing.assert_array_equal(held, copy)
    np.testing.assert_array_equal(external(cnn)[0].numpy(), copy)


def test_the_file_lives_as_long_as_a_clone_and_no_longer(cnn: Model) -> None:
    put_to_rest(cnn.graph_model, large=1)
    clone = cnn.clone()
    name = external(cnn)[0].name
    folder = Path(external(cnn)[0].base_dir)
    before = external(cnn)[0].numpy().copy()
    for value in cnn.graph.initializers.values():
        value.const_value = None
    gc.collect()
    np.testing.assert_array_equal(clone.graph.initializers[name].const_value.numpy(), before)
    del clone
    gc.collect()
    assert not folder.exists()


def mapped(model: Model) -> list[str]:
    return [str(tensor.name) for tensor in external(model) if tensor.raw is not None]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float32"])
def test_a_shelf_gives_back_what_was_put_there(dtype: str) -> None:
    shelf, rng = Shelf(), np.random.default_rng(0)
    arrays = [rng.integers(0, 100, shape).astype(dtype) for shape in [(3, 5), (7,), (2, 2, 2), ()]]
    tensors = [shelf.put(array, name=f"t{index}") for index, array in enumerate(arrays)]
    for tensor, array in zip(tensors, arrays, strict=True):
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_the_file_of_a_shelf_lives_as_long_as_its_tensors() -> None:
    tensor = Shelf().put(np.arange(6), name="t")
    folder = Path(tensor.base_dir)
    gc.collect()
    np.testing.assert_array_equal(tensor.numpy(), np.arange(6))
    del tensor
    gc.collect()
    assert not folder.exists()


def test_the_fingerprint_and_writing_leave_nothing_mapped(cnn: Model, tmp_path: Path) -> None:
    put_to_rest(cnn.graph_model, large=1)
    assert len(cnn.sha256) == 64
    assert mapped(cnn) == []
    save(cnn, tmp_path / "m.onnx", limit=1)
    assert mapped(cnn) == []


def test_tensors_are_unmapped_while_others_are_written(cnn: Model, tmp_path: Path) -> None:
    put_to_rest(cnn.graph_model, large=1)
    at_once, step = [], unmapping()

    def watch(tensor: ir.TensorProtocol, info: object) -> None:
        step(tensor, info)
        at_once.append(len(mapped(cnn)))

    ir.save(cnn.clone(), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0, callback=watch)
    assert len(at_once) > 3
    assert max(at_once) <= 1
