"""Quantization as an overlay on a pure run: nothing in the model changes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from fptq.execute.executor import Hook
from fptq.graph.placement import Placement
from fptq.numerics.torch_uniform import Numbers, Packed, pack, packed_codes, quantized_by
from fptq.plan.encoding import Encoding

Seen = Callable[[Placement, torch.Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A hook that fake-quantizes the placements of an encoding; weights with learned codes become those.

    Attributes:
        encoding: What becomes what.
        only: Placements to quantize; None: all of them.
        weights: Stored tensors quantized once, as integers: they are the same in every run. Filled as they are met.
        numbers: Of activations with one scale, which small layers would wait for. Filled likewise.
    """

    encoding: Encoding
    only: Collection[Placement] | None = None
    weights: dict[Placement, Packed] = field(default_factory=dict, repr=False)
    numbers: dict[Placement, Numbers] = field(default_factory=dict, repr=False)

    def restricted(self, only: Collection[Placement]) -> Overlay:
        """The overlay for some placements; quantized weights are shared."""
        return Overlay(encoding=self.encoding, only=frozenset(only), weights=self.weights, numbers=self.numbers)

    def __call__(self, placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        spec = self.encoding.plan.specs.get(placement)
        if spec is None or (self.only is not None and placement not in self.only):
            return tensor
        if placement not in self.encoding.plan.weights or tensor.requires_grad:
            return quantized_by(tensor, self._numbers(placement, tensor))
        if placement not in self.weights:
            self.weights[placement] = self._packed(placement, tensor)
        return self.weights[placement].unpacked()

    def _numbers(self, placement: Placement, tensor: torch.Tensor) -> Numbers:
        spec, params = self.encoding.plan.specs[placement], self.encoding.params[placement]
        known = self.numbers.get(placement)
        if known is None or (known.scale.dtype, known.scale.device) != (tensor.dtype, tensor.device):
            known = Numbers.of(tensor, spec, params)
            if not params.scale.shape:
                self.numbers[placement] = known
        return known

    def _packed(self, placement: Placement, tensor: torch.Tensor) -> Packed:
        """A stored tensor by its learned codes, or rounded to nearest."""
        spec, params = self.encoding.plan.specs[placement], self.encoding.params[placement]
        codes = self.encoding.codes.get(placement)
        return pack(tensor, spec, params) if codes is None else packed_codes(codes, spec, params, like=tensor)


def watching(see: Seen) -> Hook:
    """A hook that looks at every value and changes none."""

    def hook(placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        see(placement, tensor)
        return tensor

    return hook
