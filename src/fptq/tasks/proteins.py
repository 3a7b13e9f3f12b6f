"""Protein language models: hidden residues named right, pseudo-perplexity, agreement of embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fptq.errors import DataError, EngineError, ModelError
from fptq.feeds.fasta import Protein
from fptq.feeds.tokenizer import Tokenizer, Tokens, tokenized
from fptq.feeds.tokens import TokenInput, hidden, hidden_places, mask_token, single_places
from fptq.graph.model import TensorInfo
from fptq.tasks.agreement import agreement_of
from fptq.tasks.base import Score, Scores, interval, mean_defined
from fptq.tasks.classes import losses_of, places_of, row_by_row
from fptq.types import Array, Progress, Runner, silent

ACCURACY_NOTE = "accuracy: share of 15 % of the residues, hidden at once, that are named right; mean over sequences."
NLL_NOTE = "nll: mean of -log p(residue) [nat] of the same residues."
PERPLEXITY_NOTE = (
    "pseudo_perplexity: exp of the mean of -log p(residue), each residue hidden alone; geometric mean over sequences."
)
AGREEMENT_NOTE = "agreement_accuracy: share of the hidden residues with the first network's own answer."
EMBEDDING_NOTE = (
    "agreement_embedding, agreement_embedding_sqnr: cosine and SQNR of the residues' vectors against the first "
    "network's, nothing hidden; mean over sequences."
)
GUESS_NOTE = (
    "No more residues are named right than by guessing: check that --vocab is the vocabulary that the network was "
    "trained with."
)
_LISTED = 200
_GUESSED, _LEAST_CASES = 0.1, 8
"""Accuracy of hardly more than a guess, the most frequent residue always (about 9 % of them), and how many sequences
say so."""
_ROWS, _TOKENS = 16, 4096
"""Most sequences in one run, and most tokens in it: attention takes memory with the square of the length."""

Metric = Literal["accuracy", "nll", "pseudo_perplexity"]


@dataclass(frozen=True, kw_only=True)
class ProteinOutputs:
    """What is read from a network.

    Attributes:
        logits: The output `[N, T, V]` with a number for each token of the vocabulary; None: there is none.
        embedding: The output `[N, T, D]` with a vector for each token; None likewise.
    """

    logits: str | None
    embedding: str | None

    @classmethod
    def of(cls, outputs: Sequence[TensorInfo]) -> ProteinOutputs:
        """By name and rank: an embedding says "hidden", "embed" or "repr", logits are the first of the others.

        Raises:
            ModelError: The network has no output `[N, T, C]`.
        """
        candidates = [info.name for info in outputs if info.shape is None or len(info.shape) == 3]
        vectors = [name for name in candidates if any(word in name.lower() for word in ("hidden", "embed", "repr"))]
        scores = [name for name in candidates if name not in vectors]
        if not candidates:
            raise ModelError(
                f"the network returns {'; '.join(map(str, outputs))}",
                rule="a protein language model returns logits or vectors for each token, [N, T, C]",
                remedy="Export it with them, or give --metric package.module:function",
            )
        return cls(logits=next(iter(scores), None), embedding=next(iter(vectors), next(iter(scores[1:]), None)))


@dataclass(frozen=True, kw_only=True)
class ProteinTask:
    """Scores a masked language model on sequences; every network sees the same ones with the same residues hidden.

    Hidden residues become the token for masking, never another residue; they are drawn by the seed and the sequence.

    Attributes:
        proteins: The sequences.
        tokenizer: What makes tokens of them.
        network: How the network takes tokens.
        outputs: What is read from it.
        metrics: What is measured, where there are logits; the first is the one that decides.
        alone: Residues of each sequence that are hidden one at a time for the pseudo-perplexity; None: all of them,
            which is its definition (Salazar et al. 2020, arXiv 1910.14659, eq. 2) and takes a run for each residue.
        seed: Of what is hidden.
    """

    proteins: tuple[Protein, ...]
    tokenizer: Tokenizer
    network: TokenInput
    outputs: ProteinOutputs
    metrics: tuple[Metric, ...] = ("accuracy", "nll", "pseudo_perplexity")
    alone: int | None = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.proteins:
            raise DataError("there is no sequence", rule="evaluation needs at least one")

    def evaluate(self, runner: Runner) -> Scores:
        """Scores of one network; without logits there are none."""
        found = self.evaluate_all({"network": runner})["network"]
        kept = tuple(score for score in found if not score.name.startswith("agreement"))
        return Scores(entries=kept, cases=found.cases, notes=found.notes)

    def evaluate_all(self, runners: Mapping[str, Runner], *, progress: Progress = silent) -> Mapping[str, Scores]:
        """Scores of several networks, sequence by sequence, with the agreement of each with the first.

        Args:
            runners: Networks by name; the first is the reference.
            progress: Told after each sequence.

        Raises:
            DataError: A sequence has an unknown letter, or is too long for the network.
            ModelError: The network lacks an output, or its vocabulary is another one.
        """
        tables: dict[str, _Table] = {name: _Table() for name in runners}
        progress(0, len(self.proteins), "evaluation")
        for index, protein in enumerate(self.proteins, 1):
            question = self._question(protein)
            reference: _Answer | None = None
            for name, runner in runners.items():
                answer = self._answer(runner, question)
                tables[name].add(answer, question, reference)
                reference = answer if reference is None else reference
            progress(index, len(self.proteins), "evaluation")
        # Names are for the report's table of cases, which nobody reads beyond a few.
        names = tuple(p.name for p in self.proteins) if len(self.proteins) <= _LISTED else ()
        return {name: table.scores(self.metrics, names) for name, table in tables.items()}

    def _question(self, protein: Protein) -> _Question:
        tokens = tokenized(protein, self.tokenizer)
        if self.outputs.logits is None:
            return _Question(tokens=tokens)
        together = hidden_places(tokens, seed=self.seed)
        wanted = "pseudo_perplexity" in self.metrics
        single = single_places(tokens, count=self.alone, seed=self.seed) if wanted else together[:0]
        mask = mask_token(self.tokenizer)
        rows = hidden(tokens, [together, *single[:, None]], mask)
        return _Question(tokens=tokens, rows=rows, together=together, single=single)

    def _answer(self, runner: Runner, question: _Question) -> _Answer:
        tokens, answer = question.tokens, _Answer()
        if self.outputs.logits is not None:
            logits = self._run(runner, self.outputs.logits, question.rows, tokens)
            if tokens.ids.max() >= logits.shape[2]:
                raise ModelError(
                    f"{tokens.name} has token {tokens.ids.max()}, and output {self.outputs.logits!r} {logits.shape[2]}",
                    rule="the vocabulary is the one that the network was trained with",
                    remedy="Give --vocab the vocab.txt that the network came with",
                )
            answer.together = logits[0, question.together]
            answer.single = logits[1 + np.arange(len(question.single)), question.single]
        if self.outputs.embedding is not None:
            answer.embedding = self._run(runner, self.outputs.embedding, tokens.ids[None], tokens)[0, tokens.residues]
        return answer

    def _run(self, runner: Runner, output: str, rows: Array, tokens: Tokens) -> Array:
        """An output for rows of tokens, `f64[N, T, C]`, without what belongs to padding."""

        def call(batch: Array) -> Array:
            found = runner(self.network.feeds(batch, name=tokens.name))
            if output not in found:
                raise ModelError(f"no output {output!r}", rule=f"the network returns {', '.join(found)}")
            value = np.asarray(found[output], np.float64)
            if value.ndim != 3 or value.shape[1] < batch.shape[1]:
                raise ModelError(
                    f"output {output!r} has shape {list(value.shape)} for {batch.shape[1]} tokens",
                    rule="a protein language model returns a row for each token, [N, T, C]",
                )
            # Only rows that fill up a fixed batch are cut: others that are missing or too many are an error.
            return value[: len(batch) if self.network.batch else None, : batch.shape[1]]

        step = self.network.batch or max(1, min(_ROWS, _TOKENS // rows.shape[1]))
        try:
            parts = [
                row_by_row(call, [row[None] for row in rows[start : start + step]])
                for start in range(0, len(rows), step)
            ]
        except EngineError as error:
            raise EngineError(
                f"{tokens.name} of {len(tokens.ids)} tokens failed: {error.what}",
                rule="networks with a table of positions take no more tokens than it has",
                remedy="If shorter sequences run, cut or drop those that are longer",
            ) from error
        return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What a network is asked about a sequence.

    Attributes:
        tokens: The sequence.
        rows: `i64[1 + K, T]`: residues hidden together, then K times one alone.
        together: Where they are in the first row.
        single: Where the one is in each of the others.
    """

    tokens: Tokens
    rows: Array = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    together: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    single: Array = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class _Answer:
    """Logits `f64[k, V]` where residues are hidden together and alone, and vectors `f64[L, D]` of all residues."""

    together: Array | None = None
    single: Array | None = None
    embedding: Array | None = None


