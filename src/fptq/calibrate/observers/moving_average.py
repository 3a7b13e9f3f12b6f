"""Mean of the extremes of each run: one outlying run does not set the range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fptq.calibrate.states import BatchExtremes, Kind, State
from fptq.numerics import QuantizerSpec, UniformParams, params_from_range


@dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """Covers the mean over runs of the lowest and of the highest value.

    Every run counts the same, so unlike an exponential average it does not depend on their order.
    """

    name: ClassVar[str] = "moving_average"
    needs: ClassVar[Kind] = Kind.BATCH_EXTREMES

    def params(self, spec: QuantizerSpec, state: State) -> UniformParams:
        """The quantizer of the mean range."""
        if not isinstance(state, BatchExtremes):
            raise TypeError(f"{state.kind} does not know the extremes of each run")
        return params_from_range(spec, state.mean_low, state.mean_high)
