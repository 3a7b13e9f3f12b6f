from __future__ import annotations

import os

import pytest

from fptq.engines.cpu import CpuFeatures, detect, known, made_elsewhere, parse_cpuinfo, parse_sysctl

ZEN4 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9354
flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni

processor\t: 1
flags\t\t: fpu
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd asimddp sve i8mm bf16
CPU implementer\t: 0x41
"""
APPLE = """machdep.cpu.brand_string: Apple M1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 0
"""


def cpu(*features: str) -> CpuFeatures:
    return CpuFeatures(name="x", architecture="x86_64", threads=1, features=frozenset(features))


def test_linux_lists_the_features_of_the_first_processor() -> None:
    fields = parse_cpuinfo(ZEN4)
    assert fields["model name"] == "AMD EPYC 9354"
    assert known(fields["flags"].split()) == {"avx2", "avx512", "avx512_vnni", "avx512_bf16"}
    assert known(parse_cpuinfo(GRAVITON)["Features"].split()) == {"dotprod", "i8mm", "bf16"}


def test_macos_says_yes_with_1() -> None:
    values = parse_sysctl(APPLE)
    assert known(name for name, value in values.items() if value == "1") == {"dotprod"}


def test_numpy_spells_them_in_its_own_way() -> None:
    assert known(["AVX2", "AVX512VNNI", "AVX512BF16"]) == {"avx2", "avx512_vnni", "avx512_bf16"}


@pytest.mark.parametrize(
    ("features", "products", "saturates", "bf16"),
    [
        (("avx2",), False, True, False),
        (("avx2", "avx512"), False, True, False),
        (("avx2", "avx_vnni"), True, False, False),
        (("avx2", "avx512", "avx512_vnni", "avx512_bf16"), True, False, True),
        (("dotprod",), True, False, False),
        (("dotprod", "i8mm", "bf16"), True, False, True),
        ((), False, False, False),
    ],
)
def test_what_the_features_mean_for_integers(
    features: tuple[str, ...], products: bool, saturates: bool, bf16: bool
) -> None:
    found = cpu(*features)
    assert (found.int8_products, found.saturates, found.bf16) == (products, saturates, bf16)


def test_this_machine_has_a_name_and_a_thread() -> None:
    found = detect()
    assert found.name
    assert found.architecture
    assert 1 <= found.threads <= (os.cpu_count() or 1)


def test_files_made_on_another_processor_say_so() -> None:
    here = detect()
    features = " ".join(sorted(here.features))
    assert made_elsewhere({}) is None
    assert made_elsewhere({"fptq.cpu_features": features, "fptq.cpu": here.name}) is None
    warning = made_elsewhere({"fptq.cpu_features": f"{features} sve9", "fptq.cpu": "Other CPU"})
    assert warning is not None
    assert "Other CPU" in warning
    assert "sve9" in warning
