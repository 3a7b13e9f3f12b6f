"""The whole range: nothing is clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import Extremes, Kind, State
from fptq.numerics import QuantizerSpec, UniformParams, params_from_range
from fptq.types import Array


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """Covers the lowest and the highest value that was ever seen."""

    name: ClassVar[str] = "minmax"
    needs: ClassVar[Kind] = Kind.EXTREMES

    def params(self, spec: QuantizerSpec, state: State) -> UniformParams:
        """The quantizer of the full range; a sketch knows it as well."""
        extremes = state.extremes if isinstance(state, Sketch) else state
        if not isinstance(extremes, Extremes):
            raise TypeError(f"{state.kind} does not know the extremes")
        return params_from_range(spec, extremes.low, extremes.high)

    def row_params(self, spec: QuantizerSpec, rows: Array) -> UniformParams:
        """The quantizer of the full range of each row."""
        return params_from_range(spec, rows.min(axis=1), rows.max(axis=1))