@dataclass
class _Table:
    """One network's values by metric, a sequence each; those that were not measured are empty."""

    columns: dict[str, list[float]] = field(default_factory=dict)

    def add(self, answer: _Answer, question: _Question, reference: _Answer | None) -> None:
        ids = question.tokens.ids
        if answer.together is not None and answer.single is not None:
            truth = ids[question.together]
            self._put("accuracy", np.mean(np.asarray(places_of(truth, answer.together)) == 0))
            self._put("nll", np.mean(losses_of(truth, answer.together, probabilities=False)))
            if len(question.single):
                lost = losses_of(ids[question.single], answer.single, probabilities=False)
                self._put("pseudo_perplexity", math.exp(np.mean(lost)))
        if reference is None:
            return
        if answer.together is not None and reference.together is not None:
            same = places_of(reference.together.argmax(1), answer.together)
            self._put("agreement_accuracy", np.mean(np.asarray(same) == 0))
        if answer.embedding is not None and reference.embedding is not None:
            found = agreement_of(reference.embedding, answer.embedding)
            self._put("agreement_embedding", found.cosine)
            self._put("agreement_embedding_sqnr", found.sqnr_db)

    def scores(self, metrics: Sequence[Metric], names: tuple[str, ...]) -> Scores:
        measured = [name for name in metrics if name in self.columns]
        agreement = [name for name in self.columns if name.startswith("agreement")]
        entries = tuple(_score(name, self.columns[name]) for name in (*measured, *agreement))
        notes = [_NOTES[name] for name in (*measured, *agreement) if name in _NOTES]
        accuracy = self.columns.get("accuracy", [])
        if len(accuracy) >= _LEAST_CASES and np.mean(accuracy) < _GUESSED:
            notes.append(GUESS_NOTE)
        if measured and len(self.columns[measured[0]]) > 1:
            ends = (
                f"{e.name} {low:.4g} to {high:.4g}" for e in entries[: len(measured)] for low, high in [interval(e)]
            )
            notes.append(f"95 % bootstrap intervals over sequences: {', '.join(ends)}.")
        return Scores(entries=entries, cases=names, notes=tuple(notes))

    def _put(self, name: str, value: float | np.floating) -> None:
        self.columns.setdefault(name, []).append(float(value))


_NOTES: Mapping[str, str] = {
    "accuracy": ACCURACY_NOTE,
    "nll": NLL_NOTE,
    "pseudo_perplexity": PERPLEXITY_NOTE,
    "agreement_accuracy": AGREEMENT_NOTE,
    "agreement_embedding": EMBEDDING_NOTE,
}


def _score(name: str, cases: list[float]) -> Score:
    values = np.asarray(cases)
    geometric = name == "pseudo_perplexity"
    return Score(
        name=name,
        value=float(np.exp(np.log(values).mean())) if geometric else mean_defined(values),
        unit={"agreement_embedding_sqnr": "dB", "nll": "nat"}.get(name, ""),
        higher_is_better=name not in ("nll", "pseudo_perplexity"),
        cases=tuple(cases),
        average="geometric mean" if geometric else "mean",
    )
