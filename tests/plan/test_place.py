from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from fptq.errors import ConfigError, ModelError
from fptq.graph.model import Model
from fptq.numerics import PerChannel, PerTensor
from fptq.plan import PROFILES, Placement, Policy, place
from fptq.plan.place import place_weights, survey
from fptq.plan.profile import Family, Profile, Variant

OPENVINO, ORT = PROFILES["openvino"], PROFILES["onnxruntime"]


def variant(profile: Profile, *families: Family) -> Variant:
    return Variant(name="test", families=frozenset(families), activation=profile.variants[0].activation)


def test_products_get_quantizers_on_input_and_weight(cnn: Model) -> None:
    plan = place(cnn, OPENVINO, variant(OPENVINO, Family.CORE))
    assert len(plan.weights) == 5
    assert Placement("x", "Conv_0", 0) in plan.specs
    assert plan.int32_bias == frozenset()


def test_weight_scales_run_over_output_channels(cnn: Model) -> None:
    plan = place(cnn, OPENVINO, variant(OPENVINO, Family.CORE))
    axes = {p.consumer: plan.specs[p].granularity for p in plan.weights}
    assert axes["Conv_0"] == PerChannel(axis=0)
    assert axes["ConvTranspose_5"] == PerChannel(axis=1)


def test_per_tensor_weights_and_other_widths_are_the_users_choice(cnn: Model) -> None:
    policy = Policy(per_channel=False, weight_bits=4, activation_bits=6, symmetric=True)
    plan = place(cnn, OPENVINO, OPENVINO.variants[0], policy)
    assert {plan.specs[p].granularity for p in plan.weights} == {PerTensor()}
    assert {plan.specs[p].bits for p in plan.weights} == {4}
    assert {(plan.specs[p].bits, plan.specs[p].signed) for p in plan.activations} == {(6, True)}


def test_a_quantizer_behind_max_pooling_moves_in_front_of_it(cnn: Model) -> None:
    plan = place(cnn, OPENVINO, variant(OPENVINO, Family.CORE))
    assert Placement("v1", "MaxPool_2", 0) in plan.specs
    assert not any(p.value == "v2" for p in plan.specs)
    stays = place(cnn, ORT, ORT.variants[0])
    assert any(p.value == "v2" for p in stays.specs)


def test_a_quantizer_does_not_move_to_the_result_of_a_product_in_float(net) -> None:
    n = net((2, 8, 4, 16))
    x = n.scores()
    n("Relu")
    n("MatMul", x)
    n("Transpose", perm=[0, 2, 1, 3])
    n("Reshape", n.shape(2, 4, 128))
    n("MatMul", n.stored(128, 8))
    model = n.model()
    behind, product = Placement("v5", "MatMul_6", 0), Placement("v3", "Transpose_4", 0)
    assert behind in place(model, OPENVINO, variant(OPENVINO, Family.CORE)).specs
    whole = place(model, OPENVINO, variant(OPENVINO, Family.CORE, Family.PRODUCT))
    assert product in whole.specs
    assert behind not in whole.specs


def test_inputs_and_readers_of_a_concat_share_a_scale(cnn: Model) -> None:
    plan = place(cnn, OPENVINO, variant(OPENVINO, Family.CORE, Family.CONCAT))
    (tie,) = plan.ties
    joined = {p for p in plan.specs if p.consumer == "Concat_6"}
    assert joined < tie
    assert Placement("v6", "Conv_7", 0) in tie


def test_onnx_runtime_quantizes_results_behind_the_fused_activation(cnn: Model) -> None:
    plan = place(cnn, ORT, ORT.variants[0])
    assert Placement("v1") in plan.specs
    assert Placement("v0") not in plan.specs
    assert "Conv_0" in plan.int32_bias


def test_every_float_node_has_a_reason(cnn: Model) -> None:
    for profile in PROFILES.values():
        plan = place(cnn, profile, profile.variants[0])
        quantized = {p.consumer for p in plan.weights}
        refused = {r.node for r in plan.refusals}
        assert quantized | refused == {str(n.name) for n in cnn.graph}
        assert all(r.reason for r in plan.refusals)


def test_three_dimensional_convolutions_of_odd_channels_are_refused_with_the_reason(net) -> None:
    n = net((1, 3, 4, 4, 4))
    n.conv(3, 16, rank=3)
    n.conv(16, 16, rank=3)
    n("Relu")
    n("Sigmoid")
    plan = place(n.model(), ORT, ORT.variants[0])
    assert {p.consumer for p in plan.weights} == {"Conv_1"}
    assert any("multiple of 4" in r.reason for r in plan.refusals if r.node == "Conv_0")


