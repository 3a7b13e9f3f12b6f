"""The medical table: U-Net, TransUNet, nnU-Net and SwinUNETR in int8 and in few bits, scored on volumes with labels.

python benchmarks/medical.py                             everything; what is kept is not made again
python benchmarks/medical.py --parts int8 --networks unet   a part: train, int8, scores, few-bits, latency
python benchmarks/medical.py --report                    the tables of what is kept

Needs `pip install 'fptq[monai,medical,openvino]'` and dynamic-network-architectures (docs/how-to-nnunet.md).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fptq.engines import ENGINES
from fptq.engines.cpu import detect
from fptq.graph.write import file_bytes
from medical_measure import FewBits, Subject, engines, few_bits, in_few_bits, quantized, scored, timed
from medical_subjects import NETWORKS
from medical_table import report
from medical_training import ROOT, about, trained

_KEPT = ROOT / "measured.json"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if not arguments.report:
        subjects = [Subject(name, arguments.threads) for name in arguments.networks]
        for subject in subjects:
            for part in arguments.parts:
                print(f"{subject.name}: {part}", flush=True)
                _PARTS[part](subject, arguments)
        if set(arguments.parts) >= {"int8", "scores", "latency"}:
            _keep(subjects, arguments)
    if _KEPT.exists():
        print(report(json.loads(_KEPT.read_text(encoding="utf-8"))))


def _train(subject: Subject, arguments: argparse.Namespace) -> None:
    trained(subject.name)


def _int8(subject: Subject, arguments: argparse.Namespace) -> None:
    for engine in engines():
        quantized(subject, engine)


def _scores(subject: Subject, arguments: argparse.Namespace) -> None:
    for engine in engines():
        scored(subject, engine)


def _few_bits(subject: Subject, arguments: argparse.Namespace) -> None:
    for given in sorted(_asked(subject, arguments), key=lambda one: one.learned):  # what takes longest comes last
        in_few_bits(subject, given)


def _latency(subject: Subject, arguments: argparse.Namespace) -> None:
    timed(subject, turns=arguments.turns, seconds=arguments.seconds)


_PARTS: Mapping[str, Callable[[Subject, argparse.Namespace], None]] = {
    "train": _train,
    "int8": _int8,
    "scores": _scores,
    "few-bits": _few_bits,
    "latency": _latency,
}


def _asked(subject: Subject, arguments: argparse.Namespace) -> list[FewBits]:
    """The formats and methods of a network: learned ones for those that were named only."""
    learned = subject.name in arguments.learned
    return [given for given in few_bits(arguments.iterations) if learned or not given.learned]


def _keep(subjects: list[Subject], arguments: argparse.Namespace) -> None:
    """All numbers in one file, beside those of other networks."""
    before = json.loads(_KEPT.read_text(encoding="utf-8"))["networks"] if _KEPT.exists() else {}
    networks = before | {subject.name: _measured(subject, arguments) for subject in subjects}
    found = {
        "machine": _machine(arguments.threads),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "iterations": arguments.iterations,
        "networks": {name: networks[name] for name in NETWORKS if name in networks},
    }
    _KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _measured(subject: Subject, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "training": about(subject.name),
        "bytes": file_bytes(subject.float_model),
        "engines": {name: quantized(subject, name) | {"scores": scored(subject, name)} for name in engines()},
        "few bits": [
            {"bits": given.bits, "method": given.says, **in_few_bits(subject, given)}
            for given in _asked(subject, arguments)
            if "few-bits" in arguments.parts
        ],
        "latency": timed(subject, turns=arguments.turns, seconds=arguments.seconds),
    }


def _machine(threads: int) -> str:
    cpu, versions = detect(), [f"{name} {ENGINES[name].version()}" for name in engines()]
    return (
        f"{cpu.name} ({', '.join(sorted(cpu.features))}), {os.cpu_count()} cores, {threads} threads; "
        f"{', '.join(versions)}, torch {torch.__version__}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--parts", nargs="+", choices=list(_PARTS), default=list(_PARTS))
    parser.add_argument("--learned", nargs="*", default=["unet", "nnunet"], help="networks for QDrop and AdaRound")
    parser.add_argument("--iterations", type=int, default=50, help="of these for each block")
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=40.0, help="of timing for each network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="only print what is kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
