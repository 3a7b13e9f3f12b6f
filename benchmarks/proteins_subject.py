"""AntiBERTy and its sequences for the table of `proteins.py`: the split, the float network on an engine, the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

import antiberty
from fptq.cache import Cache
from fptq.calibrate import CollectOptions, Statistics, collect, needed, observer
from fptq.config import Recipe
from fptq.demo.assets import fetch
from fptq.feeds.fasta import Protein
from fptq.feeds.tokenizer import Tokenizer, open_tokenizer
from fptq.feeds.tokens import MaskedTokens, token_input
from fptq.graph.load import load
from fptq.graph.model import Model
from fptq.plan import PROFILES, Plan
from fptq.rewrite import PASSES
from fptq.tasks.proteins import ProteinOutputs, ProteinTask
from fptq.types import Feeds, Runner

EVERY = 10
"""Every so many sequences of the sorted list are for calibration; the others are for evaluation."""
EMBEDDED = 24
"""Sequences whose vectors are compared."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sequences that share none.

    Attributes:
        calibration: Every tenth of the sorted list.
        evaluation: Others, evenly spaced over the list.
    """

    calibration: tuple[Protein, ...]
    evaluation: tuple[Protein, ...]

    @classmethod
    def of(cls, sequences: Sequence[str], count: int) -> Split:
        """So many for evaluation, or all that are left."""
        proteins = [Protein(name=f"VH{index}", residues=text) for index, text in enumerate(sequences)]
        rest = [protein for index, protein in enumerate(proteins) if index % EVERY]
        places = np.unique(np.linspace(0, len(rest) - 1, min(count, len(rest))).astype(int))
        return cls(calibration=tuple(proteins[::EVERY]), evaluation=tuple(rest[place] for place in places))

    def nearest(self) -> list[float]:
        """For each sequence of the evaluation the identity with the nearest of the calibration, of equal length."""
        return [max(_identity(one, other) for other in self.calibration) for one in self.evaluation]


def _identity(one: Protein, other: Protein) -> float:
    """Share of equal residues; 0 for another length."""
    if len(other.residues) != len(one.residues):
        return 0.0
    letters, others = (np.frombuffer(protein.residues.encode(), np.uint8) for protein in (one, other))
    return float((letters == others).mean())


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network on an engine.

    Attributes:
        engine: The engine's name.
        split: The sequences.
    """

    engine: str
    split: Split

    @cached_property
    def loaded(self) -> Model:
        """The float network of any length."""
        network = antiberty.WithEmbedding(antiberty.load_antiberty(fetch("antiberty"))).eval()
        first, *others = [torch.from_numpy(row) for _, row in self._masked.rows[:3]]
        return load(network, example=(first,), others=[(other,) for other in others])

    @cached_property
    def model(self) -> Model:
        """The same, rewritten for the engine."""
        model = self.loaded
        for name in PROFILES[self.engine].passes:
            model = PASSES[name](model)
        return model

    @cached_property
    def calibration(self) -> list[Feeds]:
        """Masked as in training."""
        return self._masked.feeds(token_input(self.loaded, self._tokenizer))

    def statistics(self, plan: Plan) -> Statistics:
        """What calibration found for a plan, in the cache."""
        asked = needed(plan, [observer("lp", {}), observer("minmax", {})])
        return collect(self.model, asked, self.calibration, options=CollectOptions(threads=1), store=Cache())

    @cached_property
    def masked(self) -> ProteinTask:
        """Masked residues."""
        return self._task(self.split.evaluation, ProteinOutputs(logits=self._outputs[0], embedding=None))

    @cached_property
    def embedded(self) -> ProteinTask:
        """Vectors of some of the same sequences."""
        step = max(1, len(self.split.evaluation) // EMBEDDED)
        return self._task(
            self.split.evaluation[::step][:EMBEDDED], ProteinOutputs(logits=None, embedding=self._outputs[1])
        )

    def _task(self, proteins: Sequence[Protein], outputs: ProteinOutputs) -> ProteinTask:
        return ProteinTask(
            proteins=tuple(proteins),
            tokenizer=self._tokenizer,
            network=token_input(self.loaded, self._tokenizer),
            outputs=outputs,
            metrics=("accuracy", "nll"),
            seed=SEED,
        )

    @property
    def _outputs(self) -> list[str]:
        return [info.name for info in self.loaded.outputs]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(fetch("antiberty-vocabulary"))

    @cached_property
    def _masked(self) -> MaskedTokens:
        return MaskedTokens.of(self.split.calibration, self._tokenizer, seed=SEED)


@dataclass(frozen=True, kw_only=True)
class Remembering:
    """A network that runs once on each input."""

    runner: Runner
    _known: dict[bytes, Feeds] = field(default_factory=dict)

    def __call__(self, feeds: Feeds) -> Feeds:
        key = b"".join(array.tobytes() for array in feeds.values())
        if key not in self._known:
            self._known[key] = self.runner(feeds)
        return self._known[key]


RECIPE = Recipe(recipe="fast", threads=1, gate="off")
"""Observers as `fptq quantize` starts with them, nothing tried."""
