"""Segmentation networks at 96^3: float, bf16 and fptq's int8 in turns on both engines, without the other tools.

python benchmarks/medical_speed.py                       what is already made is not made again
python benchmarks/medical_speed.py --networks transunet  one network
python benchmarks/medical_speed.py --report              the table of the last runs again
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artifacts import FPTQ, TOOLS, Artifact, make
from bars import SPEEDUPS
from contest import errors_by_setting, latencies_by_setting, machine
from layout import HERE, Folder
from measure import ONNXRUNTIME, OPENVINO, OPENVINO_F32, read_samples
from tables import table

NETWORKS = ("basicunet", "dynunet", "swinunetr", "transunet")
HEAD = (
    "",
    "OpenVINO fp32 [ms]",
    "bf16",
    "int8",
    "asked",
    "int8, float remainder in f32",
    "ONNX Runtime fp32 [ms]",
    "int8",
    "size fp32 / int8 [MB]",
    "SQNR [dB]",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--make", action="store_true", help="only quantize")
    parser.add_argument("--rounds", type=int, default=7, help="timed turns")
    parser.add_argument("--report", action="store_true", help="only print what was measured before")
    given = parser.parse_args()
    if not given.report:
        subprocess.run([sys.executable, str(HERE / "networks.py"), "--networks", *given.networks], check=True)
        for name in given.networks:
            files = _files(Folder(name=name))
            if not given.make:
                _measure(Folder(name=name), files, rounds=given.rounds)
    kept = {name: _kept(Folder(name=name)) for name in NETWORKS}
    found = {name: json.loads(path.read_text()) for name, path in kept.items() if path.exists()}
    print(table(HEAD, [_row(name, entry) for name, entry in found.items()]))
    print("\n".join(sorted({entry["machine"] for entry in found.values()})))


def _kept(folder: Folder) -> Path:
    return folder.root / "speed.json"


def _files(folder: Folder) -> dict[str, Artifact]:
    """The float network and what fptq made of it, by label."""
    ours = TOOLS[0]
    made = [make(ours, preset, folder, python=Path(sys.executable)) for preset in ours.presets(folder.name)]
    whole = Artifact(tool="float", preset="", path=folder.float_model)
    return {file.label: file for file in (whole, *made)}


def _measure(folder: Folder, files: Mapping[str, Artifact], *, rounds: int) -> None:
    samples = read_samples(folder.evaluation)
    found = {
        "sizes": {label: file.size_mb for label, file in files.items()},
        "latency": latencies_by_setting(files, samples[0], rounds=rounds, seconds=90),
        "sqnr": errors_by_setting(files, samples[:1]),
        "machine": machine(list(files.values())),
    }
    _kept(folder).write_text(json.dumps(found, indent=1, default=asdict) + "\n", encoding="utf-8")


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    times, whole = found["latency"], found["latency"]["float"]
    ours = {setting.name: times[f"{FPTQ}, {setting.engine}"] for setting in (OPENVINO, OPENVINO_F32, ONNXRUNTIME)}

    def cell(entry: Mapping[str, Any], setting: str, base: str) -> str:
        own = entry[setting]["median_ms"]
        return f"{own:.0f} ({whole[base]['median_ms'] / own:.2f}x)"

    exact, default, other = OPENVINO_F32.name, OPENVINO.name, ONNXRUNTIME.name
    sizes, sqnr = found["sizes"], found["sqnr"]
    small = sizes[f"{FPTQ}, openvino"]
    return [
        name,
        f"{whole[exact]['median_ms']:.0f}",
        cell(whole, default, exact),
        cell(ours[default], default, exact),
        f"{SPEEDUPS[name]}x",
        cell(ours[exact], exact, exact),
        f"{whole[other]['median_ms']:.0f}",
        cell(ours[other], other, other),
        f"{sizes['float']:.1f} / {small:.1f} ({sizes['float'] / small:.2f}x)",
        f"{sqnr[f'{FPTQ}, openvino'][exact]:.1f} / {sqnr[f'{FPTQ}, onnxruntime'][other]:.1f}",
    ]


if __name__ == "__main__":
    main()
