from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fptq.graph.model import Model
from fptq.graph.rest import let_go, put_to_rest


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
