"""Quantizers in front of what engines compute in float: where they stand, and what the plan says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest

from fptq.config import Recipe
from fptq.errors import ConfigError
from fptq.graph.model import Model
from fptq.plan import PROFILES, Placement, Plan, Policy, place
from fptq.plan.encoding import plan_from_json, plan_to_json
from fptq.plan.float_inputs import FLOAT_INPUTS, quantized_for_float, with_float_inputs

ORT = PROFILES["onnxruntime"]


@pytest.fixture
def attention(net: Callable) -> Model:
    """Scores with a mask of minus infinities, their Softmax, and a normalised layer with a Gelu."""
    n = net((1, 6, 8))
    query = n("MatMul", n.stored(8, 8))
    n.last = query
    n("Transpose", perm=[0, 2, 1])
    keys, n.last = n.last, query
    n("MatMul", keys)
    n("Mul", n.stored(1))
    mask = n.stored(6, 6)
    mask.const_value = ir.tensor(np.triu(np.full((6, 6), -np.inf, np.float32), 1), name=mask.name)
    n("Add", mask)
    n("Softmax", axis=-1)
    n("MatMul", query)
    n("LayerNormalization", n.stored(8), n.stored(8), axis=-1)
    n("Gelu")
    n("MatMul", n.stored(8, 4))
    return n.model()


def placed(model: Model, *kinds: str, policy: Policy | None = None) -> Plan:
    return with_float_inputs(model, place(model, ORT, ORT.variants[0], policy), kinds, policy=policy)


def test_each_kind_quantizes_its_own_inputs(attention: Model) -> None:
    before = set(place(attention, ORT, ORT.variants[0]).specs)
    added = {kind: set(placed(attention, kind).specs) - before for kind in FLOAT_INPUTS}
    assert added == {
        "layernorm": {Placement("v6", "LayerNormalization_7", 0)},
        "softmax": {Placement("v3", "Add_4", 0)},  # in front of the mask
        "activation": {Placement("v7", "Gelu_8", 0)},
    }
    assert set(placed(attention, *FLOAT_INPUTS).specs) == before.union(*added.values())


def test_a_mask_put_over_the_scores_is_looked_behind_too(net: Callable) -> None:
    n = net((6, 6))
    n("MatMul", n.last)
    scores, n.last = n.last, n.stored(1)
    n("Less", n.stored(6, 6))
    n("Where", n.stored(1), scores)
    n("Softmax", axis=-1)
    plan = with_float_inputs(n.model(), Plan(engine="onnxruntime", specs={}), ["softmax"])
    assert list(plan.specs) == [Placement("v0", "Where_2", 2)]


def test_widths_and_signs_are_the_policys(attention: Model) -> None:
    plan = placed(attention, "layernorm", policy=Policy(activation_bits=6, symmetric=True))
    spec = plan.specs[Placement("v6", "LayerNormalization_7", 0)]
    assert (spec.bits, spec.signed, spec.symmetric) == (6, True, True)
    default = placed(attention, "layernorm").specs[Placement("v6", "LayerNormalization_7", 0)]
    assert (default.bits, default.signed, default.symmetric) == (8, False, False)


def test_the_plan_says_that_it_is_without_gain(attention: Model) -> None:
    plan = placed(attention, *FLOAT_INPUTS)
    reasons = {refusal.node: refusal.reason for refusal in plan.refusals}
    without = "is quantized without gain: onnxruntime computes"
    assert reasons["LayerNormalization_7"] == f"its input {without} LayerNormalization in float"
    assert reasons["Add_4"] == f"its input of Softmax, before the mask, {without} Add in float"
    assert len(reasons) == len(plan.refusals)
    assert {p.consumer for p in quantized_for_float(plan)} == {"Add_4", "LayerNormalization_7", "Gelu_8"}
    again = plan_from_json(plan_to_json(plan))
    assert quantized_for_float(again) == quantized_for_float(plan)


def test_what_the_user_keeps_in_float_stays_so(attention: Model) -> None:
    policy = Policy(precision={"LayerNormalization_7": "float"})
    with pytest.raises(ConfigError, match="no input of the kind 'layernorm'"):
        placed(attention, "layernorm", policy=policy)


def test_a_relu_that_a_kernel_absorbs_is_none_of_its_business(cnn: Model) -> None:
    plan = placed(cnn, "activation")
    assert {p.consumer for p in quantized_for_float(plan)} == {"Relu_9"}  # that behind InstanceNormalization


def test_the_recipe_knows_the_same_kinds() -> None:
    annotation = Recipe.model_fields["also_quantize"].annotation
    assert set(get_args(get_args(annotation)[0])) == set(FLOAT_INPUTS)
