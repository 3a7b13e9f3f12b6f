"""AntiBERTy (Ruffolo et al. 2021, arXiv 2112.07782), a BERT for antibody sequences, in plain torch; and sequences."""

from __future__ import annotations

import csv
import gzip
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKENS = 144
"""Length that shorter sequences are filled up to; the longest heavy chain has 141 residues and two marks."""

_WIDTH, _INNER, _HEADS, _LAYERS, _VOCABULARY, _POSITIONS = 512, 2048, 8, 8, 25, 512
_EPSILON = 1e-12
_BASES = "TCAG"
_RESIDUES = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
_CODE = {"".join(codon): residue for codon, residue in zip(itertools.product(_BASES, repeat=3), _RESIDUES, strict=True)}
"""The standard genetic code (NCBI translation table 1)."""


class Layer(nn.Module):
    """A post-normalised transformer layer (Devlin et al. 2018, arXiv 1810.04805)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.output = nn.Linear(_WIDTH, _WIDTH)
        self.expand, self.contract = nn.Linear(_WIDTH, _INNER), nn.Linear(_INNER, _WIDTH)
        self.attention_norm, self.feed_forward_norm = (nn.LayerNorm(_WIDTH, _EPSILON) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """From `f32[N, T, 512]` to the same shape; `mask` `bool[N, 1, 1, T]` is False where nobody may look."""
        query, key, value = (
            part(x).unflatten(2, (_HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.attention_norm(x + self.output(mixed.transpose(1, 2).flatten(2)))
        result: Tensor = self.feed_forward_norm(x + self.contract(functional.gelu(self.expand(x))))
        return result


class AntiBERTy(nn.Module):
    """8 layers of 512, 25.8 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(_VOCABULARY, _WIDTH), nn.Embedding(_POSITIONS, _WIDTH)
        self.kind = nn.Embedding(2, _WIDTH)
        self.norm, self.head_norm = nn.LayerNorm(_WIDTH, _EPSILON), nn.LayerNorm(_WIDTH, _EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(_LAYERS))
        self.transform, self.decoder = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `f32[N, T, 25]` for tokens `i64[N, T]`, T <= 512, filled up with 0."""
        return self.logits(self.embedded(tokens))

    def embedded(self, tokens: Tensor) -> Tensor:
        """Vectors `f32[N, T, 512]`: the result of the last layer."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]] + self.kind.weight[0]
        x, mask = self.norm(x), (tokens != 0)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        vectors: Tensor = x
        return vectors

    def logits(self, x: Tensor) -> Tensor:
        """The head for masked tokens, from vectors `f32[N, T, 512]`."""
        found: Tensor = self.decoder(self.head_norm(functional.gelu(self.transform(x))))
        return found


class WithEmbedding(nn.Module):
    """AntiBERTy that returns its vectors too."""

    def __init__(self, network: AntiBERTy) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `f32[N, T, 25]` and vectors `f32[N, T, 512]` for tokens `i64[N, T]`."""
        x = self.network.embedded(tokens)
        return self.network.logits(x), x


def load_antiberty(path: Path) -> AntiBERTy:
    """The network with the weights of its published checkpoint, in eval mode."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    ends = {
        "bert.embeddings.word_embeddings": "token",
        "bert.embeddings.position_embeddings": "position",
        "bert.embeddings.token_type_embeddings": "kind",
        "bert.embeddings.LayerNorm": "norm",
        "cls.predictions.transform.dense": "transform",
        "cls.predictions.transform.LayerNorm": "head_norm",
        "cls.predictions.decoder": "decoder",
    }
    within = {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "output",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "expand",
        "output.dense": "contract",
        "output.LayerNorm": "feed_forward_norm",
    }
    for index in range(_LAYERS):
        ends |= {f"bert.encoder.layer.{index}.{theirs}": f"layers.{index}.{ours}" for theirs, ours in within.items()}
    network = AntiBERTy()
    # Heads for species and chain are left out.
    wanted = network.state_dict()
    named = {f"{ours}.{kind}": f"{theirs}.{kind}" for theirs, ours in ends.items() for kind in ("weight", "bias")}
    named["decoder.bias"] = "cls.predictions.bias"
    network.load_state_dict({name: stored[named[name]] for name in wanted})
    return network.eval()


def read_sequences(path: Path) -> tuple[str, ...]:
    """The distinct complete variable regions of an AIRR table, in alphabetical order."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found = {_translated(row["sequence_alignment"]) for row in csv.DictReader(file, delimiter="\t")}
    return tuple(sorted(s for s in found if len(s) >= 100 and not set(s) & {"X", "*"}))


def _translated(sequence: str) -> str:
    codons = (sequence[i : i + 3].upper() for i in range(0, len(sequence) - 2, 3))
    return "".join(_CODE.get(codon, "X") for codon in codons if codon not in {"...", "---"})
