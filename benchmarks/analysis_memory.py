"""Peak memory of one sensitivity pass, or of one plain backward pass, in a process of its own.

python benchmarks/analysis_memory.py deepbrain together        prints megabytes beyond what was resident before
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from analysis_subjects import Opened, opened
from fptq.analyze import fisher_sensitivity, split
from fptq.execute.objective import natural, projection
from fptq.graph.placement import Placement
from peers.common import forget_peak, memory_mb

PASSES = ("backward", "together", "apart")


def peak_mb(name: str, what: str) -> float:
    """The same from another process."""
    command = [sys.executable, str(Path(__file__)), name, what]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def plain_backward(found: Opened) -> None:
    """Forward and backward of one sample, with the projection and the gradients that the Fisher method asks for."""
    sites = {site.output for unit in found.units for site in unit.sites}

    def hook(placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        leaf = placement.consumer is None and placement.value in sites and not tensor.requires_grad
        return tensor.detach().requires_grad_() if leaf else tensor

    outputs = found.executor.run(found.samples[0], hook=hook)
    projection(natural(found.model), outputs, torch.Generator().manual_seed(0)).backward()


def sensitivity_pass(found: Opened, *, apart: bool = False) -> None:
    """The Fisher sensitivities of one sample."""
    units = split(found.units) if apart else found.units
    fisher_sensitivity(found.executor, units, found.encodings, found.samples[:1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("what", choices=PASSES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = opened(arguments.name)
    with torch.no_grad():
        found.executor.run(found.samples[0])  # kernels are chosen and weights packed at the first run
    forget_peak()
    before = memory_mb("VmRSS")
    match arguments.what:
        case "backward":
            plain_backward(found)
        case what:
            sensitivity_pass(found, apart=what == "apart")
    print(memory_mb("VmHWM") - before)


if __name__ == "__main__":
    main()
