from __future__ import annotations

from fptq.graph.model import Model
from fptq.plan import PROFILES, Plan, place
from fptq.reconstruct import blocks_of
from fptq.reconstruct.flow import Flow


def plan_of(model: Model, variant: int = 0) -> Plan:
    profile = PROFILES["openvino"]
    return place(model, profile, profile.variants[variant])


def found(model: Model, plan: Plan, extent: str = "block", **how: int) -> list[tuple[str, ...]]:
    """The weights of every block, after checks that hold for any network."""
    flow = Flow.of(model)
    blocks = blocks_of(model, plan, extent=extent, **how)
    weights = [p for block in blocks for p in block.weights]
    assert sorted(weights) == sorted(plan.weights), "every weight is in one block"
    at = {str(node.name): index for index, node in enumerate(flow.nodes) if node is not None}
    known = {info.name for info in model.inputs}
    for block in blocks:
        region = sum(1 << at[name] for name in block.nodes)
        assert flow.exits(region) == (block.output,)
        assert flow.entries(region) == block.inputs
        assert not set(flow.crossing([], block.inputs)), "nothing is fed but values"
        known.add(block.output)
    assert all(block.output in known for block in blocks)
    return [tuple(p.value for p in block.weights) for block in blocks]


def test_residual_blocks_and_single_layers(resnet: Model) -> None:
    plan = plan_of(resnet)
    assert found(resnet, plan) == [("w0",), ("w1", "w2"), ("w3", "w4", "w5"), ("w6",)]
    assert found(resnet, plan, "layer") == [(f"w{index}",) for index in (0, 1, 2, 3, 4, 5, 6)]
    assert found(resnet, plan, "pack") == [("w0", "w1", "w2"), ("w3", "w4", "w5", "w6")]
    stem, first, *_ = blocks_of(resnet, plan)
    assert stem.output == "a", "with the activation behind it"
    assert (first.inputs, first.output, first.channels) == (("a",), "b", 1)


def test_every_quantizer_of_a_block_is_inside(resnet: Model) -> None:
    plan = plan_of(resnet, variant=5)
    blocks = blocks_of(resnet, plan)
    inside = [p for block in blocks for p in (*block.weights, *block.activations)]
    assert sorted(inside) == sorted(plan.specs), "additions and pooling are quantized here, inside blocks"


def test_long_skips_make_no_block(cnn: Model) -> None:
    plan = plan_of(cnn)
    blocks = blocks_of(cnn, plan)
    assert len(found(cnn, plan)) == len(blocks) == 5, "layer by layer"
    behind_concat = next(block for block in blocks if "Concat_6" in block.nodes)
    assert set(behind_concat.inputs) == {"v1", "v5"}, "the skip enters beside the upsampled values"
    assert behind_concat.nodes[-2:] == ("InstanceNormalization_8", "Relu_9")


def test_unets_of_residual_units(make_net) -> None:
    conv = "Conv<pads = [1, 1, 1, 1]>"
    model = make_net(
        f"""g (float[N, 2, 8, 8] x) => (float[N, 2, 8, 8] y) {{
            a0 = {conv}(x, w0)
            a1 = {conv}(x, w1)
            a = Add(a0, a1)
            b0 = Conv<strides = [2, 2], kernel_shape = [2, 2]>(a, w2)
            b1 = Relu(b0)
            b2 = {conv}(b1, w3)
            b = Add(b2, b1)
            u = ConvTranspose<strides = [2, 2]>(b, w4)
            cat = Concat<axis = 1>(a, u)
            c0 = {conv}(cat, w5)
            c1 = Sigmoid(c0)
            c2 = Mul(c0, c1)
            c3 = {conv}(c2, w6)
            c4 = Conv(cat, w7)
            c5 = Add(c3, c4)
            y = Conv(c5, w8)
        }}""",
        {
            "w0": (4, 2, 3, 3),
            "w1": (4, 2, 3, 3),
            "w2": (4, 4, 2, 2),
            "w3": (4, 4, 3, 3),
            "w4": (4, 4, 2, 2),
            "w5": (4, 8, 3, 3),
            "w6": (4, 4, 3, 3),
            "w7": (4, 8, 1, 1),
            "w8": (2, 4, 1, 1),
        },
    )
    assert found(model, plan_of(model)) == [("w0", "w1"), ("w2",), ("w3",), ("w4",), ("w5", "w6", "w7"), ("w8",)]
    assert found(model, plan_of(model), "pack", pack_size=3)[-1] == ("w5", "w6", "w7", "w8")


def test_attention_and_the_layers_behind_it_are_blocks(make_net) -> None:
    model = make_net(
        """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
            n = LayerNormalization<axis = -1>(x, g0, h0)
            q = MatMul(n, wq)
            k = MatMul(n, wk)
            v = MatMul(n, wv)
            kt = Transpose<perm = [0, 2, 1]>(k)
            s = MatMul(q, kt)
            p = Softmax<axis = -1>(s)
            o = MatMul(p, v)
            o1 = MatMul(o, wo)
            a = Add(o1, x)
            m0 = LayerNormalization<axis = -1>(a, g1, h1)
            m1 = MatMul(m0, w1)
            m2 = Gelu(m1)
            m3 = MatMul(m2, w2)
            y = Add(m3, a)
        }""",
        dict.fromkeys(("wq", "wk", "wv", "wo", "w1", "w2"), (8, 8)) | dict.fromkeys(("g0", "h0", "g1", "h1"), (8,)),
    )
    plan = plan_of(model, variant=4)
    assert found(model, plan) == [("wk", "wo", "wq", "wv"), ("w1", "w2")]
    first, second = blocks_of(model, plan)
    assert (first.output, second.output, first.channels) == ("a", "y", -1)
    assert len(first.activations) == 8, "inputs of the four layers and of both products of activations"
    assert [len(block) for block in found(model, plan, "layer")] == [1] * 6


def test_chains_and_depthwise_networks_are_layers_and_inverted_residuals(make_net) -> None:
    mlp = make_net(
        """g (float[N, 4] x) => (float[N, 3] y) {
            a = MatMul(x, w0)
            b = Add(a, b0)
            c = Relu(b)
            y = Gemm(c, w1)
        }""",
        {"w0": (4, 6), "b0": (6,), "w1": (6, 3)},
    )
    assert found(mlp, plan_of(mlp)) == [("w0",), ("w1",)]
    assert blocks_of(mlp, plan_of(mlp))[0].output == "c", "behind bias and activation"
    mobile = make_net(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = Conv(x, w0)
            b = Relu(a)
            c = Conv<group = 8, pads = [1, 1, 1, 1]>(b, w1)
            d = Relu(c)
            s0 = GlobalAveragePool(d)
            s1 = Conv(s0, w2)
            s2 = Sigmoid(s1)
            e = Mul(d, s2)
            f = Conv(e, w3)
            y = Add(f, x)
        }""",
        {"w0": (8, 4, 1, 1), "w1": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (4, 8, 1, 1)},
    )
    assert found(mobile, plan_of(mobile)) == [("w0", "w1", "w2", "w3")]
