"""Every node test of ONNX itself whose operations are known here."""

import fnmatch
import functools
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from fptq.execute.ops import OPS, Call

FLOAT8 = "torch computes in no 4-bit or 8-bit float"
NARROW = "an 8-bit tensor does not tell that it holds 4-bit or 2-bit integers, and Cast does not clamp"
CACHE = "padded caches and sliding windows of Attention are refused"
TRAINING = "training mode is refused"
ROUNDED = "the corners of a fraction of a pixel: done as ONNX Runtime does it"

SKIPPED: Mapping[str, str] = {
    "test_cast*FLOAT8*": FLOAT8,
    "test_cast*FLOAT4E2M1*": FLOAT8,
    "test_cast*_to_*INT4*": NARROW,
    "test_cast*_to_*INT2*": NARROW,
    "test_*quantizelinear_e4m3fn*": FLOAT8,
    "test_*quantizelinear_e5m2*": FLOAT8,
    "test_*quantizelinear_float4e2m1*": FLOAT8,
    "test_equal_string*": "a string is no tensor",
    "test_training_dropout": TRAINING,
    "test_training_dropout_mask": TRAINING,
    "test_training_dropout_default*": TRAINING,
    "test_batchnorm_*_training_mode": TRAINING,
    "test_attention_*_window": CACHE,
    "test_attention_local_window_*_*[!d]": CACHE,
    "test_attention_4d_*_nonpad_*[!d]": CACHE,
    "test_attention_4d_*_padded_kv": CACHE,
    "test_attention_4d*_padded_kv_bf16": CACHE,
    "test_resize_downsample_scales_*_align_corners": ROUNDED,
}
"""Why a case that fails is left out, by name or pattern ([!d]: not those that are _expanded)."""

TOLERANCE: Mapping[torch.dtype, float] = {torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Two units in the last place where a case asks for less; ONNX's own runner grants this for bfloat16."""


def known(model: onnx.ModelProto) -> bool:
    """Whether every node is an operation of ONNX itself that has a function."""
    nodes = model.graph.node
    return bool(nodes) and all(node.domain in ("", "ai.onnx") and node.op_type in OPS for node in nodes)


def collected() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflows in ONNX's own examples
        return {case.name: case for case in collect_testcases(None) if known(case.model)}


CASES = collected()


def tensor(value: Any) -> torch.Tensor:
    """A torch tensor; types that NumPy does not know by their bits, 4 bits and less in 8."""
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.name in ("int4", "int2"):
        array = array.astype(np.int8)
    if array.dtype.name in ("uint4", "uint2"):
        array = array.astype(np.uint8)
    return torch.from_numpy(array.copy())


def run(model: onnx.ModelProto, inputs: list[Any]) -> list[torch.Tensor]:
    graph = ir.from_proto(model).graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    values = {value.name: tensor(given) for value, given in zip(graph.inputs, inputs, strict=True)}
    for node in graph:
        arguments = [None if value is None else values[value.name] for value in node.inputs]
        result = OPS[node.op_type](Call(node, opset), *arguments)
        results = result if isinstance(result, tuple) else (result,)
        values.update(zip((value.name for value in node.outputs), results, strict=False))
    return [values[value.name] for value in graph.outputs]


def check(case: Any) -> None:
    for inputs, outputs in case.data_sets:
        for result, output in zip(run(case.model, inputs), outputs, strict=True):
            expected = tensor(output)
            assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
            rtol = max(case.rtol, TOLERANCE.get(expected.dtype, 0))
            torch.testing.assert_close(result, expected, rtol=rtol, atol=case.atol, equal_nan=True)


@functools.cache
def failure(name: str) -> str | None:
    try:
        check(CASES[name])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def reason(name: str) -> str | None:
    return next((why for pattern, why in SKIPPED.items() if fnmatch.fnmatchcase(name, pattern)), None)


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_the_suite_of_onnx(name):
    why = reason(name)
    if why is None:
        assert failure(name) is None
    else:
        assert failure(name) is not None, f"it passes, but is left out: {why}"
        pytest.skip(why)


def test_every_reason_to_skip_is_needed():
    assert [pattern for pattern in SKIPPED if not fnmatch.filter(CASES, pattern)] == []


def test_every_case_passes_or_has_a_reason_to_be_skipped():
    passed = [name for name in CASES if failure(name) is None]
    skipped = [name for name in CASES if reason(name)]
    print(f"\nONNX node suite: {len(passed)} of {len(CASES)} cases pass, {len(skipped)} are skipped")  # noqa: T201
    assert set(passed) ^ set(skipped) == set(CASES)
