"""One scan of 512 x 512 x 600 voxels through `fptq predict`: peak memory, and a run that is killed half-way.

python benchmarks/volume.py                      everything, in minutes
python benchmarks/volume.py --overlap 0.25       fewer windows

The volume is synthetic, the network a MONAI BasicUNet with random weights that is narrow so that the run takes minutes:
neither changes what is kept beside the network. The bar is 1.5 times the scan's own bytes (int16) plus one float16
volume of all class probabilities.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np

from layout import HERE

SHAPE, PATCH, CLASSES = (512, 512, 600), 96, 14
FEATURES = (8, 8, 16, 32, 64, 8)
BAR = 1.5
_PREDICT = "from fptq.cli import main; main()"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Peak memory of a process [MB] and how long it ran [s]: all resident pages, those of its own, those of files."""

    resident_mb: float
    anonymous_mb: float
    seconds: float


def main() -> None:
    arguments = _arguments()
    work = arguments.results / "volume"
    scans, network = _scan(work), _network(work)
    whole, killed = work / "whole", work / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-c", _PREDICT, "predict", str(network), str(scans)]
    command += ["--overlap", str(arguments.overlap), "--threads", str(arguments.threads)]
    full = _measured([*command, "-o", str(whole)])
    asked = int(np.prod(SHAPE)) * 2 * (1 + CLASSES) / 1e6
    done, windows, resumed = _killed_and_resumed([*command, "-o", str(killed)], killed, full.seconds)
    same = all(np.array_equal(*planes) for planes in zip(_planes(whole), _planes(killed), strict=True))
    found = {
        "input and one float16 volume of all classes [MB]": round(asked),
        "whole run": asdict(full),
        "times that, resident": round(full.resident_mb / asked, 3),
        "times that, anonymous": round(full.anonymous_mb / asked, 3),
        "bar": BAR,
        "windows": windows,
        "windows done when killed": done,
        "second run": asdict(resumed),
        "same labels": same,
        "classes found": len({int(c) for plane in _planes(whole) for c in np.unique(plane)}),
    }
    text = json.dumps(found, indent=1)
    print(text)
    (work / "volume.json").write_text(text + "\n", encoding="utf-8")


def _scan(work: Path) -> Path:
    """A folder with the scan: smooth blobs and noise, int16, made once."""
    folder = work / "scans"
    path = folder / "scan.nii"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        x, y = (np.linspace(0, 9, n) for n in SHAPE[:2])
        volume = np.empty(SHAPE, np.int16)
        for z in range(SHAPE[2]):
            smooth = np.sin(x + z / 40)[:, None] * np.cos(y - z / 60)[None]
            volume[:, :, z] = 300 * smooth + generator.normal(0, 40, SHAPE[:2])
        nibabel.Nifti1Image(volume, np.diag([-0.8, -0.8, 1.0, 1.0])).to_filename(path)
    return folder


def _network(work: Path) -> Path:
    """The folder of the quantized network, made once, with a batch of any size."""
    folder = work / "network"
    if not (folder / "model.onnx").exists():
        import torch
        from monai.networks.nets import BasicUNet

        import fptq

        torch.manual_seed(0)
        module = BasicUNet(spatial_dims=3, in_channels=1, out_channels=CLASSES, features=FEATURES).eval()
        work.mkdir(parents=True, exist_ok=True)
        batch = torch.zeros(2, 1, PATCH, PATCH, PATCH)
        dynamic = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(module, (batch,), work / "float.onnx", dynamo=True, dynamic_shapes=dynamic, verbose=False)
        generator = np.random.default_rng(1)
        samples = [generator.normal(0, 200, (1, PATCH, PATCH, PATCH)).astype(np.float32) for _ in range(2)]
        recipe = {"task": "segmentation", "engine": "openvino", "gate": "off", "recipe": "fast", "observer": "minmax"}
        preprocess = {"window": (-400, 400)}
        made = fptq.quantize(work / "float.onnx", calibration=samples, preprocess=preprocess, threads=2, **recipe)
        made.save(folder)
    return folder


def _measured(command: list[str]) -> Peak:
    """Run a command to its end and watch its memory."""
    begin = time.monotonic()
    process = subprocess.Popen(command)
    resident = anonymous = 0.0
    while process.poll() is None:
        status = _status(process.pid)
        resident = max(resident, status.get("VmHWM", 0.0))
        anonymous = max(anonymous, status.get("RssAnon", 0.0))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Peak(resident_mb=round(resident), anonymous_mb=round(anonymous), seconds=round(time.monotonic() - begin, 1))


def _killed_and_resumed(command: list[str], folder: Path, seconds: float) -> tuple[int, int, Peak]:
    """Kill a run when half of its windows are done, then run it to its end."""
    total = _windows(command)
    counters = folder / ".scan.nii.part" / "counters"
    process = subprocess.Popen(command)
    while process.poll() is None and _done(counters) < total // 2:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _done(counters), total, _measured(command)


def _windows(command: list[str]) -> int:
    from fptq.tasks.windows import WindowGrid

    overlap = float(command[command.index("--overlap") + 1])
    return len(WindowGrid(shape=SHAPE, size=(PATCH,) * 3, overlap=overlap))


def _done(counters: Path) -> int:
    try:
        return int(struct.unpack("<3q", counters.read_bytes())[1])
    except (OSError, struct.error):
        return 0


def _planes(folder: Path):
    labels = nibabel.load(folder / "scan.nii").dataobj
    return (np.asarray(labels[:, :, z]) for z in range(SHAPE[2]))


def _status(pid: int) -> dict[str, float]:
    """Memory of a process by the kernel's names [MB]."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith("kB"))
    return {name.rstrip(":"): int(value) * 1.024e-3 for name, value, _ in fields}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="work folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
