"""What is asked about tensors, and the answers of a set of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fptq.cache import CacheEntry
from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import BatchExtremes, Extremes, Kind, Reading, State
from fptq.errors import ConfigError
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec
from fptq.types import Array

STATES: Mapping[Kind, type[State]] = MappingProxyType(
    {Kind.EXTREMES: Extremes, Kind.BATCH_EXTREMES: BatchExtremes, Kind.SKETCH: Sketch}
)


@dataclass(frozen=True)
class Statistic:
    """Something small to know about a tensor.

    Attributes:
        value: Name of the tensor.
        kind: What to know.
        axis: One state for each index of this axis; None: one for the tensor.
    """

    value: str
    kind: Kind
    axis: int | None = None

    @classmethod
    def needed(cls, value: str, spec: QuantizerSpec, kind: Kind) -> Statistic:
        """The statistic from which a quantizer of `value` can be found.

        Raises:
            ConfigError: The spec is per block: activations have no stored blocks.
        """
        match spec.granularity:
            case PerTensor():
                return cls(value, kind)
            case PerChannel(axis=axis):
                return cls(value, kind, axis)
            case PerBlock():
                raise ConfigError(
                    f"activation {value!r} is to be quantized as {spec}",
                    rule="only weights are quantized per block",
                    remedy="Use per tensor or per channel",
                )


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """States after some samples.

    Attributes:
        states: One for each statistic that was asked for; none before the first sample.
        samples: Content hashes of the samples.
    """

    states: Mapping[Statistic, State] = field(default_factory=lambda: MappingProxyType({}))
    samples: frozenset[str] = frozenset()

    @classmethod
    def of(cls, readings: Mapping[Statistic, Reading], sample: str) -> Statistics:
        """The states after one sample."""
        states = {statistic: STATES[statistic.kind].of(reading) for statistic, reading in readings.items()}
        return cls(states=states, samples=frozenset({sample}))

    def merged(self, other: Statistics) -> Statistics:
        """The states of both sets of samples, equal to those of one run over all of them.

        Raises:
            ValueError: They share a sample, which would count twice, or do not know the same statistics.
        """
        if not (self.samples and other.samples):
            return self if self.samples else other
        if self.samples & other.samples:
            raise ValueError(f"{len(self.samples & other.samples)} samples are in both statistics")
        if self.states.keys() != other.states.keys():
            raise ValueError("statistics of different tensors cannot be merged")
        states = {statistic: state.merged(other.states[statistic]) for statistic, state in self.states.items()}
        return Statistics(states=states, samples=self.samples | other.samples)

    def to_entry(self) -> CacheEntry:
        """The statistics as a cache entry."""
        arrays: dict[str, Array] = {}
        rows: list[dict[str, Any]] = []
        for number, (statistic, state) in enumerate(self.states.items()):
            rows.append({"value": statistic.value, "kind": statistic.kind.value, "axis": statistic.axis})
            arrays |= {f"{number}/{name}": array for name, array in state.to_arrays().items()}
        return CacheEntry(arrays=arrays, meta={"statistics": rows, "samples": sorted(self.samples)})

    @classmethod
    def from_entry(cls, entry: CacheEntry) -> Statistics:
        """The inverse of `to_entry`."""
        arrays: dict[str, dict[str, Array]] = {}
        for path, array in entry.arrays.items():
            number, _, name = path.partition("/")
            arrays.setdefault(number, {})[name] = array
        states: dict[Statistic, State] = {}
        for index, row in enumerate(entry.meta["statistics"]):
            kind = Kind(row["kind"])
            states[Statistic(row["value"], kind, row["axis"])] = STATES[kind].from_arrays(arrays[str(index)])
        return cls(states=states, samples=frozenset(entry.meta["samples"]))
