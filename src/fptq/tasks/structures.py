"""How close a predicted structure is to a known one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fptq.errors import DataError
from fptq.feeds.optional import optional
from fptq.feeds.structures import Chain, places_in
from fptq.types import Array

INCLUSION = 15.0
"""Radius within which the lDDT looks at distances [A]."""
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
"""By how much they may be off [A]."""
_LEAST = 3
"""Points that a rotation is determined by."""


@dataclass(frozen=True, kw_only=True)
class StructureScores:
    """A predicted structure against a known one.

    Attributes:
        tm_score: In (0, 1]; above 0.5 the fold is the same.
        rmsd: Of the alpha carbons after superposition [A].
        lddt: Of the alpha carbons, in [0, 1].
        residues: How many were compared: those that the known structure has.
    """

    tm_score: float
    rmsd: float
    lddt: float
    residues: int


def compare_structures(predicted: Chain, reference: Chain) -> StructureScores:
    """Scores of a predicted structure over the residues that the known one has.

    Args:
        predicted: With every residue of the sequence.
        reference: Of the same sequence; residues may be missing.

    Raises:
        DataError: The reference is of another sequence, or has fewer than three residues.
        MissingExtra: tmtools is not installed.
    """
    where = places_in(reference, predicted.residues)
    found = predicted.alpha[where]
    return StructureScores(
        tm_score=tm_score(found, reference.alpha),
        rmsd=rmsd(found, reference.alpha),
        lddt=lddt(found, reference.alpha),
        residues=len(reference),
    )


def tm_score(predicted: Array, reference: Array) -> float:
    """The TM-score of points whose correspondence is known (Zhang and Skolnick 2004, Proteins 57:702).

    `max over superpositions of mean 1 / (1 + (d_i / d_0)^2)`, `d_0 = 1.24 (L - 15)^(1/3) - 1.8` A, with L the number of
    points; the maximum is that of TM-align's search (tmtools).

    Args:
        predicted: `f64[L, 3]`, alpha carbons [A].
        reference: `f64[L, 3]`.

    Raises:
        DataError: The shapes differ, there are fewer than three points, or one is not finite.
        MissingExtra: tmtools is not installed.
    """
    first, second = _paired(predicted, reference)
    tools = optional("tmtools", extra="proteins", purpose="the TM-score")
    # Letters are only carried along: the alignment pairs residue by residue.
    letters = "A" * len(first)
    return float(tools.tm_align(first, second, letters, letters, alignment=[letters, letters]).tm_norm_chain2)


def rmsd(predicted: Array, reference: Array) -> float:
    """The root mean square distance after the best superposition (Kabsch 1976, Acta Cryst. A32:922) [A].

    Args:
        predicted: `f64[L, 3]`, alpha carbons [A].
        reference: `f64[L, 3]`.

    Raises:
        DataError: As for `tm_score`.
    """
    first, second = (points - points.mean(0) for points in _paired(predicted, reference))
    # Reflections are no superposition: the smallest singular value counts negative where one would be best.
    values = np.linalg.svd(first.T @ second, compute_uv=False)
    values[2] *= np.sign(np.linalg.det(first.T @ second)) or 1.0
    squared = (first**2).sum() + (second**2).sum() - 2 * values.sum()
    return float(np.sqrt(max(squared, 0.0) / len(first)))


def lddt(predicted: Array, reference: Array) -> float:
    """The local distance difference test of alpha carbons (Mariani et al. 2013, Bioinformatics 29:2722), in [0, 1].

    The share of the reference's distances below 15 A that the prediction keeps, mean over what they may be off by: 0.5,
    1, 2 and 4 A. It needs no superposition, so domains may move against each other.

    Args:
        predicted: `f64[L, 3]`, alpha carbons [A].
        reference: `f64[L, 3]`.

    Returns:
        The score; NaN where no two residues of the reference are so close.

    Raises:
        DataError: As for `tm_score`.
    """
    first, second = (distances(points) for points in _paired(predicted, reference))
    near = np.triu(second < INCLUSION, 1)
    if not near.any():
        return float("nan")
    off = np.abs(first - second)[near]
    return float(np.mean([(off < threshold).mean() for threshold in THRESHOLDS]))


def distances(points: Array) -> Array:
    """Of every point `f64[L, 3]` to every other: `f64[L, L]`."""
    return np.asarray(np.linalg.norm(points[:, None] - points[None], axis=-1))


def _paired(predicted: Array, reference: Array) -> tuple[Array, Array]:
    first, second = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    fits = first.shape == second.shape and first.ndim == 2 and first.shape[1] == 3 and len(first) >= _LEAST
    if not fits or not (np.isfinite(first).all() and np.isfinite(second).all()):
        what = "coordinates that are not finite" if fits else f"{list(first.shape)} and {list(second.shape)}"
        raise DataError(
            f"structures with {what}" if fits else f"structures of {what}",
            rule="structures are compared point by point, [L, 3] with L of three or more, all finite",
            remedy="Compare the residues that both have",
        )
    return first, second
