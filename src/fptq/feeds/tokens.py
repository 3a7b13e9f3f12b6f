"""Tokens as a network takes them: padded where its length is fixed, with their masks; and residues hidden by a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fptq.errors import ConfigError, DataError, ModelError
from fptq.feeds.fasta import Protein
from fptq.feeds.tokenizer import Tokenizer, Tokens, tokenized
from fptq.graph import query
from fptq.graph.model import Model, TensorInfo
from fptq.types import Array, Feeds

SHARE = 0.15
"""Of the residues that are hidden at once, as in training (Devlin et al. 2018, arXiv 1810.04805, section 3.1)."""


@dataclass(frozen=True, kw_only=True)
class TokenInput:
    """The inputs of a network that takes tokens.

    Attributes:
        tokens: The input for the tokens, `int[N, T]`.
        mask: The input that is 1 where a token counts and 0 where it is padding; None: the network has none.
        zeros: Inputs that are 0 for a single sequence, such as types of segments.
        pad: The token that fills up; None: the tokenizer has none.
        positions: Most tokens that the network can place; None: any number, or not known.
        vocabulary: Tokens that the network has a vector for; None: not known.
    """

    tokens: TensorInfo
    mask: TensorInfo | None = None
    zeros: tuple[TensorInfo, ...] = ()
    pad: int | None = None
    positions: int | None = None
    vocabulary: int | None = None

    @property
    def batch(self) -> int | None:
        """The sequences in one run; None: any number."""
        return _fixed(self.tokens, 0)

    @property
    def length(self) -> int | None:
        """The tokens of a sequence; None: any number."""
        return _fixed(self.tokens, 1)

    def feeds(self, rows: Array, *, name: str) -> dict[str, Array]:
        """One run's inputs for sequences of one length.

        A batch or a length that is fixed and not filled is filled up: the mask is 0 on padding, and the rows and
        positions of the outputs that count come first.

        Args:
            rows: `i64[N, T]`.
            name: What they are called in errors.

        Raises:
            DataError: The sequences are too long, or shorter than a fixed length that nothing can fill up; or a token
                is of another network's vocabulary.
        """
        count, have = rows.shape
        if self.vocabulary is not None and int(rows.max(initial=0)) >= self.vocabulary:
            raise DataError(
                f"{name} has token {rows.max()}, and the network {self.vocabulary}, counted from 0",
                rule="the vocabulary is the one that the network was trained with",
                remedy="Give --vocab the vocab.txt that the network came with",
            )
        length = self._checked(have, name)
        # What a row of a fixed batch repeats has no effect on the others.
        rows = np.concatenate([rows, np.repeat(rows[-1:], max((self.batch or 0) - count, 0), axis=0)])
        full = np.pad(rows, [(0, 0), (0, length - have)], constant_values=self.pad or 0)
        found = {self.tokens.name: full.astype(self.tokens.dtype)}
        if self.mask is not None:
            counts = np.broadcast_to(np.arange(length) < have, full.shape)
            found[self.mask.name] = np.ascontiguousarray(counts.astype(self.mask.dtype))
        return found | {info.name: np.zeros(full.shape, info.dtype) for info in self.zeros}

    def _checked(self, have: int, name: str) -> int:
        """The length of a run."""
        limit = min(size for size in (self.length, self.positions, have) if size is not None)
        if have > limit:
            raise DataError(
                f"{name} has {have} tokens",
                rule=f"the network takes {limit}, marks of start and end included",
                remedy="Cut or drop longer sequences, or export the network with more positions",
            )
        length = self.length or have
        if length > have and self.pad is None:
            raise DataError(
                f"{name} has {have} tokens, and the vocabulary has no token for padding",
                rule=f"the network takes {length}",
                remedy="Add <pad> to the vocabulary, or export the network with a dynamic length",
            )
        return length


def token_input(model: Model, tokenizer: Tokenizer) -> TokenInput:
    """How a network takes tokens, by the names and types of its inputs.

    Of several inputs the one with "mask" in its name is the mask, and one with "type" is 0.

    Raises:
        ModelError: It takes something else.
    """
    inputs = model.inputs
    mask = next((info for info in inputs if "mask" in info.name.lower()), None)
    zeros = tuple(info for info in inputs if "type" in info.name.lower() and info is not mask)
    rest = [info for info in inputs if info is not mask and info not in zeros]
    if len(rest) != 1 or rest[0].dtype.kind not in "iu" or len(rest[0].shape or (None, None)) != 2:
        raise ModelError(
            f"the network takes {'; '.join(map(str, inputs))}",
            rule="a protein language model takes tokens int[N, T], and may take a mask of the same shape",
            remedy="Export it with these inputs alone",
        )
    return TokenInput(
        tokens=rest[0],
        mask=mask,
        zeros=zeros,
        pad=tokenizer.pad_token_id,
        positions=_positions(model),
        vocabulary=_vocabulary(model, rest[0].name),
    )


def mask_token(tokenizer: Tokenizer) -> int:
    """The token that hides a residue.

    Raises:
        ConfigError: There is none.
    """
    found = tokenizer.mask_token_id
    if found is None:
        raise ConfigError(
            "the vocabulary has no token for masking",
            rule="a masked language model has one, <mask> or [MASK]",
            remedy="Give the vocabulary that the network was trained with",
        )
    return found


def hidden_places(tokens: Tokens, *, seed: int) -> Array:
    """Where 15 % of the known residues are, drawn at random: `i64[k]`, sorted, at least one.

    The draw depends on the seed and the tokens alone, so a sequence has the same masks in every file and every order.
    """
    count = max(1, int(SHARE * len(tokens.known)))
    return np.sort(_generator(tokens, seed, 0).choice(tokens.known, count, replace=False))


def single_places(tokens: Tokens, *, count: int | None, seed: int) -> Array:
    """Where known residues are that are hidden one at a time: `i64[k]`, drawn likewise; all of them without a count."""
    if count is None or count >= len(tokens.known):
        return tokens.known
    return np.sort(_generator(tokens, seed, 1).choice(tokens.known, count, replace=False))


def hidden(tokens: Tokens, places: Sequence[Array], mask: int) -> Array:
    """Copies of a sequence, each with some tokens hidden: `i64[copies, T]`."""
    rows = np.tile(tokens.ids, (len(places), 1))
    for row, where in zip(rows, places, strict=True):
        row[where] = mask
    return rows


@dataclass(frozen=True)
class MaskedTokens:
    """Calibration samples: what a masked language model is given in training.

    Attributes:
        rows: For each sequence its name and its tokens `i64[1, T]`, 15 % of the residues hidden.
    """

    rows: tuple[tuple[str, Array], ...]

    @classmethod
    def of(
        cls, proteins: Sequence[Protein], tokenizer: Tokenizer, *, seed: int, limit: int | None = None
    ) -> MaskedTokens:
        """Some or all sequences in an order drawn by the seed: files are sorted by family or by length.

        Raises:
            ConfigError: The tokenizer has no token for masking.
            DataError: A residue is not in the vocabulary.
        """
        mask = mask_token(tokenizer)
        order = np.random.default_rng(seed).permutation(len(proteins))[:limit]
        found = [tokenized(proteins[i], tokenizer) for i in order]
        return cls(tuple((one.name, hidden(one, [hidden_places(one, seed=seed)], mask)) for one in found))

    def __iter__(self) -> Iterator[tuple[Array]]:
        """The arguments of a module that takes tokens alone."""
        return ((row,) for _, row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def feeds(self, network: TokenInput) -> list[Feeds]:
        """The runs of a network, a sequence in each.

        Raises:
            DataError: A sequence is too long for it.
        """
        return [network.feeds(row, name=name) for name, row in self.rows]


def _generator(tokens: Tokens, seed: int, use: int) -> np.random.Generator:
    return np.random.default_rng([seed, use, *tokens.ids.tolist()])


def _fixed(info: TensorInfo, axis: int) -> int | None:
    size = info.shape[axis] if info.shape is not None else None
    return size if isinstance(size, int) else None


def _vocabulary(model: Model, tokens: str) -> int | None:
    """Rows of the table that the tokens are looked up in; None where they go another way."""
    source = next(value for value in model.graph.inputs if value.name == tokens)
    for reader, index in query.readers(source):
        table = query.static_shape(reader.inputs[0]) if (reader.op_type, index) == ("Gather", 1) else None
        if table is not None and query.is_weight(reader.inputs[0]):
            return table[0]
    return None


def _positions(model: Model) -> int | None:
    """Rows of the table of absolute positions, which longer sequences have no place in; None where there is none."""
    for name, value in model.graph.initializers.items():
        shape = value.shape.numpy() if value.shape is not None else ()
        if "position" in name.lower() and "relative" not in name.lower() and len(shape) == 2 and shape[0] > 1:
            return int(shape[0])
    return None
