"""What an observer is: an estimator from the state of a statistic to the numbers of a quantizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np

from fptq.calibrate.sketch import Histogram, Sketch
from fptq.calibrate.states import Kind, State
from fptq.numerics import QuantizerSpec, UniformParams, params_from_range
from fptq.types import Array


class Observer(Protocol):
    """An estimator for activations. Several can share one run's statistics.

    Attributes:
        name: What it is called in recipes and reports.
        needs: What it must know about a tensor.
    """

    name: ClassVar[str]
    needs: ClassVar[Kind]

    def params(self, spec: QuantizerSpec, state: State) -> UniformParams:
        """The quantizer's numbers.

        Args:
            spec: What the tensor becomes, per tensor or per channel.
            state: A state of the kind that the observer needs.
        """


class WeightObserver(Protocol):
    """An estimator for stored tensors, which are known completely."""

    name: ClassVar[str]

    def row_params(self, spec: QuantizerSpec, rows: Array) -> UniformParams:
        """The numbers of one quantizer for each row.

        Args:
            spec: The quantizer; its granularity is what made the rows.
            rows: f32[G, n], finite.
        """


def params_by_histogram(
    spec: QuantizerSpec, state: State, find: Callable[[Histogram], tuple[float, float]]
) -> UniformParams:
    """The quantizers of the ranges that `find` sees in the histogram of the tensor, or of each channel."""
    if not isinstance(state, Sketch):
        raise TypeError(f"{state.kind} is not a sketch")
    found = np.array([find(histogram) for histogram in state.histograms()], dtype=np.float64)
    shape = state.extremes.low.shape
    return params_from_range(spec, found[:, 0].reshape(shape), found[:, 1].reshape(shape))
