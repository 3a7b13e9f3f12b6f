"""How much a network lost by being quantized: by score with its doubt, and the case that lost most, as slices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fptq.errors import MissingExtra
from fptq.recipes.problem import Problem
from fptq.report import decisions, records
from fptq.report.pictures import Slicing, slices
from fptq.report.text import score as text_of
from fptq.tasks import Score, Scores, SegmentationTask, paired_drop, signed_rank
from fptq.types import Runner


def drops(before: Scores | None, after: Scores | None, *, seed: int) -> tuple[records.Drop, ...]:
    """The drop of every score from one network to another."""
    if before is None or after is None:
        return ()
    return tuple(_drop(entry, after[entry.name], seed) for entry in before)


def _drop(before: Score, after: Score, seed: int) -> records.Drop:
    drop = paired_drop(before, after, seed=seed)
    return records.Drop(
        score=before.name,
        value=drop.value,
        low=drop.low,
        high=drop.high,
        confidence=drop.confidence,
        method="paired bootstrap, 2000 resamples" if drop.cases > 1 else "one case: no interval",
        p_value=_p_value(before, after),
        cases=max(drop.cases, 1),
    )


def _p_value(before: Score, after: Score) -> float | None:
    try:
        return signed_rank(before, after)
    except MissingExtra:  # classification and proteins do without scipy
        return None


def worst_case(before: Scores, after: Scores) -> tuple[int, str]:
    """The index of the case that lost most, and why it is the one, as a sentence.

    Without labels, or where no case lost anything, it is the one that agrees least with the float network.

    Args:
        before: Scores of the float network.
        after: Scores of the quantized network, with its agreement.
    """
    if (primary := before.primary) is not None:
        old, new = np.asarray(primary.cases), np.asarray(after[primary.name].cases)
        loss = np.nan_to_num(old - new if primary.higher_is_better else new - old)
        worst = int(loss.argmax())
        if loss[worst] > 0:
            values = f"{text_of(old[worst], primary.unit)} → {text_of(new[worst], primary.unit)}"
            return worst, f"of {len(loss)} cases the one that lost most, {primary.name} {values}"
    agreement = next(entry for entry in after if entry.name.startswith("agreement"))
    values = np.nan_to_num(np.asarray(agreement.cases), nan=1.0)
    worst = int(values.argmin())
    said = f"{agreement.name} {text_of(agreement.cases[worst])}"
    return worst, f"of {len(values)} cases the one that agrees least with float, {said}"


def pictures(
    problem: Problem, runners: Mapping[str, Runner], scores: Mapping[str, Scores]
) -> tuple[decisions.Picture, ...]:
    """Slices of the worst case of a segmentation.

    Args:
        problem: What was quantized.
        runners: The float network, then the quantized one, by name.
        scores: Their scores by the same names; under "agreement" those against the float network's own masks.
    """
    task = problem.task
    if not isinstance(task, SegmentationTask):
        return ()
    before, after = (scores[name] for name in runners)
    both = Scores(entries=(*after, *scores["agreement"]), cases=after.cases)
    index, why = worst_case(before, both)
    case = task.cases[index]
    masks = {name: task.segment(runner, case) for name, runner in runners.items()}
    if case.label is not None:
        masks["label"] = case.label
    volume = case.volume if case.volume.ndim == task.network.rank else case.volume[0]
    why = why if len(task.cases) > 1 else ""
    return slices(volume, masks, Slicing(case=case.name, spacing=case.spacing or (1.0,) * volume.ndim, why=why))
