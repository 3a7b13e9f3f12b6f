from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from fptq.doctor import Check, State, diagnose, memory_gb, nnunet_packages, packages, processor
from fptq.engines import INSTALLABLE
from fptq.engines.cpu import CpuFeatures
from fptq.engines.openvino import OpenVINO
from fptq.graph.nnunet import INSTALL


def test_the_engines_are_started_and_every_topic_is_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none" / "yet"))
    found = diagnose()
    assert {check.topic for check in found} >= {"engine", "package", "processor", "gpu", "disk"}
    engines = {check.name: check for check in found if check.topic == "engine"}
    assert set(engines) == set(INSTALLABLE)
    assert engines["onnxruntime"].found == importlib.metadata.version("onnxruntime")
    assert str(tmp_path) in next(check.found for check in found if check.name == "cache")
    assert not (tmp_path / "none").exists(), "a diagnosis changes nothing"


def test_a_missing_package_names_its_own_extra() -> None:
    requirements = ["numpy>=1.26", "no-such>=1.0; extra == 'bundle'", "no-such>=1.0; extra == 'no-such'"]
    found = {check.name: check for check in packages([*requirements, "also-none>=2; extra == 'dev'"])}
    assert set(found) == {"numpy", "no-such"}
    assert found["numpy"].state is State.OK
    assert found["no-such"].state is State.MISSING


def test_the_remedy_of_a_missing_extra_can_be_pasted() -> None:
    (check,) = packages(["no_such_package>=1.0; extra == 'medical'"])
    assert check.remedy == "pip install 'fptq[medical]'"


def test_nnunet_is_installed_by_two_commands() -> None:
    check = nnunet_packages(["no-such-nnunet", "numpy", "no-such-part"])
    assert (check.name, check.state, check.found) == ("no-such-nnunet", State.MISSING, "not installed")
    assert check.remedy == f"pip install 'fptq[nnunet]' && {INSTALL}"
    check = nnunet_packages(["numpy", "no-such-part"])
    version = importlib.metadata.version("numpy")
    assert (check.state, check.found) == (State.MISSING, f"{version}; without no-such-part")
    assert nnunet_packages(["numpy"]) == Check(topic="package", name="numpy", found=version)
    assert "nnunetv2" in {check.name for check in diagnose()}


def test_the_command_for_nnunet_is_that_of_the_documentation() -> None:
    page = Path(__file__).parents[1] / "docs" / "how-to-nnunet.md"
    assert INSTALL in page.read_text(encoding="utf-8").splitlines()


def test_an_old_package_is_a_warning() -> None:
    (check,) = packages(["numpy>=999.1; extra == 'torch'"])
    assert check.state is State.WARNING
    assert "fptq needs 999.1 or newer" in check.found
    assert check.remedy == "pip install 'fptq[torch]' --upgrade"


@pytest.mark.parametrize(
    ("features", "state", "says"),
    [
        ({"avx2"}, State.WARNING, "saturate"),
        ({"avx2", "avx_vnni"}, State.OK, "one instruction"),
        ({"i8mm"}, State.OK, "one instruction"),
        (set(), State.WARNING, "no integer product"),
    ],
)
def test_what_the_processor_can_do_is_said(features: set[str], state: State, says: str) -> None:
    cpu = CpuFeatures(name="x", architecture="y", threads=4, features=frozenset(features))
    int8 = next(check for check in processor(cpu) if check.name == "int8")
    assert int8.state is state
    assert says in int8.found
    assert bool(int8.remedy) == (state is not State.OK)


def test_free_memory_is_part_of_the_whole() -> None:
    free, total = memory_gb()
    assert total is None or total > 0
    assert free is None or total is None or free <= total


def test_a_missing_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVINO, "version", lambda _: None)
    check = next(check for check in diagnose() if check.name == "openvino")
    assert (check.state, check.remedy) == (State.MISSING, "pip install 'fptq[openvino]'")


def test_a_broken_engine_is_a_warning_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: OpenVINO) -> None:
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(OpenVINO, "warm_up", broken)
    check = next(check for check in diagnose() if check.name == "openvino")
    assert check.state is State.WARNING
    assert "libtbb" in check.found