def test_globs_keep_layers_float_by_node_name_and_module_path(cnn: Model) -> None:
    named = Model(
        graph_model=cnn.graph_model, origin={"Conv_0": ("node_1", "encoder.stem"), "Conv_7": ("decoder.up.conv",)}
    )
    for pattern, kept in (("Conv_0", "Conv_0"), ("decoder.*", "Conv_7"), ("encoder.stem", "Conv_0")):
        plan = place(named, OPENVINO, OPENVINO.variants[0], Policy(precision={pattern: "float"}))
        assert kept not in {p.consumer for p in plan.specs}
        assert any(r.node == kept and pattern in r.reason for r in plan.refusals)


def test_the_last_matching_glob_decides(cnn: Model) -> None:
    policy = Policy(precision={"*": "float", "Conv_3": "int8"})
    plan = place(cnn, OPENVINO, variant(OPENVINO, Family.CORE), policy)
    assert {p.consumer for p in plan.weights} == {"Conv_3"}


def test_a_glob_that_matches_nothing_is_an_error(cnn: Model) -> None:
    with pytest.raises(ConfigError, match="decodr"):
        place(cnn, OPENVINO, OPENVINO.variants[0], Policy(precision={"decodr.*": "float"}))


def test_a_model_without_products_is_refused(net) -> None:
    n = net((1, 4))
    n("Relu")
    with pytest.raises(ModelError, match="nothing in this model"):
        place(n.model(), OPENVINO, OPENVINO.variants[0])


def test_storage_takes_every_weight_that_is_not_kept_float(cnn: Model) -> None:
    plan = place_weights(cnn, ORT, Policy(precision={"Conv_10": "float"}))
    assert {p.consumer for p in plan.weights} == {"Conv_0", "Conv_3", "Conv_7", "ConvTranspose_5"}
    assert plan.activations == ()


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.engine)
def test_profiles_say_where_their_facts_come_from(profile: Profile) -> None:
    assert profile.facts
    assert all(fact.says and fact.source and fact.version for fact in profile.facts)
    assert profile.variants
    assert len({v.name for v in profile.variants}) == len(profile.variants)


@pytest.mark.parametrize("joins", ["Add", "Concat"])
def test_sums_of_values_that_are_never_negative_waste_no_sign(net, joins: str) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 4)
    first = n("Relu")
    n.conv(4, 4)
    n("Relu")
    n(joins, first, **({"axis": 1} if joins == "Concat" else {}))
    n("ConvTranspose", n.stored(8 if joins == "Concat" else 4, 4, 2, 2), strides=[2, 2], kernel_shape=[2, 2])
    plan = place(n.model(), OPENVINO, OPENVINO.variants[0])
    (placement,) = (p for p in plan.activations if p.consumer == "ConvTranspose_5")
    assert not plan.specs[placement].signed


