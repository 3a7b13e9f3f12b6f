"""Regions whose sum a float operation reads: the same network in float, the numerics bit by bit in the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fptq.calibrate import calibrate
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.parity import check_rewrite
from fptq.numerics import (
    PiecewiseParams,
    PiecewiseSpec,
    QuantizerSpec,
    fake_quantize_piecewise,
    params_from_breakpoints,
)
from fptq.plan import Encoding, Placement, Plan, Refusal, materialize
from fptq.rewrite import applied, float_inputs, product_inputs, sum_regions

BOTH = [pytest.param(name, marks=pytest.mark.engine(name)) for name in ("onnxruntime", "openvino")]
SPECS = [
    QuantizerSpec(signed=False, symmetric=False),
    QuantizerSpec(),
    QuantizerSpec(bits=6, signed=False, symmetric=False),
    QuantizerSpec(bits=4, narrow=True),
]
INNER = {2: [(-1.7, 1.6)], 3: [(-1.0, 0.9), (-8.0, 12.0)]}
DEVIATION = {"onnxruntime": 0.0, "openvino": 1e-5}
"""Of a value that is not on the edge of two codes; OpenVINO dequantizes by its own formula."""


def normalised(net: Callable) -> Model:
    """A LayerNormalization with a residual sum in front of it."""
    n = net((2, 6, 8))
    n("Neg")
    n("LayerNormalization", n.stored(8), n.stored(8), axis=-1)
    return n.model()


def planned(model: Model, spec: QuantizerSpec) -> Plan:
    (node,) = (node for node in model.graph if node.op_type == "LayerNormalization")
    refusal = Refusal(node=str(node.name), op=node.op_type, reason="float")
    return Plan(engine="", specs={Placement("v0", str(node.name), 0): spec}, refusals=(refusal,))


def drawn(model: Model, seed: int = 1) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(tuple(model.inputs[0].shape or ())).astype(np.float32)  # type: ignore[arg-type]
    x[..., [1, 6]] *= 30
    return x


def cut(net: Callable, spec: QuantizerSpec, regions: int = 2) -> tuple[Model, Model, Encoding, PiecewiseParams]:
    model = normalised(net)
    encoding = calibrate(model, planned(model, spec), [{"x": drawn(model)}])
    (found,) = float_inputs(encoding.plan)
    whole = PiecewiseSpec(region=spec, regions=regions)
    params = params_from_breakpoints(whole, -61.0, 70.0, INNER[regions])
    changed, cut_encoding = applied(model, encoding, partial(sum_regions, cut=found, params=params))
    return model, changed, cut_encoding, params


def returning(model: Model, value: str) -> Model:
    changed = model.clone()
    changed.graph.outputs[:] = [query.values(changed)[value]]
    return model.with_graph(changed)


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("regions", [2, 3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_sum_is_what_the_numerics_make_of_it(
    net: Callable, run: Callable, spec: QuantizerSpec, regions: int, engine: str
) -> None:
    model, changed, encoding, params = cut(net, spec, regions)
    x = drawn(model, seed=2)
    written = materialize(changed, encoding)
    read = run(returning(written, "v0_sum"), x, engine=engine)
    expected = fake_quantize_piecewise(-x, PiecewiseSpec(region=spec, regions=regions), params)
    tolerance = DEVIATION[engine] * np.abs(expected).max()
    np.testing.assert_allclose(read, expected, rtol=0, atol=tolerance)
    assert np.unique(read).size > 8  # of both regions
    # And what the reader makes of it.
    norm = model.clone()
    node = query.node_named(norm, "LayerNormalization_1")
    node.replace_input_with(0, norm.graph.inputs[0])
    reference = run(model.with_graph(norm), expected, engine=engine)
    np.testing.assert_allclose(run(written, x, engine=engine), reference, atol=1e-4)


@pytest.mark.parametrize("regions", [2, 3])
def test_the_float_network_stays_the_same_on_any_input(net: Callable, regions: int) -> None:
    model, changed, _, _ = cut(net, SPECS[0], regions)
    for factor in (0.01, 1.0, 1000.0):
        sample = {"x": drawn(model, seed=3) * np.float32(factor)}
        check_rewrite(model.graph_model, changed.graph_model, sample, name="regions")


def test_the_encoding_follows_and_the_rest_stays(net: Callable) -> None:
    model, changed, encoding, params = cut(net, SPECS[0])
    assert list(encoding.plan.specs) == [
        Placement("v0_region1", "v0_sum_Add", 0),
        Placement("v0_beyond1", "v0_sum_Add", 1),
    ]
    assert [encoding.params[p] for p in encoding.plan.specs] == list(params.regions)
    assert encoding.model_sha256 == changed.sha256 != model.sha256
    assert {str(node.name) for node in model.graph} <= {str(node.name) for node in changed.graph}
    assert float_inputs(encoding.plan) == ()  # once is enough


def test_two_float_readers_share_the_parts_and_others_read_the_value_itself(net: Callable, run: Callable) -> None:
    n = net((2, 6, 8))
    source = n("Neg")
    first = n("LayerNormalization", n.stored(8), n.stored(8), axis=-1)
    n.last = source
    n("Softmax", axis=-1)
    second = n("Add", first)
    n.last = source
    n("Add", second)  # the residual
    model = n.model()
    readers = ("LayerNormalization_1", "Softmax_2")
    specs = {Placement("v0", reader, 0): SPECS[0] for reader in readers}
    refusals = tuple(Refusal(node=reader, op="", reason="") for reader in readers)
    encoding = calibrate(model, Plan(engine="", specs=specs, refusals=refusals), [{"x": drawn(model)}])
    (found,) = float_inputs(encoding.plan)
    params = params_from_breakpoints(PiecewiseSpec(region=SPECS[0]), -61.0, 70.0, INNER[2])
    changed, cut_encoding = applied(model, encoding, partial(sum_regions, cut=found, params=params))
    written = materialize(replace(changed, origin={}), cut_encoding)
    assert sum(node.op_type == "QuantizeLinear" for node in written.graph) == 2
    residual = query.node_named(written.graph_model, "Add_4")
    assert [value.name for value in residual.inputs if value is not None] == ["v0", "v3"]
    np.testing.assert_allclose(run(changed, drawn(model)), run(model, drawn(model)), atol=1e-4)


def test_products_are_for_the_other_rewrite(net: Callable) -> None:
    n = net((2, 6, 8))
    n("Neg")
    n("MatMul", n.stored(8, 4))
    model = n.model()
    specs = {Placement("v0", "MatMul_1", 0): SPECS[0], Placement("w0", "MatMul_1", 1): QuantizerSpec()}
    weights = frozenset({Placement("w0", "MatMul_1", 1)})
    integer = Plan(engine="", specs=specs, weights=weights)
    assert float_inputs(integer) == ()
    in_float = integer.without(*weights).refusing([Refusal(node="MatMul_1", op="MatMul", reason="its weight is float")])
    assert [found.value for found in float_inputs(in_float)] == ["v0"]
    assert product_inputs(model, in_float) == ()
