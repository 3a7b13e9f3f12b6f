"""The ends of networks, by the graph alone."""

from __future__ import annotations

from fptq.graph.placement import Placement
from fptq.plan import PROFILES, place
from fptq.plan.edges import edges_of


def placed(net, engine="openvino"):
    model = net.model()
    return model, place(model, PROFILES[engine], PROFILES[engine].variants[0])


def residual(net):
    n = net((1, 4, 8, 8))
    n.conv(4, 8)
    skip = n("Relu")
    n.conv(8, 8)
    n("Relu")
    n.conv(8, 8)
    n("Add", skip)
    n("Relu")
    n.conv(8, 4, kernel=1)
    return n


def test_first_last_and_what_follows_the_first(net) -> None:
    model, plan = placed(residual(net))
    edges = edges_of(model, plan)
    assert {p.consumer for p in edges.first} == {"Conv_0"}
    assert {p.consumer for p in edges.last} == {"Conv_7"}
    assert edges.inputs == {Placement("x", "Conv_0", 0)}
    assert {p.value for p in edges.after_first} == {"v1"}  # not the sum, which the second layer feeds too


def test_the_settings_differ_in_the_output_of_the_first_layer(net) -> None:
    model, plan = placed(residual(net))
    edges = edges_of(model, plan)
    assert edges.wide("brecq") - edges.wide("qdrop") == edges.after_first
    assert Placement("v6", "Conv_7", 0) in edges.wide("qdrop")


def test_a_single_layer_is_first_and_last(net) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 4)
    model, plan = placed(n)
    assert set(plan.specs) == edges_of(model, plan).wide("qdrop")


def test_several_inputs_and_heads_count(net) -> None:
    n = net((1, 4, 8, 8))
    first = n.conv(4, 8)
    n.conv(8, 8)
    n("Add", first)
    n.conv(8, 4)
    model, plan = placed(n)
    edges = edges_of(model, plan)
    assert {p.consumer for p in edges.first} == {"Conv_0"}
    assert {p.consumer for p in edges.last} == {"Conv_3"}
