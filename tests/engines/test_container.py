"""Packed files run as their int8 form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fptq.calibrate import calibrate
from fptq.engines import ENGINES, CompileOptions, engine_named
from fptq.engines.container import runnable
from fptq.errors import EngineError, ModelError
from fptq.graph.metadata import PACKED
from fptq.graph.write import save
from fptq.plan import PROFILES, materialize, packed, place

OPTIONS = CompileOptions(threads=1)
EACH = [
    pytest.param(name, marks=pytest.mark.engine(ENGINES[name].extra))
    for name in ENGINES
    if name != "tensorrt"  # it takes signed codes; its own packed file is in test_tensorrt.py
]


@pytest.fixture
def files(cnn, samples, tmp_path):
    """A model of 2- and 4-bit weights with zero points, in both forms."""
    profile = PROFILES["openvino"]
    plan = place(cnn, profile, profile.variants[0])
    narrow = {
        p: replace(plan.specs[p], bits=2 + 2 * (i % 2), signed=False, symmetric=False)
        for i, p in enumerate(sorted(plan.weights, key=str))
    }
    encoding = calibrate(cnn, replace(plan, specs={**plan.specs, **narrow}), samples)
    made = materialize(cnn, encoding)
    save(made, tmp_path / "model.onnx")
    save(packed(made, encoding), tmp_path / "model.packed.onnx")
    return tmp_path / "model.onnx", tmp_path / "model.packed.onnx"


@pytest.mark.parametrize("name", EACH)
def test_a_packed_file_is_the_int8_file_to_an_engine(name: str, files, samples) -> None:
    wide, small = (engine_named(name).compile(file, OPTIONS) for file in files)
    for output, array in wide(samples[0]).items():
        np.testing.assert_array_equal(small(samples[0])[output], array)
    kernels = [[(run.op, run.kernel) for run in s.profile(samples[0], runs=1)] for s in (wide, small)]
    assert kernels[0] == kernels[1]
    if name != "simulation":
        assert "int8" in {run.precision for run in small.profile(samples[0], runs=1)}


@pytest.mark.engine("openvino")
def test_openvino_refuses_codes_of_2_bits(files, tmp_path) -> None:
    """Should it learn them, expanding may no longer pay."""
    with pytest.raises(EngineError, match="Unsupported type"):
        engine_named("openvino").compile(as_it_is(files[1], tmp_path / "m.onnx"), OPTIONS)


def test_onnx_runtime_runs_packed_weights_in_float(files, samples, tmp_path) -> None:
    session = engine_named("onnxruntime").compile(as_it_is(files[1], tmp_path / "m.onnx"), OPTIONS)
    assert "int8" not in {run.precision for run in session.profile(samples[0], runs=1)}


def as_it_is(small: Path, target: Path) -> Path:
    """A packed file that fptq does not take for one of its own."""
    model = ir.load(small)
    del model.metadata_props[PACKED]
    save(model, target)
    return target


def test_weights_beside_the_file_are_expanded_and_missed(files, samples, tmp_path) -> None:
    wide, small = files
    save(ir.load(small), tmp_path / "apart" / "m.onnx", limit=0)
    (data,) = (tmp_path / "apart").glob("*.data")
    session = engine_named("onnxruntime").compile(tmp_path / "apart" / "m.onnx", OPTIONS)
    for output, array in engine_named("onnxruntime").compile(wide, OPTIONS)(samples[0]).items():
        np.testing.assert_array_equal(session(samples[0])[output], array)
    data.unlink()
    with pytest.raises(ModelError, match="is missing"):
        engine_named("onnxruntime").compile(tmp_path / "apart" / "m.onnx", OPTIONS)


def test_nothing_is_left_behind_and_other_files_are_not_copied(files) -> None:
    wide, small = files
    with runnable(wide) as file:
        assert file == wide
    with runnable(small) as file:
        assert file.name == small.name
        assert file != small
        assert {v.dtype for v in ir.load(file).graph.initializers.values()}.isdisjoint(
            {ir.DataType.UINT4, ir.DataType.UINT2}
        )
    assert not file.parent.exists()
