"""How close two runners are on the same samples, without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fptq.errors import ModelError
from fptq.types import Array, Feeds, FeedSource, Progress, Runner, silent


@dataclass(frozen=True, kw_only=True)
class OutputAgreement:
    """Agreement of one output, pooled over all samples.

    Attributes:
        sqnr_db: 10 log10(sum ref^2 / sum (ref - other)^2) [dB]; inf for equal outputs, -inf where the other is not
            finite, NaN for whole-number outputs.
        cosine: Cosine of the two outputs as one vector each, in [-1, 1]; NaN as above.
        max_abs_difference: Largest difference of one element, in the output's unit.
        argmax_match: Share of positions with the same largest class (equal values for whole-number outputs);
            NaN where there is no class axis.
    """

    sqnr_db: float
    cosine: float
    max_abs_difference: float
    argmax_match: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of two runners; of several outputs the worst is quoted.

    Attributes:
        outputs: Each output's agreement.
        samples: Number of runs compared.
    """

    outputs: Mapping[str, OutputAgreement]
    samples: int

    @property
    def sqnr_db(self) -> float:
        """The lowest SQNR of the outputs [dB]."""
        return _worst((o.sqnr_db for o in self.outputs.values()), lowest=True)

    @property
    def cosine(self) -> float:
        """The lowest cosine of the outputs."""
        return _worst((o.cosine for o in self.outputs.values()), lowest=True)

    @property
    def max_abs_difference(self) -> float:
        """The largest difference of one element of any output."""
        return _worst((o.max_abs_difference for o in self.outputs.values()), lowest=False)

    @property
    def argmax_match(self) -> float:
        """The lowest share of equal classes of the outputs."""
        return _worst((o.argmax_match for o in self.outputs.values()), lowest=True)


def compare(
    reference: Runner,
    other: Runner,
    feeds: FeedSource,
    *,
    class_axes: Mapping[str, int] | None = None,
    progress: Progress = silent,
) -> Agreement:
    """Run two networks side by side, keeping nothing but sums.

    Args:
        reference: The float network.
        other: The network compared with it, with the same output names.
        feeds: Samples.
        class_axes: Axis of the classes by output name, where the rule does not fit: the last axis of rank 3
            (sequences `[N, T, C]`), otherwise axis 1 (`[N, C]`, `[N, C, *S]`).
        progress: Told after each sample.

    Raises:
        ModelError: An output is missing, has another shape, or the reference is not finite.
    """
    sums: dict[str, _Sums] = {}
    total, samples = len(feeds), 0
    for sample in feeds:
        expected, got = reference(sample), other(sample)
        for name, value in expected.items():
            _check(name, value, got)
            axis = (class_axes or {}).get(name, _class_axis(value))
            sums.setdefault(name, _Sums()).add(value, got[name], axis)
        samples += 1
        progress(samples, total, "agreement with float")
    return Agreement(outputs={name: s.result() for name, s in sums.items()}, samples=samples)


def agreement_of(reference: Array, other: Array) -> OutputAgreement:
    """The agreement of two arrays of one shape, without classes."""
    sums = _Sums()
    sums.add(reference, other, None)
    return sums.result()


@dataclass
class _Sums:
    """Running sums of one output, in float64."""

    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    error: float = 0.0
    largest: float = 0.0
    matches: int = 0
    positions: int = 0
    floating: bool = field(default=True)

    def add(self, reference: Array, other: Array, axis: int | None) -> None:
        self.floating = "float" in reference.dtype.name
        if not self.floating:
            difference = np.abs(reference.astype(np.float64) - other.astype(np.float64))
            self.largest = max(self.largest, float(difference.max(initial=0.0)))
            self._count(reference == other)
            return
        ref, oth = reference.astype(np.float32, copy=False), other.astype(np.float32, copy=False)
        # The subtraction of two close float32 numbers is exact (Sterbenz); only the sums need more digits.
        with np.errstate(all="ignore"):
            difference = ref - oth
            self.signal += _dot(ref, ref)
            self.other += _dot(oth, oth)
            self.product += _dot(ref, oth)
            self.error += _dot(difference, difference)
        self.largest = float(np.maximum(self.largest, np.abs(difference).max(initial=0.0)))
        if axis is not None and ref.shape[axis] > 1:
            self._count(ref.argmax(axis) == oth.argmax(axis))

    def result(self) -> OutputAgreement:
        sqnr = cosine = math.nan
        if self.floating:
            sqnr = _decibel(self.signal, self.error)
            norm = math.sqrt(self.signal) * math.sqrt(self.other) if math.isfinite(self.error) else math.nan
            cosine = self.product / norm if norm > 0 else (1.0 if self.error == 0 else math.nan)
        return OutputAgreement(
            sqnr_db=sqnr,
            cosine=cosine,
            max_abs_difference=self.largest,
            argmax_match=self.matches / self.positions if self.positions else math.nan,
        )

    def _count(self, equal: Array) -> None:
        self.matches += int(np.count_nonzero(equal))
        self.positions += int(equal.size)


def _dot(a: Array, b: Array) -> float:
    return float(np.einsum("i,i->", a.ravel(), b.ravel(), dtype=np.float64, casting="same_kind"))


def _decibel(signal: float, error: float) -> float:
    if not math.isfinite(error):
        return -math.inf
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


def _class_axis(value: Array) -> int | None:
    if value.ndim < 2:
        return None
    return 2 if value.ndim == 3 else 1


def _check(name: str, reference: Array, other: Feeds) -> None:
    if name not in other or other[name].shape != reference.shape:
        has = f"shape {list(other[name].shape)}" if name in other else f"only {', '.join(other)}"
        raise ModelError(
            f"output {name!r} has shape {list(reference.shape)} in one network, {has} in the other",
            rule="networks are compared output by output",
        )
    if "float" in reference.dtype.name and not np.isfinite(reference.astype(np.float32, copy=False)).all():
        raise ModelError(
            f"output {name!r} of the float network has NaN or Inf values",
            rule="the reference must be finite",
            remedy="Check the network and the data in float first",
        )


def _worst(values: object, *, lowest: bool) -> float:
    defined = [v for v in values if not math.isnan(v)]  # type: ignore[attr-defined]
    if not defined:
        return math.nan
    return float(min(defined) if lowest else max(defined))
