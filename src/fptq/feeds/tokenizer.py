"""From the letters of a sequence to the numbers that a network takes: nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from fptq.errors import ConfigError, DataError, FptqError
from fptq.feeds.callables import load_callable, names_callable
from fptq.feeds.fasta import STANDARD, Protein
from fptq.types import Array

_START = ("<cls>", "[CLS]", "<s>")
_END = ("<eos>", "[SEP]", "</s>")
_PAD = ("<pad>", "[PAD]")
_MASK = ("<mask>", "[MASK]")
_BRACKETS = (("<", ">"), ("[", "]"))


@runtime_checkable
class Tokenizer(Protocol):
    """What makes tokens of a sequence; the names are those of Hugging Face, whose tokenizers fit as they are."""

    @property
    def mask_token_id(self) -> int | None:
        """The token that hides a residue."""

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills up a sequence."""

    @property
    def all_special_ids(self) -> Sequence[int]:
        """The tokens that are no residue."""

    def encode(self, text: str) -> Sequence[int]:
        """The tokens of a sequence, with those that mark its start and end."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A `Tokenizer` of one token for each letter.

    Attributes:
        tokens: What the numbers mean. Special ones stand in <> or [].
        source: Where they come from, for the error messages.
    """

    tokens: tuple[str, ...]
    source: str = "the vocabulary"
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {token: index for index, token in enumerate(self.tokens)})
        twice = next((token for i, token in enumerate(self.tokens) if self._index[token] != i), None)
        if twice is not None or not any(letter in self._index for letter in STANDARD):
            raise ConfigError(
                f"{self.source} has the token {twice!r} twice"
                if twice is not None
                else f"{self.source} has no token of one letter",
                rule="a vocabulary for proteins has one token a line, among them a letter for each residue",
                remedy="Give the vocab.txt that the network came with",
            )

    @property
    def mask_token_id(self) -> int | None:
        """The number of <mask> or [MASK]."""
        return self._first(_MASK)

    @property
    def pad_token_id(self) -> int | None:
        """The number of <pad> or [PAD]."""
        return self._first(_PAD)

    @property
    def all_special_ids(self) -> Sequence[int]:
        """The numbers of the tokens in brackets."""
        return [i for i, t in enumerate(self.tokens) if any(t.startswith(a) and t.endswith(b) for a, b in _BRACKETS)]

    def encode(self, text: str) -> Sequence[int]:
        """The start mark, the letters, the end mark; marks that the vocabulary lacks are left out.

        >>> Vocabulary(tokens=("<cls>", "<eos>", "A", "C")).encode("CAC")
        [0, 3, 2, 3, 1]

        Raises:
            DataError: A letter is not in the vocabulary.
        """
        for place, letter in enumerate(text, 1):
            # ESM's vocabulary has tokens for gaps, which no single sequence has.
            if letter not in self._index or not letter.isalpha():
                raise DataError(
                    f"residue {place} is {letter!r}, which is no residue of {self.source}",
                    rule=f"its letters are {''.join(t for t in self.tokens if len(t) == 1 and t.isalpha())}",
                    remedy="Drop the sequence, or remove what is no residue, such as gaps and stops",
                )
        start, end = self._first(_START), self._first(_END)
        marks = [[mark] if mark is not None else [] for mark in (start, end)]
        return [*marks[0], *(self._index[letter] for letter in text), *marks[1]]

    def _first(self, names: tuple[str, ...]) -> int | None:
        return next((self._index[name] for name in names if name in self._index), None)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A sequence as a network takes it.

    Attributes:
        name: Of the sequence.
        ids: `i64[T]`, marks of start and end included.
        residues: `i64[L]`, where among them the residues are.
        known: `i64[K]`, where those are that are one of the twenty amino acids: what can be asked for.
    """

    name: str
    ids: Array
    residues: Array
    known: Array


def open_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer that a vocabulary file describes, or that the user's function returns.

    Args:
        source: A text file of one token a line, as ESM's and AntiBERTy's `vocab.txt`; or `package.module:function`,
            a function without arguments that returns a `Tokenizer`.

    Raises:
        ConfigError: The file does not exist or is no vocabulary, or the function returns something else.
    """
    if isinstance(source, str) and names_callable(source) and not Path(source).exists():
        found = load_callable(source)()
        if not isinstance(found, Tokenizer):
            raise ConfigError(
                f"{source} returned a {type(found).__name__}",
                rule="a tokenizer has encode, mask_token_id, pad_token_id and all_special_ids",
            )
        return found
    try:
        lines = Path(source).read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"no vocabulary at {source}: {getattr(error, 'strerror', None) or error}",
            rule="it is a text file of one token a line, and is never downloaded",
            remedy="Give --vocab the vocab.txt that the network came with",
        ) from error
    return Vocabulary(tokens=tuple(line.strip() for line in lines), source=str(source))


def tokenized(protein: Protein, tokenizer: Tokenizer) -> Tokens:
    """The tokens of a sequence, and which of them are residues.

    Raises:
        DataError: A residue is not in the vocabulary, or the tokenizer does not give one token for each.
    """
    try:
        ids = np.asarray(tokenizer.encode(protein.residues), np.int64)
    except FptqError as error:
        raise DataError(f"{protein.name}: {error.what}", rule=error.rule, remedy=error.remedy) from error
    residues = np.flatnonzero(~np.isin(ids, list(tokenizer.all_special_ids)))
    if len(residues) != len(protein.residues):
        raise DataError(
            f"{protein.name}: {len(residues)} tokens for {len(protein.residues)} residues",
            rule="each residue has a token of its own that is no special one",
            remedy="Check the letters of the sequence, and whether the tokenizer wants spaces between them",
        )
    known = residues[[letter in STANDARD for letter in protein.residues]]
    if not len(known):
        raise DataError(
            f"{protein.name} has no known residue",
            rule=f"a network is asked for {STANDARD}",
            remedy="Drop the sequence",
        )
    return Tokens(name=protein.name, ids=ids, residues=residues, known=known)
