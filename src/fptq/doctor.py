"""What this machine has for fptq: engines, packages, processor, GPU, memory, disk; what is missing, how to get it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fptq.cache import Cache, default_folder
from fptq.engines import ENGINES, INSTALLABLE
from fptq.engines.cpu import CpuFeatures, detect
from fptq.engines.installed import installed_version
from fptq.errors import FptqError
from fptq.graph import nnunet

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?:>=(?P<least>[\d.]+))?(?:.*extra == ['\"](?P<extra>\w+)['\"])?")
_DEVELOPMENT = frozenset({"dev", "demo"})
_LOW_DISK_GB = 2.0
_LOW_MEMORY_GB = 2.0


class State(StrEnum):
    """How a check went."""

    OK = "ok"
    MISSING = "missing"
    WARNING = "warning"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding.

    Attributes:
        topic: What it belongs to: "engine", "package", "processor", "gpu", "memory" or "disk".
        name: What was looked at.
        state: Whether it is as it should be.
        found: What is there.
        remedy: What to do; empty where nothing need be done.
    """

    topic: str
    name: str
    found: str
    state: State = State.OK
    remedy: str = ""


def diagnose() -> tuple[Check, ...]:
    """Look at everything; starts each engine once, runs no network."""
    return (
        Check(topic="package", name="python", found=f"{platform.python_version()} on {platform.platform()}"),
        *_engines(),
        *packages(_requirements()),
        nnunet_packages(nnunet.PACKAGES),
        *processor(detect()),
        *_gpu(),
        *_memory(),
        *_disk(),
    )


def _engines() -> Iterator[Check]:
    for name in INSTALLABLE:
        engine = ENGINES[name]
        version = engine.version()
        if version is None:
            remedy = f"pip install 'fptq[{engine.extra}]'"
            yield Check(topic="engine", name=name, state=State.MISSING, found="not installed", remedy=remedy)
            continue
        try:
            engine.warm_up()
        except (FptqError, ImportError, OSError, RuntimeError) as error:
            found = f"{version}, but it does not start: {error}"
            remedy = getattr(error, "remedy", "") or f"pip install --force-reinstall {name}"
            yield Check(topic="engine", name=name, state=State.WARNING, found=found, remedy=remedy)
        else:
            yield Check(topic="engine", name=name, found=version)


def _requirements() -> Sequence[str]:
    try:
        return importlib.metadata.requires("fptq") or ()
    except importlib.metadata.PackageNotFoundError:  # run from its sources without being installed
        return ()


def packages(requirements: Sequence[str]) -> Iterator[Check]:
    """The packages that fptq's own metadata name, without those of the engines and of its developers.

    Args:
        requirements: As `importlib.metadata.requires` gives them, such as `torch>=2.9; extra == "torch"`.
    """
    matches = (match for requirement in requirements if (match := _REQUIREMENT.match(requirement)))
    seen = {*INSTALLABLE, "fptq"}
    # Several extras may bring a package; the one of its own name brings nothing else.
    for match in sorted(matches, key=lambda match: match["extra"] not in (None, match["name"])):
        if match["name"] not in seen and match["extra"] not in _DEVELOPMENT:
            seen.add(match["name"])
            yield _package(match["name"], match["least"] or "0", match["extra"])


def _package(name: str, least: str, extra: str | None) -> Check:
    install = f"pip install 'fptq[{extra}]'" if extra else "pip install --upgrade fptq"
    version = installed_version(name)
    if version is None:
        return Check(topic="package", name=name, state=State.MISSING, found="not installed", remedy=install)
    if _numbers(version) < _numbers(least):
        found = f"{version}, fptq needs {least} or newer"
        return Check(topic="package", name=name, state=State.WARNING, found=found, remedy=f"{install} --upgrade")
    return Check(topic="package", name=name, found=version + (_torch_build() if name == "torch" else ""))


