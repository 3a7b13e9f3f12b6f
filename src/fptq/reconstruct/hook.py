"""What training sees at every placement of a block: soft weights, learned scales, quantization dropped at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fptq.execute import Overlay
from fptq.graph.placement import Placement
from fptq.reconstruct.activations import LearnedScale
from fptq.reconstruct.method import Method
from fptq.reconstruct.rounding import Rounding


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Chooses between a float value and its quantized self, element by element.

    Attributes:
        method: Says how.
        generator: Source of the choice, on the device of the values.
    """

    method: Method
    generator: torch.Generator

    def __call__(self, exact: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        match self.method.inputs:
            case "float":
                return exact
            case "quantized":
                return quantized
            case "drop":  # QDrop, arXiv 2203.05740, equation 10
                return torch.where(self._random(exact) < self.method.drop_prob, exact, quantized)
            case "mixture":
                return torch.lerp(exact, quantized, self._random(exact))

    def _random(self, like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)


@dataclass(kw_only=True)
class Learner:
    """A hook that sees the variables of a block.

    Attributes:
        roundings: Weights that are learned.
        scales: Activation quantizers whose scale is learned.
        rest: Quantizes everything else that is quantized.
        mixer: Says what is dropped; None: nothing is.
        position: Of the training, 0 to 1.
    """

    roundings: Mapping[Placement, Rounding]
    scales: Mapping[Placement, LearnedScale]
    rest: Overlay
    mixer: Mixer | None
    position: float = 0.0

    def __call__(self, placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        if placement in self.roundings:
            return self.roundings[placement].soft(self.position)
        scale = self.scales.get(placement)
        quantized = self.rest(placement, tensor) if scale is None else scale(tensor)
        stored = placement in self.rest.encoding.plan.weights
        if stored or self.mixer is None or quantized is tensor:
            return quantized
        return self.mixer(tensor, quantized)

    def undropped(self) -> Learner:
        """The same variables with nothing dropped."""
        return Learner(roundings=self.roundings, scales=self.scales, rest=self.rest, mixer=None, position=self.position)
