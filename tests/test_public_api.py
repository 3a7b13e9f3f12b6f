from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fptq

NAMES = {
    "AssetError",
    "ConfigError",
    "DataError",
    "EngineError",
    "FptqError",
    "MetricError",
    "MissingExtra",
    "ModelError",
    "OutputError",
    "ParityError",
    "Recipe",
    "Report",
    "Result",
    "__version__",
    "bench",
    "bucket_by_length",
    "bundle_predictor",
    "inspect",
    "load_pretrained",
    "load_recipe",
    "nnunet_predictor",
    "quantize",
    "quantize_nnunet",
    "record",
    "sensitivity",
}


def run(code: str, **environment: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_these() -> None:
    assert set(fptq.__all__) == NAMES
    assert set(dir(fptq)) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_exists(name: str) -> None:
    assert getattr(fptq, name).__doc__ if name != "__version__" else fptq.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = fptq.quantise


def test_importing_the_package_or_the_command_line_loads_nothing_heavy() -> None:
    heavy = "('numpy', 'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'openvino', 'pydantic', 'rich')"
    for module in ("fptq", "fptq.cli"):
        assert run(f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_names_stay_what_they_are_after_their_modules_are_imported() -> None:
    code = "import fptq; fptq.quantize; import fptq.recipes, fptq.recipes.quantize; print(callable(fptq.quantize))"
    assert run(code) == "True"


@pytest.mark.engine("openvino")
def test_no_engine_reports_home(tmp_path: Path) -> None:
    """Both vendors' packages keep an identifier of the user where their telemetry is on."""
    pytest.importorskip("openvino")
    code = "from fptq.engines import DEPLOYABLE, ENGINES\nfor name in DEPLOYABLE: ENGINES[name].warm_up()"
    folders = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "CI": ""}
    run(code, **folders, ORT_DISABLE_TELEMETRY="1")
    assert list(tmp_path.iterdir()) == []
    assert run("import os, fptq; print(os.environ['ORT_DISABLE_TELEMETRY'])") == "1"