def nnunet_packages(names: Sequence[str]) -> Check:
    """nnU-Net, which is installed in two steps.

    Args:
        names: Its package, and those that belong to it.
    """
    version = installed_version(names[0])
    missing = [name for name in names if installed_version(name) is None]
    if version is not None and not missing:
        return Check(topic="package", name=names[0], found=version)
    found = "not installed" if version is None else f"{version}; without {', '.join(missing)}"
    remedy = f"pip install 'fptq[{nnunet.EXTRA}]' && {nnunet.INSTALL}"
    return Check(topic="package", name=names[0], state=State.MISSING, found=found, remedy=remedy)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _torch_build() -> str:
    """CPU or CUDA, read from torch's version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.exists():
        return ""
    match = re.search(r"^cuda\b[^=]*= *(.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    cuda = ast.literal_eval(match[1]) if match else None
    return f", built for CUDA {cuda}" if cuda else ", CPU build"


def processor(cpu: CpuFeatures) -> Iterator[Check]:
    """What the processor can do with small numbers."""
    yield Check(topic="processor", name="model", found=f"{cpu.name} ({cpu.architecture}, {cpu.threads} threads)")
    features = ", ".join(sorted(cpu.features))
    if cpu.int8_products:
        yield Check(topic="processor", name="int8", found=f"integer products in one instruction ({features})")
    elif cpu.saturates:
        yield Check(
            topic="processor",
            name="int8",
            state=State.WARNING,
            found="AVX2 without VNNI: sums of 8-bit products saturate at 16 bits",
            remedy="Use 7-bit weights on ONNX Runtime; expect less speed than with VNNI",
        )
    else:
        found = "no integer product instruction found"
        remedy = "int8 may not be faster here: compare with fptq bench"
        yield Check(topic="processor", name="int8", state=State.WARNING, found=found, remedy=remedy)
    yield Check(topic="processor", name="bf16", found="yes: the float rival of int8" if cpu.bf16 else "no")


def _gpu() -> Iterator[Check]:
    fields = "--query-gpu=name,memory.total,driver_version"
    try:
        command = ["nvidia-smi", fields, "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        yield Check(topic="gpu", name="NVIDIA", found="none (not needed)")
        return
    for line in done.stdout.strip().splitlines():
        yield Check(
            topic="gpu", name="NVIDIA", found=f"{line} (needed for tensorrt only: the other engines run on the CPU)"
        )


def _memory() -> Iterator[Check]:
    free, total = memory_gb()
    if total is None:
        return
    shown = f"{total:.1f} GB" + (f", {free:.1f} GB free" if free is not None else "")
    if free is not None and free < _LOW_MEMORY_GB:
        remedy = "Volumes of 128^3 take 1 to 3 GB: close something, or use smaller patches"
        yield Check(topic="memory", name="RAM", state=State.WARNING, found=shown, remedy=remedy)
    else:
        yield Check(topic="memory", name="RAM", found=shown)


def memory_gb() -> tuple[float | None, float | None]:
    """Free and total memory [GB], within the limit of the container that this process runs in."""
    info = Path("/proc/meminfo")
    if not info.exists():
        names = getattr(os, "sysconf_names", {})
        known = "SC_PHYS_PAGES" in names
        return None, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9 if known else None
    rows = (line.partition(":") for line in info.read_text(encoding="ascii").splitlines())
    kilobytes = {key: int(value.split()[0]) for key, _, value in rows}
    free, total = kilobytes["MemAvailable"] * 1024 / 1e9, kilobytes["MemTotal"] * 1024 / 1e9
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii")) / 1e9
        used = int((group / "memory.current").read_text(encoding="ascii")) / 1e9
    except (OSError, ValueError):  # no such limit ("max"), or no control groups
        return free, total
    return min(free, limit - used), min(total, limit)


def _disk() -> Iterator[Check]:
    folder = default_folder()
    size = sum(usage.size_bytes for usage in Cache(folder).usage()) / 1e6
    assets = sum(path.stat().st_size for path in (folder / "assets").rglob("*") if path.is_file()) / 1e6
    yield Check(topic="disk", name="cache", found=f"{folder}: {size:.1f} MB results, {assets:.1f} MB demo assets")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    for name, path in (("cache", there), ("here", Path.cwd())):
        free = shutil.disk_usage(path).free / 1e9
        low = free < _LOW_DISK_GB
        yield Check(
            topic="disk",
            name=f"free ({name})",
            state=State.WARNING if low else State.OK,
            found=f"{free:.1f} GB",
            remedy=f"Results and demo assets may take {_LOW_DISK_GB:.0f} GB: free some space" if low else "",
        )
