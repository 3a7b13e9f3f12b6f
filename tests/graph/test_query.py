import onnx
import pytest

from fptq.errors import ModelError
from fptq.graph import query
from fptq.graph.load import load


@pytest.fixture
def model():
    return load(
        onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        agraph (float[N, 1, 4, 4] x) => (float[N, 1, A, B] y)
        <float[1, 1, 2, 2] w = {1, 2, 3, 4}, int64[4] s = {0, 1, 16, 1}, float scale = {2}> {
            [up] u = ConvTranspose <strides = [2, 2], output_padding = [1, 1], group = 1> (x, w)
            [act] r = Relu(u)
            [twice] y = Add(r, r)
            [other] z = Mul(x, scale)
            [flat] q = Reshape(z, s)
        }
    """)
    ).graph_model


def test_producers_and_readers(model):
    found = query.values(model)
    assert set(found) == {"x", "w", "u", "r", "y"}, "what no output needs is gone"
    assert query.producer(found["u"]).name == "up"
    assert query.producer(found["x"]) is None
    assert [(node.name, index) for node, index in query.readers(found["r"])] == [("twice", 0), ("twice", 1)]
    assert query.sole_reader(found["u"]).name == "act"
    assert query.sole_reader(found["r"]) is None
    assert query.sole_reader(found["y"]) is None
    assert [node.name for node in query.nodes(model)] == ["up", "act", "twice"]


def test_shapes(model):
    found = query.values(model)
    assert query.shape(found["x"]) == ("N", 1, 4, 4)
    assert query.static_shape(found["x"]) is None
    assert query.static_shape(found["w"]) == (1, 1, 2, 2)
    assert query.rank(found["u"]) == 4
    assert query.shape(None) is query.rank(None) is None


def test_constants_and_weights(model):
    found = query.values(model)
    assert query.constant(found["w"]).sum() == 10
    assert query.constant(found["x"]) is query.constant(None) is None
    assert query.is_weight(found["w"])
    assert not query.is_weight(found["x"])
    assert not query.is_weight(None)


def test_convolution_attributes_have_onnx_defaults(model):
    attributes = query.conv_attributes(query.node_named(model, "up"))
    assert attributes == query.ConvAttributes(
        kernel=(2, 2), strides=(2, 2), dilations=(1, 1), pads=(0, 0, 0, 0), output_padding=(1, 1), group=1
    )
    assert attributes.rank == 2
    with pytest.raises(ModelError, match="is a Relu"):
        query.conv_attributes(query.node_named(model, "act"))
    with pytest.raises(ModelError, match="no node is named 'nobody'"):
        query.node_named(model, "nobody")
