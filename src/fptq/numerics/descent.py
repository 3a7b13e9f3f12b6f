"""Minimisation on ever finer grids of shares of a range, for many rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fptq.types import Array

RATIO = 0.75
"""A share is this to some power: steps are relative, so that a share of 1/1000 is found as well as one of 1/2."""


def descend(error: Callable[[Array], Array], rounds: Sequence[Array], floor: Array) -> tuple[Array, Array]:
    """The powers of least error, and the error: each round steps around the best of the round before it.

    Args:
        error: From powers f64[2, G], of the lower and the upper bound of each row, to the error of each row, [G].
        rounds: f64[K, 2] of each round: steps from the best so far, at first from 0.
        floor: Smallest powers, broadcast to [2, G]: at 0 a bound is the full one.

    Returns:
        f64[2, G] and f64[G].
    """
    powers = np.zeros_like(floor)
    least = np.full(floor.shape[1], np.inf)
    for steps in rounds:
        centre = powers
        for step in steps:
            candidate = np.maximum(centre + step[:, None], floor)
            found = error(candidate)
            better = found < least
            least = np.where(better, found, least)
            powers = np.where(better, candidate, powers)
    return powers, least


def shared(*steps: Array) -> tuple[Array, ...]:
    """Rounds in which both bounds step alike."""
    return tuple(np.stack([step, step], axis=1) for step in steps)


def alternating(steps: Array) -> tuple[Array, Array]:
    """A round in which the lower bound steps alone, then one for the upper bound."""
    still = np.zeros_like(steps)
    return np.stack([steps, still], axis=1), np.stack([still, steps], axis=1)


def paired(*steps: Array) -> tuple[Array, ...]:
    """Rounds over all pairs of steps of the lower and the upper bound."""
    return tuple(np.stack(np.meshgrid(step, step, indexing="ij"), axis=-1).reshape(-1, 2) for step in steps)
