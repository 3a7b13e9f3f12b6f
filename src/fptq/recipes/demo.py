"""`fptq demo brain`: a real network, a real scan, one command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fptq.config import Recipe
from fptq.demo import heads
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
    recipe = recipe or Recipe()
    case = brain_demo(samples=recipe.samples or 16, seed=recipe.seed)
    result = quantize(
        case.module,
        calibration=case.calibration,
        task=case.task,
        recipe=recipe,
        progress=progress,
        command=f"fptq demo brain -o {output}",
    )
    model = result.report.model
    told = model.model_copy(update={"name": "deepbet brain extraction", "notes": (*case.provenance, *model.notes)})
    # The samples came prepared and the task as an object: what the recipe says from here on is for new heads.
    saved = result.problem.recipe.merged(task="segmentation", preprocess=f"{heads.__name__}:whole_head")
    final = replace(
        result,
        report=result.report.model_copy(update={"model": told}),
        problem=replace(result.problem, recipe=saved),
    )
    final.save(output)
    return final
