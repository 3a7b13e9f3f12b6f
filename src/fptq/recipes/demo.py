"""`fptq demo brain`: a real network, a real scan, one command."""

from __future__ import annotations

from pathlib import Path

from fptq.config import Recipe
from fptq.demo.brain import brain_demo
from fptq.recipes.quantize import quantize
from fptq.recipes.result import Result
from fptq.types import Progress, silent


def demo_brain(output: Path, *, recipe: Recipe | None = None, progress: Progress = silent) -> Result:
    """Brain extraction: calibrated on augmented copies of one head, evaluated on another.

    Args:
        output: The folder to write.
        recipe: Options that differ from the defaults.
        progress: Told how the work advances.
    """
    case = brain_demo()
    result = quantize(
        case.module,
        calibration=case.calibration,
        task=case.task,
        recipe=recipe,
        progress=progress,
        command=f"fptq demo brain -o {output}",
    )
    notes = (*result.report.warnings, *case.provenance)
    report = result.report.model_copy(update={"warnings": notes})
    final = Result(report=report, prepared=result.prepared, problem=result.problem)
    final.save(output)
    return final
