from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.errors import ConfigError
from fptq.graph.placement import Placement
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, UniformParams
from fptq.plan.encoding import Encoding, load_encoding, plan_from_json, plan_to_json, save_encoding
from fptq.plan.plan import Plan, Refusal

A, B, C = Placement("a"), Placement("b", "conv", 0), Placement("w", "conv", 1)
SPEC = QuantizerSpec(signed=False, symmetric=False)
PLAN = Plan(
    engine="openvino",
    specs={A: SPEC, B: SPEC, C: QuantizerSpec(granularity=PerChannel(axis=1))},
    weights=frozenset({C}),
    ties=(frozenset({A, B}),),
    int32_bias=frozenset({"conv"}),
    refusals=(Refusal(node="n", op="Gelu", reason="no kernel"),),
)


@given(st.text(min_size=1).filter(lambda s: " -> " not in s), st.text(min_size=1), st.integers(0, 9))
def test_a_placement_survives_its_text(value: str, consumer: str, index: int) -> None:
    for placement in (Placement(value), Placement(value, consumer, index)):
        assert Placement.parse(str(placement)) == placement


def test_only_and_without_keep_what_they_say_and_shrink_ties() -> None:
    assert set(PLAN.only(A).specs) == {A}
    assert set(PLAN.without(A).specs) == {B, C}
    assert PLAN.without(A).ties == ()
    assert PLAN.tied(A) == {A, B}
    assert PLAN.without(A).tied(B) == {B}
    assert PLAN.only(A).weights == frozenset()


def test_with_bits_changes_only_what_is_named() -> None:
    changed = PLAN.with_bits({B: 4})
    assert changed.specs[B].bits == 4
    assert changed.specs[A] == PLAN.specs[A]


def test_the_plan_cannot_be_changed_from_outside() -> None:
    with pytest.raises(TypeError):
        PLAN.specs[A] = SPEC  # type: ignore[index]


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=2), PerBlock(axis=1, size=32)])
def test_a_plan_survives_json(granularity: PerTensor | PerChannel | PerBlock) -> None:
    spec = QuantizerSpec(bits=4, narrow=True, granularity=granularity)
    plan = Plan(**{**vars(PLAN), "specs": {**PLAN.specs, C: spec}})
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


@pytest.mark.parametrize("data", [{}, {"engine": "x"}, {**plan_to_json(PLAN), "placements": [{"placement": "a"}]}])
def test_what_is_no_plan_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="not a plan"):
        plan_from_json(data)


def params(value: float, *, count: int | None = None) -> UniformParams:
    shape = () if count is None else (count,)
    return UniformParams(scale=np.full(shape, value), zero_point=np.full(shape, 3))


def test_an_encoding_survives_its_files(tmp_path) -> None:
    encoding = Encoding(
        plan=PLAN,
        params={A: params(0.5), B: params(0.5), C: params(0.25, count=4)},
        model_sha256="abc",
        codes={C: np.arange(8, dtype=np.int32)},
        rewrites=("bias correction",),
    )
    save_encoding(encoding, tmp_path)
    found = load_encoding(tmp_path)
    assert found.plan == encoding.plan
    assert found.model_sha256 == "abc"
    assert found.rewrites == encoding.rewrites
    np.testing.assert_array_equal(found.codes[C], encoding.codes[C])
    for placement in PLAN.specs:
        np.testing.assert_array_equal(found.params[placement].scale, encoding.params[placement].scale)
        np.testing.assert_array_equal(found.params[placement].zero_point, encoding.params[placement].zero_point)


def test_an_encoding_needs_numbers_for_every_placement() -> None:
    with pytest.raises(ValueError, match="without numbers"):
        Encoding(plan=PLAN, params={A: params(1.0)}, model_sha256="")


def test_a_folder_without_an_encoding_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no readable encoding"):
        load_encoding(tmp_path)
    (tmp_path / "encoding.json").write_text('{"format": "other/9"}')
    with pytest.raises(ConfigError):
        load_encoding(tmp_path)
