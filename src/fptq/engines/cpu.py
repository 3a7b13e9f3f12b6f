"""What a processor can do with 8-bit integers: it decides which kernels an engine runs."""

from __future__ import annotations

import functools
import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Names as Linux, macOS and numpy spell them.
_SPELLINGS = {
    "avx2": ("avx2", "AVX2"),
    "avx_vnni": ("avx_vnni",),
    "avx512": ("avx512f", "AVX512F"),
    "avx512_vnni": ("avx512_vnni", "AVX512VNNI"),
    "avx512_bf16": ("avx512_bf16", "AVX512BF16"),
    "amx_int8": ("amx_int8",),
    "amx_bf16": ("amx_bf16",),
    "dotprod": ("asimddp", "ASIMDDP", "hw.optional.arm.FEAT_DotProd"),
    "i8mm": ("i8mm", "hw.optional.arm.FEAT_I8MM"),
    "bf16": ("bf16", "hw.optional.arm.FEAT_BF16"),
}

_INT8 = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"})
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True, kw_only=True)
class CpuFeatures:
    """A processor.

    Attributes:
        name: Its model name.
        architecture: "x86_64", "aarch64", ...
        threads: Logical processors that this process may use.
        features: Of avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx_int8, amx_bf16 (x86) and dotprod, i8mm,
            bf16 (ARM), those it has; empty where the system does not tell.
    """

    name: str
    architecture: str
    threads: int
    features: frozenset[str]

    @property
    def int8_products(self) -> bool:
        """Whether it multiplies 8-bit integers and adds them up in 32 bits in one instruction."""
        return bool(self.features & _INT8)

    @property
    def saturates(self) -> bool:
        """Whether sums of two u8 x s8 products saturate at 16 bits: weights are safe up to 7 bits then.

        `vpmaddubsw` of AVX2 and AVX-512BW is the only product of 8-bit integers on x86 without VNNI.
        """
        return "avx2" in self.features and not self.int8_products

    @property
    def bf16(self) -> bool:
        """Whether it multiplies bfloat16 numbers."""
        return bool(self.features & _BF16)


def made_elsewhere(metadata: Mapping[str, str]) -> str | None:
    """Why a file may be slow here: what its metadata say it was made for, where that is another kind of processor.

    Args:
        metadata: Of an ONNX file; those of files that fptq did not write say nothing.
    """
    if "fptq.cpu_features" not in metadata:
        return None
    here, there = detect(), frozenset(metadata["fptq.cpu_features"].split())
    if here.features == there:
        return None
    differs = ", ".join(sorted(here.features ^ there))
    return (
        f"made on {metadata.get('fptq.cpu', 'another processor')}, which differs from {here.name} in {differs}: "
        "the numbers are the same, the speed may not be. Quantize again on this processor"
    )


@functools.cache
def detect() -> CpuFeatures:
    """The processor of this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = parse_cpuinfo(cpuinfo.read_text(encoding="utf-8", errors="replace"))
        found = known(fields.get("flags", fields.get("Features", "")).split())
        return _features(fields.get("model name", ""), found)
    if sys.platform == "darwin":
        values = parse_sysctl(_output(["sysctl", "machdep.cpu", "hw.optional"]))
        # Intel Macs list their features in capitals, in two lines.
        listed = (values.get("machdep.cpu.features", "") + " " + values.get("machdep.cpu.leaf7_features", "")).lower()
        present = [name for name, value in values.items() if value == "1"]
        return _features(values.get("machdep.cpu.brand_string", ""), known([*listed.split(), *present]))
    return _features(platform.processor(), known(_numpy_features()))


def known(names: Iterable[str]) -> frozenset[str]:
    """The features that matter here, from names as a system spells them."""
    given = set(names)
    return frozenset(feature for feature, spellings in _SPELLINGS.items() if given.intersection(spellings))


def parse_cpuinfo(text: str) -> Mapping[str, str]:
    """The fields of the first processor in `/proc/cpuinfo`."""
    first = text.strip().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def parse_sysctl(text: str) -> Mapping[str, str]:
    """The `name: value` lines of macOS's sysctl."""
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _features(name: str, features: frozenset[str]) -> CpuFeatures:
    return CpuFeatures(
        name=name or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        features=features,
    )


def _numpy_features() -> list[str]:
    """What numpy found out for its own kernels; it tells on every system, Windows included."""
    try:
        kernels = importlib.import_module("numpy._core._multiarray_umath")
    except ImportError:  # numpy 1 has it elsewhere, and promises nothing
        return []
    features: Mapping[str, bool] = getattr(kernels, "__cpu_features__", {})
    return [name for name, present in features.items() if present]


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def safe_weight_bits(bits: int) -> int:
    """The width of weights on this processor: 7 bits instead of 8 where products of 8-bit integers saturate."""
    return 7 if bits == 8 and detect().saturates else bits