@pytest.mark.parametrize(("instead", "signed"), [(0.0, False), (-1.0, True)])
def test_attention_that_is_never_negative_wastes_no_sign(instead: float, signed: bool) -> None:
    """PyTorch exports softmax with 0 in rows that are masked as a whole."""
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[2, 4, 4] scores, float[2, 4, 8] values) => (float[2, 4, 8] y)
        {
            shares = Softmax(scores)
            nothing = IsNaN(shares)
            guarded = Where(nothing, instead, shares)
            y = MatMul(guarded, values)
        }""")
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(instead), "instead"))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    model = Model(graph_model=ir.from_proto(onnx.shape_inference.infer_shapes(proto)))
    plan = survey(model, OPENVINO, next(v for v in OPENVINO.variants if v.name == "products+attention"))
    specs = {p.value: plan.specs[p] for p in plan.activations}
    assert specs["guarded"].signed == signed
    assert specs["values"].signed
    assert specs["values"].symmetric


def test_a_transposed_convolution_of_signed_values_gets_zero_point_zero(net) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 4)
    n("LeakyRelu", alpha=0.1)
    n("ConvTranspose", n.stored(4, 4, 2, 2), strides=[2, 2], kernel_shape=[2, 2])
    plan = place(n.model(), OPENVINO, OPENVINO.variants[0])
    (placement,) = (p for p in plan.activations if p.consumer == "ConvTranspose_2")
    assert plan.specs[placement].signed
    assert plan.specs[placement].symmetric


def test_shapes_and_stored_tensors_are_no_activations() -> None:
    """A network of any batch computes its shapes with Concat; a class token is stored and joined to the rest."""
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 4, 8] x) => (float[N, M, 8] y)
        <int64[2] rest = {-1, 8}, int64[1] zero = {0}>
        {
            shape = Shape(x)
            batch = Gather(shape, zero)
            wanted = Concat<axis = 0>(batch, rest)
            tall = Reshape(x, wanted)
            flat = MatMul(tall, w)
            tokens = Concat<axis = 0>(flat, token)
            y = MatMul(tokens, w)
        }""")
    for name, shape in (("token", (1, 8)), ("w", (8, 8))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    model = Model(graph_model=ir.from_proto(onnx.shape_inference.infer_shapes(proto)))
    for one in OPENVINO.variants:
        assert {placement.value for placement in place(model, OPENVINO, one).activations} == {"x", "tokens"}


TENSORRT = PROFILES["tensorrt"]


def residual(net) -> Model:
    """Two convolutions whose results meet in an addition, one through a ReLU that others read too."""
    n = net((1, 16, 8, 8))
    n.conv(16, 16)
    skip = n("Relu")
    n.conv(16, 16)
    n("Add", skip)
    n("Relu")
    n.conv(16, 16)
    return n.model()


@pytest.mark.parametrize("kind", TENSORRT.variants, ids=lambda v: v.name)
def test_tensorrt_gets_signed_codes_with_zero_point_0_everywhere(cnn: Model, kind: Variant) -> None:
    plan = place(cnn, TENSORRT, kind)
    assert plan.activations
    assert all(plan.specs[p].signed and plan.specs[p].symmetric for p in plan.specs)


def test_tensorrt_refuses_to_place_zero_points(cnn: Model) -> None:
    with pytest.raises(ConfigError, match="zero point 0 only"):
        place(cnn, TENSORRT, TENSORRT.variants[0], Policy(symmetric=False))


def test_an_addition_on_tensorrt_quantizes_its_skip_branch_only(net) -> None:
    plan = place(residual(net), TENSORRT, variant(TENSORRT, Family.CORE, Family.ADD))
    assert {p for p in plan.specs if p.consumer == "Add_3"} == {Placement("v1", "Add_3", 1)}


def test_of_two_products_that_meet_in_an_addition_the_last_one_is_spared(net) -> None:
    n = net((1, 16, 8, 8))
    n.conv(16, 16)
    entry = n("Relu")
    shortcut = n.conv(16, 16, kernel=1)
    n.last = entry
    n.conv(16, 16)
    n("Add", shortcut)
    n("Relu")
    n.conv(16, 16)
    plan = place(n.model(), TENSORRT, variant(TENSORRT, Family.CORE, Family.ADD))
    assert {p for p in plan.specs if p.consumer == "Add_4"} == {Placement("v2", "Add_4", 1)}


def test_an_addition_that_is_read_twice_is_not_spared(net) -> None:
    n = net((1, 16, 8, 8))
    product = n.conv(16, 16)
    n("Sigmoid")
    n("Add", product)
    n.conv(16, 16)
    plan = place(n.model(), TENSORRT, variant(TENSORRT, Family.CORE, Family.ADD))
    assert {p.index for p in plan.specs if p.consumer == "Add_2"} == {0, 1}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_transposed_convolution_on_tensorrt_has_a_scale_for_each_input_channel(net, rank: int) -> None:
    n = net((1, 32, *[8] * rank))
    n("ConvTranspose", n.stored(32, 16, *[2] * rank), strides=[2] * rank, kernel_shape=[2] * rank)
    n.conv(16, 16, rank=rank)
    plan = place(n.model(), TENSORRT, TENSORRT.variants[0])
    scales = {p.consumer: plan.specs[p].granularity for p in plan.weights}
    assert scales == {"ConvTranspose_0": PerChannel(axis=0), "Conv_1": PerChannel(axis=0)}


@pytest.mark.parametrize(("c_in", "c_out", "group"), [(1, 16, 1), (16, 4, 1), (12, 16, 1), (16, 20, 1), (16, 16, 16)])
def test_channels_that_tensor_cores_would_pad_stay_float_with_the_reason(
    net, c_in: int, c_out: int, group: int
) -> None:
    n = net((1, c_in, 8, 8, 8))
    n("Conv", n.stored(c_out, c_in // group, 3, 3, 3), kernel_shape=[3] * 3, pads=[1] * 6, group=group)
    n.conv(c_out, 16, rank=3)
    n.conv(16, 16, rank=3)
    plan = place(n.model(), TENSORRT, TENSORRT.variants[0])
    assert any("tensor cores" in r.reason for r in plan.refusals if r.node == "Conv_0")
    assert "Conv_2" in {p.consumer for p in plan.weights}
