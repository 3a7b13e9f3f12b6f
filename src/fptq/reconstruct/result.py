"""What a reconstruction hands back, and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import fptq
from fptq.cache import Cache, CacheEntry, cache_key
from fptq.execute import Objective
from fptq.graph.placement import Placement
from fptq.numerics import UniformParams
from fptq.plan.encoding import Encoding
from fptq.reconstruct.crops import CROP, STEP
from fptq.reconstruct.method import Method
from fptq.types import Array

KIND = "reconstruction"
_FORMAT = 1  # of what is stored; another number learns again


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """How a reconstruction runs, whatever the method.

    Attributes:
        objective: What a difference of the network's outputs means; None: KL for class scores, else squared errors.
        seed: Of all random choices.
        memory: Bytes of values of the samples that are held in memory; the rest lies in mapped files.
        batch_memory: Bytes that the values of a batch may take on their way; larger batches run in pieces.
        folder: Where those files go; None: the system's folder for temporary files.
        autocast: Compute in bfloat16 where torch thinks it safe.
        judged: The losses that decide between learned and nearest rounding are means over at most so many samples.
        crop: Larger volumes (inputs `[N, C, D, H, W]`) are cut to random crops of so many voxels along each spatial
            axis, at least 16, rounded down to a multiple of 16; at least 64 crops in all. None: samples stay whole.
        volume_batch: The method's batch size for volumes larger than a crop, cut or not, at most: each voxel is a
            sample of its own.
    """

    objective: Objective | None = None
    seed: int = 0
    memory: int = 4 << 30
    batch_memory: int = 1 << 30
    folder: Path | None = None
    autocast: bool = False
    judged: int = 256
    crop: int | None = CROP
    volume_batch: int = 4

    def __post_init__(self) -> None:
        if self.crop is not None and self.crop < STEP:
            raise ValueError(f"crop = {self.crop}: networks take volumes of at least {STEP} voxels along each axis")
        if self.volume_batch < 1:
            raise ValueError(f"volume_batch = {self.volume_batch}: a batch holds at least 1 volume")


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """How the reconstruction of one unit went.

    Attributes:
        name: The unit's.
        stage: "weights", "activations", "weights and activations", or "all blocks".
        initial_loss: The method's own loss with what was there before: nearest rounding.
        final_loss: The same with what was kept; never above the initial loss.
        iterations: That were taken; fewer than asked for where the unit had converged.
        seconds: For all of it [s].
        kept: Whether what was learned was kept.
        history: Mean local training loss of each window of iterations.
        predictions: How often the network behind the unit ran in training.
        prediction_seconds: What that took [s].
    """

    name: str
    stage: str
    initial_loss: float
    final_loss: float
    iterations: int
    seconds: float
    kept: bool = True
    history: tuple[float, ...] = ()
    predictions: int = 0
    prediction_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Reconstructed:
    """A network with learned rounding.

    Attributes:
        encoding: Codes of weights, and scales; units that were not reached keep nearest rounding.
        units: How each unit went, in the order of the work.
        notes: What was left out, and why, one sentence each.
        interrupted: Whether it was stopped before its end.
    """

    encoding: Encoding
    units: tuple[UnitResult, ...] = ()
    notes: tuple[str, ...] = ()
    interrupted: bool = False


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The results of units in a store, each found by all that it depends on.

    Attributes:
        store: None: nothing is kept.
        method: The method.
        options: Seed and the rest.
        samples: Fingerprint of the samples.
        objective: The loss at the outputs.
    """

    store: Cache | None
    method: Method
    options: ReconstructionOptions
    samples: str
    objective: Objective

    def load(self, key: str, encoding: Encoding) -> tuple[Encoding, UnitResult] | None:
        """An encoding with a unit's stored numbers, and how it went; None where there is nothing stored."""
        entry = None if self.store is None else self.store.get(KIND, key)
        if entry is None:
            return None
        params, codes = dict(encoding.params), dict(encoding.codes)
        for name, array in entry.arrays.items():
            text, _, part = name.rpartition("/")
            if part == "scale":
                zero_point = entry.arrays[f"{text}/zero_point"]
                params[Placement.parse(text)] = UniformParams(scale=array, zero_point=zero_point)
            elif part == "codes":
                codes[Placement.parse(text)] = array
        meta = {**entry.meta, "history": tuple(entry.meta["history"])}
        return replace(encoding, params=params, codes=codes), UnitResult(**meta)

    def save(self, key: str, encoding: Encoding, touched: Iterable[Placement], result: UnitResult) -> None:
        """Keep a unit's numbers."""
        if self.store is None:
            return
        arrays: dict[str, Array] = {}
        for placement in touched:
            arrays[f"{placement}/scale"] = encoding.params[placement].scale
            arrays[f"{placement}/zero_point"] = encoding.params[placement].zero_point
            if placement in encoding.codes:
                arrays[f"{placement}/codes"] = encoding.codes[placement]
        self.store.put(KIND, key, CacheEntry(arrays=arrays, meta=asdict(result)))

    def key(self, encoding: Encoding, stage: str, index: int) -> str:
        """The key of a unit's result: the encoding holds the results of the units before it.

        Crops are in the samples' fingerprint, the batch size of volumes is in the method.
        """
        given = (self.method, self.options.seed, self.options.autocast, self.options.judged, self.objective.value)
        return cache_key(_FORMAT, fptq.__version__, self.samples, given, _numbers(encoding), stage, index)


def _numbers(encoding: Encoding) -> Mapping[str, object]:
    plan = encoding.plan
    return {
        "model": encoding.model_sha256,
        "specs": {str(p): spec for p, spec in plan.specs.items()},
        "weights": sorted(map(str, plan.weights)),
        "ties": [sorted(map(str, tie)) for tie in plan.ties],
        "params": {str(p): params for p, params in encoding.params.items()},
        "codes": {str(p): codes for p, codes in encoding.codes.items()},
        "rewrites": encoding.rewrites,
    }


@dataclass(kw_only=True)
class Log:
    """What is gathered while a reconstruction runs."""

    units: list[UnitResult] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Keep a sentence once."""
        self.notes[text] = None
