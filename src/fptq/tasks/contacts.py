"""Contacts between residues: from a structure, from attention, and how well the one tells the other."""

from __future__ import annotations

import math

import numpy as np

from fptq.errors import DataError
from fptq.tasks.structures import distances
from fptq.types import Array

NEAR = 8.0
"""Beta carbons closer than this are in contact [A]."""
SEPARATION, LONG_RANGE = 6, 24
"""Least distances along the sequence: nearer residues are in contact anyway."""


def apc(scores: Array) -> Array:
    """The average product correction `F_ij - F_i. F_.j / F..` over the last two axes (Dunn et al. 2008).

    It takes away what a residue has in common with all others (Bioinformatics 24:333).

    >>> apc(np.outer([1.0, 2.0], [1.0, 3.0])).tolist()
    [[0.0, 0.0], [0.0, 0.0]]

    Args:
        scores: `f64[..., L, L]`; a map that sums to 0 stays as it is.
    """
    total = scores.sum((-2, -1), keepdims=True)
    product = scores.sum(-1, keepdims=True) * scores.sum(-2, keepdims=True)
    return np.asarray(scores - np.divide(product, total, out=np.zeros_like(product), where=total != 0))


def attention_contacts(attention: Array, residues: Array, *, weights: Array | None = None) -> Array:
    """How much attention says that residues are in contact, `f64[L, L]`, symmetric: what counts is the order.

    The maps are cut to the residues (marks of start and end draw attention), made symmetric, and corrected by `apc`.
    The published score is a logistic regression on them, fitted on a few structures (Rao et al. 2021, bioRxiv
    2020.12.15.422761); its weights can be given. Without them it is the mean of the maps, which ranks contacts worse:
    precisions then compare networks with each other, not with published numbers.

    Args:
        attention: `f32[M, T, T]`, the maps of all layers and heads of one sequence, in the order of the weights;
            leading axes such as `[layers, heads, T, T]` are taken as one.
        residues: `i64[L]`, where among the tokens the residues are.
        weights: `f64[M]`, coefficients of the regression; its intercept changes no order.

    Raises:
        DataError: The shapes do not fit.
    """
    tokens = attention.shape[-1]
    maps = np.asarray(attention, np.float64).reshape(-1, *attention.shape[-2:])
    square = attention.ndim > 2 and maps.shape[1] == tokens and residues.max(initial=-1) < tokens
    if not square or (weights is not None and np.shape(weights) != (len(maps),)):
        given = "" if weights is None else f" and weights {list(np.shape(weights))}"
        raise DataError(
            f"attention of shape {list(attention.shape)}{given} for {len(residues)} residues",
            rule="it is [maps, T, T] over all tokens of one sequence, with one weight for each map",
        )
    inside = maps[:, residues[:, None], residues[None]]
    corrected = apc(inside + inside.swapaxes(1, 2))
    return np.asarray(corrected.mean(0) if weights is None else np.tensordot(weights, corrected, 1))


def contact_map(beta: Array) -> Array:
    """Which residues are in contact: beta carbons closer than 8 A.

    Args:
        beta: `f64[L, 3]` [A]; NaN where a residue is not resolved.

    Returns:
        `f64[L, L]`: 1 or 0; NaN where a residue is not resolved.
    """
    apart = distances(beta)
    return np.where(np.isnan(apart), np.nan, apart < NEAR)


def contact_precision(scores: Array, contacts: Array, *, divisor: int = 1, separation: int = SEPARATION) -> float:
    """P@L, P@L/2 or P@L/5: the share of the L / divisor highest scores that are contacts.

    Args:
        scores: `f64[L, L]`, symmetric, higher is likelier; of equal ones the first in the order of rows counts.
        contacts: `f64[L, L]` of `contact_map`; unknown pairs are left out.
        divisor: 1, 2 or 5.
        separation: Least distance along the sequence; 24 for contacts of long range.

    Returns:
        A share in [0, 1]; NaN where no pair is known.

    Raises:
        DataError: The shapes differ, or a score is not finite.
    """
    length = len(scores)
    if scores.shape != (length, length) or contacts.shape != scores.shape:
        raise DataError(
            f"scores {list(scores.shape)} and contacts {list(contacts.shape)}", rule="both are [L, L] of one sequence"
        )
    first, second = np.triu_indices(length, separation)
    known = ~np.isnan(contacts[first, second])
    ranked, truth = scores[first, second][known], contacts[first, second][known]
    if not np.isfinite(ranked).all():
        raise DataError("a score of a contact is not finite", rule="scores are ranked", remedy="Check the network")
    if not ranked.size:
        return math.nan
    top = np.argsort(-ranked, kind="stable")[: max(1, length // divisor)]
    return float(truth[top].mean())
