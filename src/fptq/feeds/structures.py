"""Protein structures from PDB and mmCIF files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fptq.errors import DataError
from fptq.feeds.optional import optional
from fptq.feeds.scans import unreadable
from fptq.types import Array

_PURPOSE = "reading PDB and mmCIF files"
PDB, MMCIF = (".pdb", ".ent"), (".cif", ".mmcif")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One chain of a structure: its residues that have an alpha carbon.

    Attributes:
        name: The file and the chain, for errors.
        residues: One letter a residue, `K` of them.
        numbers: `i64[K]`, as the file numbers them: what is missing leaves a gap.
        alpha: `f64[K, 3]`, alpha carbons [A].
        beta: `f64[K, 3]`, beta carbons [A]; of glycine, which has none, the alpha carbon.
    """

    name: str
    residues: str
    numbers: Array
    alpha: Array
    beta: Array

    def __len__(self) -> int:
        return len(self.residues)


def read_chain(path: str | Path, chain: str | None = None) -> Chain:
    """A chain of the first model of a structure.

    Modified residues, such as selenomethionine, count as what they come from. A residue without a beta carbon has NaN
    there unless it is a glycine.

    Args:
        path: A `.pdb`, `.ent`, `.cif` or `.mmcif` file.
        chain: Its name (in mmCIF the author's); None: the only one with residues.

    Raises:
        DataError: The file cannot be read, has no such chain or several, or an atom is nowhere (NaN).
        MissingExtra: Biopython is not installed.
    """
    path = Path(path)
    chains = {found.id: residues for found in _parsed(path) if (residues := list(_residues(found)))}
    if chain is None and len(chains) == 1:
        chain = next(iter(chains))
    if chain is None or chain not in chains:
        names = ", ".join(map(repr, chains)) or "none"
        raise DataError(
            f"{path} has no chain {chain!r}" if chain is not None else f"{path} has {len(chains)} chains",
            rule=f"its chains with amino acids are {names}",
            remedy="Name one of them",
        )
    letters, found = zip(*chains[chain], strict=True)
    alpha = np.array([residue["CA"].coord for residue in found], np.float64)
    beta = np.array([_beta(letter, residue) for letter, residue in chains[chain]], np.float64)
    name = f"{path}, chain {chain}"
    if not np.isfinite(alpha).all():
        place = int(np.flatnonzero(~np.isfinite(alpha).all(1))[0])
        raise DataError(
            f"{name}: the alpha carbon of residue {found[place].id[1]} ({letters[place]}) has NaN or Inf",
            rule="coordinates are finite",
            remedy="Predict the structure again, or drop it: NaN is what a fold in half precision overflows to",
        )
    numbers = np.array([residue.id[1] for residue in found], np.int64)
    return Chain(name=name, residues="".join(letters), numbers=numbers, alpha=alpha, beta=beta)


def places_in(chain: Chain, sequence: str) -> Array:
    """Where a chain's residues are in a sequence of which it may lack some: `i64[K]`, ascending.

    Without a gap it is where the letters stand; with gaps the file's numbers, shifted by one constant, must fit.

    Raises:
        DataError: They stand nowhere, or at several places.
    """
    starts = [i for i in range(len(sequence) - len(chain) + 1) if sequence.startswith(chain.residues, i)]
    found = [start + np.arange(len(chain)) for start in starts]
    if not found:
        steps = chain.numbers - chain.numbers[0]
        ascending = bool((np.diff(steps) > 0).all())
        starts = list(range(len(sequence) - int(steps[-1]))) if ascending else []
        found = [
            i + steps for i in starts if all(sequence[i + s] == r for s, r in zip(steps, chain.residues, strict=True))
        ]
    if len(found) != 1:
        raise DataError(
            f"{chain.name} has {len(chain)} residues ({_short(chain.residues)}), which "
            + (f"fit at {len(found)} places of" if found else "do not fit")
            + f" the sequence of {len(sequence)} ({_short(sequence)})",
            rule="a structure is compared with the sequence that it is of; residues may be missing, none may differ",
            remedy="Name another chain, or give the structure of this sequence",
        )
    return found[0]


def _parsed(path: Path) -> Iterable[Any]:
    """The chains of the first model."""
    structures = optional("Bio.PDB", extra="proteins", purpose=_PURPOSE)
    ending = path.suffix.lower()
    if ending not in (*PDB, *MMCIF):
        raise DataError(f"{path} is no structure", rule=f"structures are {', '.join((*PDB, *MMCIF))} files")
    parser = structures.PDBParser(QUIET=True) if ending in PDB else structures.MMCIFParser(QUIET=True)
    try:
        return list(next(iter(parser.get_structure(path.stem, str(path)))))
    except StopIteration as error:
        raise DataError(f"{path} holds no atom", rule="a structure has at least one residue") from error
    except Exception as error:  # the parsers raise whatever a broken line leads to
        raise unreadable(path, error) from error


def _residues(chain: Any) -> Iterable[tuple[str, Any]]:
    names = optional("Bio.Data.PDBData", extra="proteins", purpose=_PURPOSE).protein_letters_3to1_extended
    for residue in chain:
        letter = names.get(residue.resname.strip().ljust(3), names.get(residue.resname.strip()))
        if letter is not None and "CA" in residue:
            yield letter, residue


def _beta(letter: str, residue: Any) -> Any:
    if "CB" in residue:
        return residue["CB"].coord
    return residue["CA"].coord if letter == "G" else np.full(3, np.nan)


def _short(sequence: str) -> str:
    return sequence if len(sequence) <= 12 else f"{sequence[:12]}..."
