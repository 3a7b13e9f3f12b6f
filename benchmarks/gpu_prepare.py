"""What `gpu.py` runs, made beforehand where MONAI is: float and Q/DQ files of each network, without their weights.

python benchmarks/gpu_prepare.py DIR [NETWORK ...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from fptq.calibrate import calibrate
from fptq.graph.load import LoadOptions, load
from fptq.graph.write import save
from fptq.plan import PROFILES, materialize, place
from gpu_files import pack, seeded, unpack
from gpu_networks import BUILDERS, built, volumes

VARIANTS = {"int8-products": "products", "int8-all": "all"}
"""Q/DQ files by name: variants of the profile."""


def prepare(name: str, folder: Path, samples: int) -> None:
    """Write `<name>/float` and a file for each variant."""
    example = torch.from_numpy(next(iter(volumes(1, seed=1)))["x"])
    loaded = load(built(name), example=(example,), options=LoadOptions(dynamic="none"))
    model, seeds = seeded(loaded)
    profile = PROFILES["tensorrt"]
    variants = {variant.name: variant for variant in profile.variants}
    input_name = model.inputs[0].name
    feeds = [{input_name: sample["x"]} for sample in volumes(samples, seed=2)]
    with tempfile.TemporaryDirectory(prefix="fptq-gpu-") as work:
        made = {"float": model}
        for file, variant in VARIANTS.items():
            made[file] = materialize(model, calibrate(model, place(model, profile, variants[variant]), feeds))
        for file, network in made.items():
            path = Path(work) / f"{file}.onnx"
            save(network, path)
            pack(path, folder / name / file, seeds)
            unpack(folder / name / file, Path(work) / "again.onnx")
            size = (folder / name / f"{file}.onnx.xz").stat().st_size / 1e6
            print(f"{name}/{file}: {path.stat().st_size / 1e6:.1f} MB, packed {size:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", default=list(BUILDERS))
    parser.add_argument("--samples", type=int, default=4)
    arguments = parser.parse_args()
    for name in arguments.networks:
        prepare(name, arguments.folder, arguments.samples)


if __name__ == "__main__":
    main()
