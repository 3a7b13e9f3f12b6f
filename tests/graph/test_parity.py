import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fptq.errors import ModelError, ParityError
from fptq.graph.parity import HALF, check_parity, graph_reference, run_graph, sqnr
from fptq.graph.sample import random_feeds

TEXT = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[2, 3] x) => (float[2, 3] y, int64[2] z) <float k = {{{k}}}> {{
    a = Exp(x)
    b = Mul(a, k)
    c = Tanh(b)
    y = Add(c, x)
    z = ArgMax <axis = 1, keepdims = 0> (y)
}}
"""


def graph(k: float) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT.format(k=k)))


@pytest.fixture
def feeds():
    return next(iter(random_feeds(graph(1.5))))


def test_equal_graphs_agree(feeds):
    assert check_parity(graph(1.5), feeds, graph_reference(graph(1.5), feeds, name="the file")) == math.inf


def test_the_first_value_that_differs_is_named(feeds):
    reference = graph_reference(graph(1.5), feeds, name="the file")
    with pytest.raises(ParityError, match=r"value 'b' is the first that differs from the file.*dB only"):
        check_parity(graph(1.6), feeds, reference)


def test_the_tolerance_is_relative_to_the_outputs_scale(feeds):
    reference = graph_reference(graph(1.5), feeds, name="the file")
    assert check_parity(graph(1.500001), feeds, reference) > 80
    assert check_parity(graph(1.51), feeds, reference, tolerance=HALF) > 25


def test_integers_shapes_and_special_values_count(feeds):
    reference = graph_reference(graph(1.5), feeds, name="it")
    wrong = [
        ([reference.outputs[0], 2 - reference.outputs[1]], "agrees in"),
        ([reference.outputs[0][:1], reference.outputs[1]], "has shape"),
        (
            [np.where(np.arange(6).reshape(2, 3) == 0, np.nan, reference.outputs[0]), reference.outputs[1]],
            "other places",
        ),
    ]
    for outputs, text in wrong:
        with pytest.raises(ParityError, match=text):
            check_parity(graph(1.5), feeds, type(reference)(name="it", outputs=outputs, values=reference.values))


def test_equal_infinities_agree():
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        agraph (float[2, 3] x) => (float[2, 3] y) { z = Sub(x, x)  y = Div(x, z) }
    """)
    feeds = {"x": np.array([[1, -1, 2], [0, 1, 1]], np.float32)}
    assert check_parity(ir.from_proto(proto), feeds, graph_reference(ir.from_proto(proto), feeds, name="it")) > 80


def test_a_graph_that_does_not_run_says_so():
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        agraph (float[2, 3] x, float[5, 4] w) => (float[2, 4] y) { y = MatMul(x, w) }
    """)
    with pytest.raises(ModelError, match="ONNX Runtime cannot run"):
        run_graph(ir.from_proto(proto), {"x": np.ones((2, 3), np.float32), "w": np.ones((5, 4), np.float32)})


def test_sqnr_in_decibels():
    assert sqnr(np.array([0.9]), np.array([1.0])) == pytest.approx(20)
    assert sqnr(np.array([1.0, np.inf]), np.array([1.0, np.inf])) == math.inf
    assert sqnr(np.array([1.0]), np.array([0.0])) == -math.inf


def test_random_inputs_respect_types_and_tables():
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        agraph (int64[N, L] ids, bool[N, L] mask, float16[N, 3] x) => (float[N, L, 1] y)
        <float[7, 1] table = {1, 2, 3, 4, 5, 6, 7}> { i = Cast <to = 6> (ids)  y = Gather(table, i) }
    """)
    sets = list(random_feeds(ir.from_proto(proto)))
    assert len({feeds["ids"].shape for feeds in sets}) == len(sets) > 1
    for feeds in sets:
        assert feeds["ids"].shape == feeds["mask"].shape
        assert 0 <= feeds["ids"].min() <= feeds["ids"].max() < 7
        assert (feeds["mask"].dtype, feeds["x"].dtype) == (bool, np.float16)
    assert max(feeds["ids"].max() for feeds in sets) > 1
