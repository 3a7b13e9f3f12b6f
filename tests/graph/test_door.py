"""Bad input at the door, and good input in every form."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from fptq.errors import ConfigError, DataError, ModelError
from fptq.graph.load import LoadOptions, load

RNG = np.random.default_rng(11)


def model(
    nodes=None, weights=None, *, x=(1, 3, 6, 6), opset=20, domains=(), inputs=None, x_type=TensorProto.FLOAT
) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    weights = {"w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)} if weights is None else weights
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [helper.make_tensor_value_info("x", x_type, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def test_a_file_a_proto_and_an_ir_model_are_the_same(tmp_path):
    proto = model()
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = [load(tmp_path / "m.onnx"), load(str(tmp_path / "m.onnx")), load(proto), load(ir.from_proto(proto))]
    assert len({made.sha256 for made in loaded}) == 1
    assert loaded[0].source == str(tmp_path / "m.onnx")
    assert loaded[0].notes == ()


def test_a_function_by_name(tmp_path, monkeypatch):
    onnx.save(model(), tmp_path / "m.onnx")
    (tmp_path / "my_builder_module.py").write_text(
        "def build():\n    return 'm.onnx'\nvalue = 3\ndef broken():\n    return 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    made = load("my_builder_module:build")
    assert made.source == "my_builder_module:build"
    with pytest.raises(ModelError, match=r"int is no network"):
        load("my_builder_module:value")
    with pytest.raises(ModelError, match=r"my_builder_module:broken raised ZeroDivisionError"):
        load("my_builder_module:broken")
    with pytest.raises(ModelError, match=r"absent"):
        load("my_builder_module:absent")


def test_not_an_onnx_file(tmp_path):
    (tmp_path / "m.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match=r"m.onnx cannot be read as an ONNX model"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file(tmp_path, share):
    content = model().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError):
        load(tmp_path / "m.onnx")


def test_missing_and_wrong_paths(tmp_path):
    with pytest.raises(ModelError, match=r"does not exist"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match=r"folder"):
        load(tmp_path)
    with pytest.raises(ModelError, match=r"int is no network"):
        load(3)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
def test_checkpoints_are_refused_unread(tmp_path, suffix):
    (tmp_path / f"net{suffix}").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ModelError, match=r"checkpoint.*package.module:function"):
        load(tmp_path / f"net{suffix}")


def external(folder, name="m.onnx") -> None:
    onnx.save_model(model(), folder / name, save_as_external_data=True, location="weights.bin", size_threshold=0)


def test_external_data_are_read_and_checked(tmp_path):
    external(tmp_path)
    assert load(tmp_path / "m.onnx").parameter_count == 108
    whole = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(whole[:100])
    with pytest.raises(ModelError, match=r"weights.bin has 100 of 432 bytes.*'w'"):
        load(tmp_path / "m.onnx")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights.bin is missing"):
        load(tmp_path / "m.onnx")


def test_external_data_outside_the_folder_are_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    external(tmp_path / "sub")
    proto = onnx.load(tmp_path / "sub" / "m.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../secret.bin"
    onnx.save(proto, tmp_path / "sub" / "m.onnx")
    (tmp_path / "secret.bin").write_bytes(bytes(432))
    with pytest.raises(ModelError, match=r"secret.bin"):
        load(tmp_path / "sub" / "m.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value):
    weight = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight[0, 0, 0, 0] = value
    with pytest.raises(ModelError, match=r"weight 'w' has 1 .* of 108 values"):
        load(model(weights={"w": weight}))


def test_infinity_in_a_mask_is_meant():
    nodes = [helper.make_node("Add", ["x", "mask"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    mask = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
    assert load(model(nodes, {"mask": mask})).notes == ()


def test_a_custom_operator_is_named():
    nodes = [helper.make_node("Spin", ["x"], ["y"], domain="my.ops", name="spinner")]
    with pytest.raises(ModelError, match=r"'spinner' is my.ops::Spin"):
        load(model(nodes, {}, domains=["my.ops"]))


def test_operators_of_onnx_runtime_are_taken():
    nodes = [helper.make_node("FastGelu", ["x"], ["y"], domain="com.microsoft")]
    (note,) = load(model(nodes, {}, domains=["com.microsoft"], opset=14)).notes
    assert "com.microsoft::FastGelu" in note


@pytest.mark.parametrize("op_type", ["QuantizeLinear", "DynamicQuantizeLinear"])
def test_quantized_models_are_refused(op_type):
    outputs = ["y"] if op_type == "QuantizeLinear" else ["y", "s", "z"]
    inputs = ["x", "scale"] if op_type == "QuantizeLinear" else ["x"]
    nodes = [helper.make_node(op_type, inputs, outputs, name="q")]
    with pytest.raises(ModelError, match=rf"quantized already: node 'q' is a {op_type}"):
        load(model(nodes, {"scale": np.float32(1)[()].reshape(())}))


def test_sequence_inputs_are_refused():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    nodes = [helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)]
    with pytest.raises(ModelError, match=r"'s' is SequenceType"):
        load(model(nodes, {}, inputs=[sequence]))


def test_a_value_that_nothing_computes():
    nodes = [helper.make_node("Add", ["x", "ghost"], ["y"], name="sum")]
    with pytest.raises(ModelError, match=r"'sum' reads 'ghost'"):
        load(model(nodes, {}))


def test_a_file_of_weights_only_computes_nothing():
    proto = model()
    del proto.graph.node[:]
    with pytest.raises(ModelError, match=r"computes nothing"):
        load(proto)


def test_default_inputs_become_constants():
    proto = model()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 3, 3, 3)))
    assert [info.name for info in load(proto).inputs] == ["x"]


def test_dynamic_axes_of_a_file_are_kept_fixed_or_picked():
    proto = model(x=("N", 3, "H", 6))
    sample = np.zeros((2, 3, 6, 6), np.float32)
    assert load(proto).inputs[0].shape == ("N", 3, "H", 6)
    fixed = load(proto, example=sample, options=LoadOptions(dynamic="none"))
    assert fixed.inputs[0].shape == (2, 3, 6, 6)
    assert fixed.outputs[0].shape == (2, 4, 4, 4)
    picked = load(proto, example={"x": sample}, options=LoadOptions(dynamic="x:0=batch"))
    assert picked.inputs[0].shape == ("batch", 3, 6, 6)
    assert picked.outputs[0].shape == ("batch", 4, 4, 4)


@pytest.mark.parametrize(
    ("dynamic", "error", "text"),
    [
        ("x:1=channels", ModelError, "axis 1 of 'x' is 3 in the file"),
        ("z:0=batch", ConfigError, "inputs are x"),
        ("x:9=far", ConfigError, "x has 4 axes"),
        ("x=batch", ConfigError, "input:axis=name"),
        ("none", DataError, "N have no size"),
    ],
)
def test_dynamic_axes_that_cannot_be(dynamic, error, text):
    with pytest.raises(error, match=text):
        load(model(x=("N", 3, 6, 6)), options=LoadOptions(dynamic=dynamic))


def test_an_example_of_another_size_leaves_the_check_to_random_inputs():
    assert load(model(), example=np.zeros((5, 3, 6, 6), np.float32)).notes == ()


def test_token_inputs_stay_inside_their_table():
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    weights = {"table": RNG.standard_normal((5, 4)).astype(np.float32)}
    assert load(model(nodes, weights, x=(1, 64), x_type=TensorProto.INT64)).notes == ()


def test_an_example_of_another_form_says_what_is_missing():
    with pytest.raises(DataError, match=r"no input 'x'"):
        load(model(), example={"image": np.zeros((1, 3, 6, 6), np.float32)})
