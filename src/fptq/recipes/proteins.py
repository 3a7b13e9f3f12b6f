"""Protein language models: from FASTA files and a vocabulary to calibration samples and the task."""

from __future__ import annotations

from pathlib import Path

from fptq.config import Recipe
from fptq.errors import ConfigError
from fptq.feeds.fasta import is_fasta, read_fasta
from fptq.feeds.tokenizer import Tokenizer, open_tokenizer
from fptq.feeds.tokens import MaskedTokens, token_input
from fptq.graph.model import Model
from fptq.tasks.proteins import ProteinOutputs, ProteinTask


def as_samples(calibration: object, recipe: Recipe) -> object:
    """Calibration data as samples can be made of it: FASTA becomes tokens, anything else stays.

    Raises:
        ConfigError: It is FASTA, and the recipe has another task or no vocabulary.
        DataError: The files cannot be read, or a residue is not in the vocabulary.
    """
    if not isinstance(calibration, str | Path) or not is_fasta(calibration):
        return calibration
    if recipe.task != "proteins":
        raise ConfigError(
            f"{calibration} holds sequences, and the task is {recipe.task}",
            rule="FASTA files are for protein language models",
            remedy="Give --task proteins and --vocab vocab.txt",
        )
    proteins = read_fasta(calibration)
    return MaskedTokens.of(proteins, _tokenizer(recipe), seed=recipe.seed, limit=recipe.samples)


def as_runs(samples: object, model: Model, recipe: Recipe) -> object:
    """What `as_samples` gave, as the network takes it.

    Raises:
        ModelError: The network takes something else than tokens.
        DataError: A sequence is too long for it.
    """
    if not isinstance(samples, MaskedTokens):
        return samples
    return samples.feeds(token_input(model, _tokenizer(recipe)))


def protein_task(model: Model, recipe: Recipe, sequences: object) -> ProteinTask:
    """The task on the sequences of FASTA files.

    Raises:
        ConfigError: They are given otherwise, or there is no vocabulary.
        DataError: The files cannot be read.
        ModelError: The network is no protein language model.
    """
    if not isinstance(sequences, str | Path):
        raise ConfigError(
            f"validation data of type {type(sequences).__name__} for the task proteins",
            rule="it is scored on FASTA files",
            remedy="Give a path, or make a fptq.tasks.ProteinTask",
        )
    tokenizer = _tokenizer(recipe)
    return ProteinTask(
        proteins=read_fasta(sequences),
        tokenizer=tokenizer,
        network=token_input(model, tokenizer),
        outputs=ProteinOutputs.of(model.outputs),
        seed=recipe.seed,
    )


def _tokenizer(recipe: Recipe) -> Tokenizer:
    if recipe.vocab is None:
        raise ConfigError(
            'task = "proteins" without a vocabulary',
            rule="the numbers of the tokens are the network's own",
            remedy="Give --vocab the vocab.txt that it came with, or package.module:function that returns a tokenizer",
        )
    return open_tokenizer(recipe.vocab)
