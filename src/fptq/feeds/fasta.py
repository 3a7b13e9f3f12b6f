"""Protein sequences from FASTA files."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fptq.errors import DataError
from fptq.feeds.optional import optional
from fptq.feeds.scans import FASTA, find_files, suffix, unreadable

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
"""The one-letter codes of the twenty amino acids that the genetic code has."""


@dataclass(frozen=True, kw_only=True)
class Protein:
    """A sequence with its name.

    Attributes:
        name: What it is called in scores and errors: the first word of its FASTA header.
        residues: One letter a residue, in upper case.
    """

    name: str
    residues: str


def is_fasta(source: object) -> bool:
    """Whether a source of samples is FASTA: a path or pattern with such a suffix, or a folder of such files.

    >>> is_fasta("sequences/*.fa"), is_fasta("scans/*.nii.gz"), is_fasta([1, 2])
    (True, False, False)
    """
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    if path.is_dir():
        return any(suffix(entry) in FASTA for entry in path.iterdir())
    return suffix(path) in FASTA


def read_fasta(source: str | Path) -> tuple[Protein, ...]:
    """The sequences of FASTA files, in the order of the files.

    Letters of lower case, which mark repeats of low complexity, become upper case.

    Args:
        source: A file, a folder or a glob pattern of `.fasta`, `.fa` or `.faa` files, which may be gzipped.

    Raises:
        DataError: There is no such file, one is no FASTA file, or a sequence is empty, has no name, or another one's.
        MissingExtra: Biopython is not installed.
    """
    proteins = tuple(protein for path in find_files(source, among=FASTA) for protein in _read(path))
    _check_names(proteins)
    return proteins


def _read(path: Path) -> Iterable[Protein]:
    parser = optional("Bio.SeqIO", extra="proteins", purpose="reading FASTA files")
    try:
        with gzip.open(path, "rt") if path.suffix.lower() == ".gz" else path.open(encoding="utf-8") as file:
            found = [Protein(name=one.id, residues=str(one.seq).upper()) for one in parser.parse(file, "fasta")]
    except (OSError, EOFError) as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise DataError(
            f"{path} is no FASTA file",
            rule="a sequence begins with a line of > and its name, and nothing stands before the first one",
            remedy="Remove what does",
        ) from error
    if not found:
        raise DataError(f"{path} holds no sequence", rule="at least one is needed", remedy="Check the file")
    for index, protein in enumerate(found, 1):
        if not protein.name or not protein.residues:
            raise DataError(
                f"{path}: sequence {index} ({protein.name or 'without a name'}) "
                + ("has no residue" if protein.name else "cannot be told from others"),
                rule="a sequence has a name and at least one residue",
                remedy="Mend or drop it",
            )
    return found


def _check_names(proteins: tuple[Protein, ...]) -> None:
    seen: set[str] = set()
    for protein in proteins:
        if protein.name in seen:
            raise DataError(
                f"two sequences are called {protein.name!r}",
                rule="scores are compared sequence by sequence, by the first word of the header",
                remedy="Rename one of them, or drop the copy",
            )
        seen.add(protein.name)
