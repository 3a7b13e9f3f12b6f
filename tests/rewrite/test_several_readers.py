from __future__ import annotations

import numpy as np
import pytest

from fptq.engines import CompileOptions, engine_named
from fptq.graph.write import save
from fptq.rewrite import bias_for_several_readers


def residual(net, batch, *, bias=None):
    n = net((batch, 8, 6, 6))
    more = [] if bias is None else [bias(n)]
    first = n("Conv", n.stored(16, 8, 3, 3), *more, pads=[1, 1, 1, 1])
    n("Relu")
    n("Add", first)
    return n.model()


def zeros(n):
    return n.stored(16, scale=0.0)


@pytest.mark.parametrize("bias", [None, zeros], ids=["no bias", "zeros"])
def test_a_convolution_of_dynamic_shape_and_several_readers_gets_a_bias_that_adds_nothing(net, bias, tmp_path) -> None:
    model = residual(net, "n", bias=bias)
    made = bias_for_several_readers(model)
    conv = next(node for node in made.graph if node.op_type == "Conv")
    assert conv.inputs[2] is not None
    assert np.all(conv.inputs[2].const_value.numpy() > 0)
    x = np.random.default_rng(0).standard_normal((3, 8, 6, 6)).astype(np.float32)
    found = []
    for index, one in enumerate((model, made)):
        save(one, tmp_path / f"{index}.onnx")
        session = engine_named("simulation").compile(tmp_path / f"{index}.onnx", CompileOptions(threads=1))
        found.append(session({"x": x})[model.outputs[0].name])
    np.testing.assert_array_equal(*found)
    assert bias_for_several_readers(made) is made


def test_others_are_left_alone(net) -> None:
    fixed = residual(net, 1)
    assert bias_for_several_readers(fixed) is fixed
    biased = residual(net, "n", bias=lambda n: n.stored(16))
    assert bias_for_several_readers(biased) is biased
    n = net(("n", 8, 6, 6))
    n("Conv", n.stored(16, 8, 3, 3), pads=[1, 1, 1, 1])
    n("Relu")
    one_reader = n.model()
    assert bias_for_several_readers(one_reader) is one_reader
