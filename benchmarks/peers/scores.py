"""Metrics that both sides use, so that what is compared is the search alone; needs numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def probability(logits: Array, target: Array) -> float:
    """Probability of the true class.

    Args:
        logits: f32[1, classes].
        target: The class, i64[].
    """
    shifted = logits[0].astype(np.float64) - logits.max()
    return float(np.exp(shifted[int(target)]) / np.exp(shifted).sum())


def right(logits: Array, target: Array) -> float:
    """Whether the true class is named: 1 or 0."""
    return float(logits[0].argmax() == int(target))


def dice(logits: Array, target: Array) -> float:
    """Overlap of the mask where a logit is positive with another mask.

    Args:
        logits: f32[1, 1, *S].
        target: Mask, bool[*S].
    """
    mask = logits[0, 0] > 0
    total = int(mask.sum()) + int(target.sum())
    return 2.0 * int((mask & target).sum()) / total if total else 1.0


SCORES = {"probability": probability, "right": right, "dice": dice}
