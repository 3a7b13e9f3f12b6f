"""Names of formats, and the plans that they make."""

from __future__ import annotations

import pytest

from fptq.errors import ConfigError
from fptq.numerics import PerBlock, PerChannel, PerTensor
from fptq.plan import PROFILES, place
from fptq.recipes import sensitivity
from fptq.recipes.formats import Format


@pytest.mark.parametrize(
    "name", ["int8", "w4", "w1a8", "w8a17", "w4a8/row", "w4a8/block", "w4a8/block1", " w4a8", "W4A8"]
)
def test_what_is_no_format_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(ConfigError, match="w4a8 means 4-bit weights"):
        Format.parse(name)


def test_only_eight_bits_by_channel_or_tensor_have_kernels() -> None:
    emulated = {n: Format.parse(n).emulated for n in ("w8a8", "w8a8/tensor", "w8a8/block32", "w4a8", "w16a16")}
    assert emulated == {"w8a8": False, "w8a8/tensor": False, "w8a8/block32": True, "w4a8": True, "w16a16": True}


def test_a_format_says_widths_and_what_shares_a_scale(cnn) -> None:
    profile = PROFILES["openvino"]
    plan = place(cnn, profile, profile.variants[0])
    for name, kind in (("w4a6", PerChannel), ("w4a6/tensor", PerTensor), ("w4a6/block4", PerBlock)):
        made = Format.parse(name).plan(plan, cnn)
        assert {type(made.specs[p].granularity) for p in made.weights} == {kind}
        assert {made.specs[p].bits for p in made.weights} == {4}
        assert {made.specs[p].bits for p in made.activations} == {6}


def test_blocks_run_along_input_channels(cnn) -> None:
    profile = PROFILES["openvino"]
    plan = Format.parse("w4a8/block4").plan(place(cnn, profile, profile.variants[0]), cnn)
    for placement in plan.weights:
        axis = plan.specs[placement].granularity.axis
        assert axis == (0 if "ConvTranspose" in str(placement.consumer) else 1)


def test_blocks_that_do_not_come_out_even_are_named(cnn) -> None:
    profile = PROFILES["openvino"]
    plan = place(cnn, profile, profile.variants[0])
    given = Format.parse("w4a8/block16")
    made = given.plan(plan, cnn)
    kinds = {str(p.consumer): type(made.specs[p].granularity) for p in made.weights}
    assert kinds.pop("Conv_0") is PerChannel  # 4 input channels
    assert set(kinds.values()) == {PerBlock}
    assert given.exceptions(made) == (
        "Conv_0 have no scale per block: their input channels (of one group) are no multiple of 16"
    )
    assert given.exceptions(made.without(*(p for p in made.weights if p.consumer == "Conv_0"))) == ""
    assert Format.parse("w4a8").exceptions(made) == ""


def test_finer_scales_hurt_less(cnn, samples, tmp_path) -> None:
    formats = ("w3a16/tensor", "w3a16/channel", "w3a16/block4")
    options = {"calibration": samples, "cache": tmp_path / "cache", "threads": 1, "engine": "openvino"}
    found = sensitivity(cnn.graph_model, formats=formats, **options)
    tensor, channel, block = (sum(row.loss[name] for row in found.rows) for name in formats)
    assert tensor > channel > block


def test_few_codes_have_a_zero_point_eight_bits_have_none(cnn) -> None:
    profile = PROFILES["openvino"]
    plan = place(cnn, profile, profile.variants[0])
    for name, symmetric in (("w8a8", True), ("w4a8", False), ("w2a2", False)):
        made = Format.parse(name).plan(plan, cnn)
        assert {made.specs[p].symmetric for p in made.weights} == {symmetric}
