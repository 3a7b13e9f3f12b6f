"""The small file: standard ONNX with the same numbers, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from fptq.graph.metadata import PACKED
from fptq.graph.model import Model
from fptq.graph.write import save, to_bytes
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, fake_quantize, params_from_range, ranges
from fptq.plan import Encoding, Placement, Plan, expanded, materialize, packed, packs

GRANULARITIES = [PerTensor(), PerChannel(axis=0), PerChannel(axis=-3), PerBlock(axis=1, size=2)]


def encoded(model: Model, **specs: QuantizerSpec) -> Encoding:
    """Weights of convolutions by name; ranges that are not symmetric."""
    places = {Placement(use.name or "", f"Conv_{index}", 1): use for index, use in weights(model).items()}
    plan = Plan(engine="", specs={p: specs[p.value] for p in places if p.value in specs}, weights=frozenset(places))
    plan = replace(plan, weights=frozenset(plan.specs))
    arrays = {p: places[p].const_value.numpy() for p in plan.specs}
    params = {
        p: params_from_range(s, *ranges(arrays[p] + np.float32(0.1), s.granularity)) for p, s in plan.specs.items()
    }
    return Encoding(plan=plan, params=params, model_sha256="")


def weights(model: Model) -> dict[int, ir.Value]:
    return {i: node.inputs[1] for i, node in enumerate(model.graph) if node.op_type == "Conv"}


def asymmetric(bits: int, **more: object) -> QuantizerSpec:
    return QuantizerSpec(bits=bits, symmetric=False, **more)  # type: ignore[arg-type]


def two_convolutions(net) -> Model:
    n = net((1, 4, 6))
    n.conv(4, 5, rank=1)
    n.conv(5, 3, rank=1)
    return n.model()


def assert_equal(made: ir.Model, wanted: ir.Model) -> None:
    assert made.opset_imports == wanted.opset_imports
    assert made.ir_version == wanted.ir_version
    assert made.metadata_props == wanted.metadata_props
    assert [str(node) for node in made.graph] == [str(node) for node in wanted.graph]
    assert list(made.graph.initializers) == list(wanted.graph.initializers)
    for name, value in wanted.graph.initializers.items():
        found = made.graph.initializers[name]
        assert found.dtype == value.dtype == found.const_value.dtype, name
        np.testing.assert_array_equal(found.const_value.numpy(), value.const_value.numpy(), err_msg=name)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("bits", "opset"), [(2, 25), (3, 21), (4, 21)])
def test_it_is_standard_onnx_with_the_same_numbers(net, bits: int, opset: int, signed: bool, granularity) -> None:
    model = two_convolutions(net)
    spec = asymmetric(bits, signed=signed, granularity=granularity)
    encoding = encoded(model, w0=spec)
    made = materialize(model, encoding)
    small = packed(made, encoding)
    assert small.opset == opset
    proto = onnx.load_from_string(to_bytes(small))
    onnx.checker.check_model(proto, full_check=True)
    x = {"x": np.random.default_rng(0).standard_normal((1, 4, 6)).astype(np.float32)}
    exact = ReferenceEvaluator(onnx.load_from_string(to_bytes(made))).run(None, x)[0]
    np.testing.assert_array_equal(ReferenceEvaluator(proto).run(None, x)[0], exact)
    np.testing.assert_allclose(ort.InferenceSession(proto.SerializeToString()).run(None, x)[0], exact, atol=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_expanded_it_is_the_materialized_model(net, bits: int, signed: bool, granularity, tmp_path) -> None:
    model = two_convolutions(net)
    encoding = encoded(model, w0=asymmetric(bits, signed=signed, granularity=granularity), w2=QuantizerSpec())
    made = materialize(model, encoding)
    small = packed(made, encoding)
    assert_equal(expanded(small.graph_model), made.graph_model)
    save(small, tmp_path / "small.onnx")
    back = expanded(ir.load(tmp_path / "small.onnx"))
    for name, value in made.graph.initializers.items():
        np.testing.assert_array_equal(back.graph.initializers[name].const_value.numpy(), value.const_value.numpy())


@pytest.mark.parametrize(("bits", "dtype"), [(2, "UINT2"), (3, "UINT4"), (4, "UINT4"), (5, "INT8"), (8, "UINT8")])
def test_each_width_in_its_container(net, bits: int, dtype: str) -> None:
    model = two_convolutions(net)
    encoding = encoded(model, w0=asymmetric(bits, signed=False), w2=QuantizerSpec(bits=4))
    small = packed(materialize(model, encoding), encoding)
    stored = small.graph.initializers
    assert stored["w0_quantized"].dtype.name == stored["w0_zero_point"].dtype.name == dtype
    assert stored["w2_quantized"].dtype == ir.DataType.INT4
    assert stored["w2_quantized"].const_value.nbytes == 23  # 45 codes
    about = json.loads(small.graph_model.metadata_props[PACKED])
    assert about["emulated"] == ({"w0": bits} if bits in {3, 5} else {})
    assert sum(about["weights_of_bits"].values()) == 2


def test_its_codes_are_those_of_the_encoding(net) -> None:
    model = two_convolutions(net)
    encoding = encoded(model, w0=asymmetric(4, signed=False, granularity=PerChannel(axis=0)))
    (placement,) = encoding.plan.specs
    floats = model.graph.initializers["w0"].const_value.numpy()
    small = packed(materialize(model, encoding), encoding)
    codes, zero_point, scale = (
        small.graph.initializers[f"w0_{part}"].const_value.numpy() for part in ("quantized", "zero_point", "scale")
    )
    numbers = encoding.params[placement]
    np.testing.assert_array_equal(zero_point.astype(int), numbers.zero_point)
    steps = codes.astype(np.float32) - zero_point.astype(np.float32)[:, None, None]
    exact = fake_quantize(floats, encoding.plan.specs[placement], numbers)
    np.testing.assert_array_equal(steps * scale[:, None, None], exact)


@pytest.mark.parametrize(("bits", "worth"), [(2, True), (4, True), (5, False), (8, False)])
def test_a_file_is_worth_it_where_codes_share_bytes(net, bits: int, worth: bool) -> None:
    model = two_convolutions(net)
    assert packs(encoded(model, w0=asymmetric(bits)).plan) is worth


def test_four_bits_per_channel_are_nearly_eight_times_smaller(net, tmp_path) -> None:
    n = net((1, 128, 4, 4))
    n.conv(128, 128)
    model = n.model()
    encoding = encoded(model, w0=asymmetric(4, signed=False, granularity=PerChannel(axis=0)))
    save(model, tmp_path / "float.onnx")
    save(packed(materialize(model, encoding), encoding), tmp_path / "packed.onnx")
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("float", "packed")]
    assert sizes[0] / sizes[1] > 7.7


def test_models_that_are_not_packed_stay_as_they_are(cnn: Model) -> None:
    assert_equal(expanded(cnn.graph_model), cnn.graph_model)
