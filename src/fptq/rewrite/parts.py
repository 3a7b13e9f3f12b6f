"""Nodes that cut an activation into what each region of a piecewise-linear quantizer holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fptq.rewrite.insertion import Insertion
from fptq.types import Array


@dataclass(kw_only=True)
class PartsWriter(Insertion):
    """Cuts one activation of a draft.

    Attributes:
        value: Name of the activation; the new values and tensors begin with it.
    """

    value: str

    def bounds(self, low: Array, high: Array, region: str = "") -> list[ir.Value]:
        """The stored ends of a region, for `clipped` and `beyond`; `region` tells it from others."""
        ends = {f"{self.value}{region}_low": low, f"{self.value}{region}_high": high}
        return [self.stored(name, np.asarray(end, np.float32)) for name, end in ends.items()]

    def clipped(self, source: ir.Value, bounds: Sequence[ir.Value], name: str) -> ir.Value:
        """What lies between the bounds, or the nearer one; the result is called `name` behind the activation's name."""
        return self.part("Clip", [source, *bounds], name, like=source)

    def beyond(self, source: ir.Value, bounds: Sequence[ir.Value], name: str) -> ir.Value:
        """What exceeds the bounds: `x - clip(x)`; arguments as in `clipped`."""
        # A clip of its own: one that the next quantizer alone reads is dropped where that saturates anyway.
        within = self.clipped(source, bounds, f"{name}_within")
        return self.part("Sub", [source, within], name, like=source)

    def part(self, op: str, inputs: Sequence[ir.Value], name: str, *, like: ir.Value, **attributes: int) -> ir.Value:
        """The result of a new node as `op` makes it, whose name follows the activation's."""
        return self.op(op, inputs, f"{self.value}_{name}", like=like, **attributes)
