import numpy as np
import pytest

from fptq.errors import DataError
from fptq.feeds.structures import Chain
from fptq.tasks.contacts import apc, attention_contacts, contact_map, contact_precision
from fptq.tasks.structures import compare_structures, lddt, rmsd, tm_score

GENERATOR = np.random.default_rng(0)
FOLD = np.cumsum(GENERATOR.normal(0, 2.2, (60, 3)), 0)


def moved(points):
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    return points @ (turn * np.sign(np.linalg.det(turn))).T + [5.0, -3.0, 11.0]


def chain(points, residues, numbers=None):
    numbers = np.arange(len(residues)) if numbers is None else numbers
    return Chain(name="x", residues=residues, numbers=np.asarray(numbers), alpha=points, beta=points)


def test_a_rotated_structure_is_the_same():
    assert rmsd(moved(FOLD), FOLD) == pytest.approx(0, abs=1e-6)
    assert lddt(moved(FOLD), FOLD) == 1.0


def test_a_mirror_image_is_not():
    assert rmsd(FOLD * [1, 1, -1], FOLD) > 1
    assert lddt(FOLD * [1, 1, -1], FOLD) == 1.0  # distances cannot tell


def test_rmsd_of_known_displacements():
    square = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert rmsd(square * 1.5, square) == pytest.approx(0.5)


def test_rmsd_is_the_least_over_superpositions():
    spatial = pytest.importorskip("scipy.spatial.transform")
    noisy = moved(FOLD) + GENERATOR.normal(0, 1, FOLD.shape)
    first, second = noisy - noisy.mean(0), FOLD - FOLD.mean(0)
    _, residual = spatial.Rotation.align_vectors(first, second)
    assert rmsd(noisy, FOLD) == pytest.approx(residual / np.sqrt(len(FOLD)))


def test_lddt_counts_what_thresholds_keep():
    line = np.arange(4)[:, None] * [4.0, 0, 0]
    # Three distances to the last residue of 4, 8 and 12 A are off by 1.5 A: kept within 2 and 4 A.
    stretched = line.copy()
    stretched[3, 0] += 1.5
    assert lddt(stretched, line) == pytest.approx((3 / 6 + 3 / 6 + 1 + 1) / 4)
    # Only distances of the reference below 15 A count.
    assert np.isnan(lddt(line * 10, line * 10))
    far, farther = (np.concatenate([line, [[x, 0, 0]]]) for x in (100.0, 150.0))
    assert lddt(farther, far) == 1.0


def test_tm_score_pairs_residue_by_residue():
    pytest.importorskip("tmtools", reason="needs the extra proteins")
    assert tm_score(moved(FOLD), FOLD) == pytest.approx(1.0)
    # A free alignment would find two thirds of the shifted chain.
    assert tm_score(moved(np.roll(FOLD, 20, 0)), FOLD) < 0.3
    # One residue far away: 59 of 60 still fit exactly.
    off = FOLD.copy()
    off[30] += 500.0
    assert tm_score(off, FOLD) == pytest.approx(59 / 60, abs=2e-3)


def test_a_prediction_is_scored_where_the_structure_is_known():
    pytest.importorskip("tmtools", reason="needs the extra proteins")
    residues = "ACDEFGHIKLMNPQRSTVWY" * 3
    kept = [i for i in range(60) if i not in (10, 11, 40)]
    known = chain(moved(FOLD)[kept], "".join(residues[i] for i in kept), kept)
    scores = compare_structures(chain(FOLD, residues), known)
    assert (scores.residues, scores.lddt) == (57, 1.0)
    assert scores.tm_score == pytest.approx(1.0)
    assert scores.rmsd == pytest.approx(0, abs=1e-6)


def test_structures_that_do_not_compare():
    with pytest.raises(DataError, match=r"\[60, 3\] and \[59, 3\]"):
        rmsd(FOLD, FOLD[:-1])
    with pytest.raises(DataError, match="not finite"):
        lddt(FOLD * np.nan, FOLD)
    with pytest.raises(DataError, match="three or more"):
        rmsd(FOLD[:2], FOLD[:2])


def test_contacts_are_beta_carbons_within_eight():
    beta = np.array([[0.0, 0, 0], [7.9, 0, 0], [8.0, 0, 0], [np.nan] * 3])
    found = contact_map(beta)
    assert found[0].tolist()[:3] == [1, 1, 0]
    assert np.isnan(found[3]).all()


def test_apc_takes_away_what_rows_and_columns_share():
    signal = np.zeros((8, 8))
    signal[1, 6] = signal[6, 1] = 1.0
    rows = np.linspace(1, 3, 8)
    corrected = apc(np.outer(rows, rows) + signal)
    assert np.unravel_index(corrected.argmax(), (8, 8)) in {(1, 6), (6, 1)}
    by_hand = np.outer(rows, rows) + signal
    total = by_hand.sum()
    assert corrected == pytest.approx(by_hand - np.outer(by_hand.sum(1), by_hand.sum(0)) / total)


def test_precision_of_the_highest_scores():
    length = 20
    contacts, scores = np.zeros((length, length)), np.zeros((length, length))
    contacts[0, 10] = contacts[1, 12] = contacts[2, 15] = contacts[3, 5] = 1.0
    for rank, pair in enumerate([(3, 5), (0, 10), (4, 11), (1, 12), (5, 14), (2, 15)]):
        scores[pair] = 10.0 - rank
    # Nearer than six residues does not count: of the four best (0, 10) and (1, 12) are contacts.
    assert contact_precision(scores, contacts, divisor=5) == 2 / 4
    assert contact_precision(scores, contacts, divisor=2) == 3 / 10
    assert contact_precision(scores, contacts) == 3 / 20
    assert np.isnan(contact_precision(scores, contacts, separation=24))
    contacts[4, 11] = np.nan  # not resolved: left out
    assert contact_precision(scores, contacts, divisor=5) == 3 / 4
    with pytest.raises(DataError, match="not finite"):
        contact_precision(scores * np.nan, contacts)
    with pytest.raises(DataError, match="both are"):
        contact_precision(scores, contacts[:-1])


def test_contacts_from_attention():
    length, residues = 30, np.arange(1, 31)
    attention = np.random.default_rng(0).dirichlet(np.ones(32), (2, 4, 32)).astype(np.float32)
    attention[..., 0] += 5  # the start mark, as in real networks
    attention[1, 2, 5, 25] += 3  # one direction in one head
    scores = attention_contacts(attention, residues)
    assert (scores == scores.T).all()
    assert np.unravel_index(scores.argmax(), scores.shape) in {(4, 24), (24, 4)}
    contacts = np.zeros((length, length))
    contacts[4, 24] = contacts[24, 4] = 1
    assert contact_precision(scores, contacts, divisor=30) == 1.0
    # A regression that looks at the other maps alone does not see it.
    weights = np.ones(8)
    weights[6] = 0
    assert contact_precision(attention_contacts(attention, residues, weights=weights), contacts, divisor=30) == 0.0
    with pytest.raises(DataError, match=r"weights \[3\]"):
        attention_contacts(attention, residues, weights=np.ones(3))
