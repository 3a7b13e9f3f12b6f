"""Weights between float and integer: what is learned about their rounding, and the codes that come of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, assert_never

import torch

from fptq.numerics import UniformParams
from fptq.numerics.spec import QuantizerSpec
from fptq.numerics.torch_uniform import clipped_steps, expanded, round_through
from fptq.reconstruct.method import Method

_ZETA, _GAMMA = 1.1, -0.1  # of the rectified sigmoid (Louizos et al. 2018, arXiv 1712.01312)
_DECIDED = 0.01
ALL_FIXED = 0.9  # position in training at which progressive rounding has reached every weight


@dataclass(frozen=True, kw_only=True)
class LearnedGrid:
    """The integer grid of a weight; its scale may be learned.

    Attributes:
        spec: The quantizer.
        shape: The weight's.
        initial: f32 scale, of the quantizer's own shape.
        stretch: Logarithm of the learned scale over the initial one, of the same shape.
        low: Lowest step from the zero point, i.e. qmin - zero_point; broadcasts against the weight.
        high: Highest step.
    """

    spec: QuantizerSpec
    shape: tuple[int, ...]
    initial: torch.Tensor
    stretch: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, spec: QuantizerSpec, params: UniformParams) -> LearnedGrid:
        """The grid that a calibration found for a weight."""
        scale, zero_point = (torch.tensor(part, device=weight.device) for part in (params.scale, params.zero_point))
        spread = expanded(zero_point, spec.granularity, weight.shape)
        return cls(
            spec=spec,
            shape=tuple(weight.shape),
            initial=scale.to(weight.dtype),
            stretch=torch.zeros_like(scale, dtype=weight.dtype).requires_grad_(),
            low=(spec.qmin - spread).to(weight.dtype),
            high=(spec.qmax - spread).to(weight.dtype),
        )

    @property
    def own_scale(self) -> torch.Tensor:
        """The learned scale, of the quantizer's own shape."""
        return self.initial * self.stretch.exp()

    @property
    def scale(self) -> torch.Tensor:
        """The learned scale; broadcasts against the weight."""
        return expanded(self.own_scale, self.spec.granularity, self.shape)

    def clipped(self, steps: torch.Tensor) -> torch.Tensor:
        """Steps within the range of codes."""
        return torch.clamp(steps, self.low, self.high)


class Rounding(Protocol):
    """A weight whose rounding is learned."""

    @property
    def grid(self) -> LearnedGrid:
        """Where its codes lie."""

    @property
    def variables(self) -> list[torch.Tensor]:
        """What is learned, the scale apart."""

    def soft(self, position: float) -> torch.Tensor:
        """The weight as training sees it.

        Args:
            position: Of the training, 0 at its start, 1 at its end.
        """

    def penalty(self, beta: float) -> torch.Tensor:
        """f32[]: the sum over weights of what is lost by rounding that is not decided."""

    def undecided(self) -> float:
        """Share of weights whose rounding is not decided."""

    def steps(self) -> torch.Tensor:
        """Whole numbers: codes minus the zero point."""


def rounding_of(weight: torch.Tensor, grid: LearnedGrid, method: Method) -> Rounding:
    """The rounding that a method learns for a weight."""
    match method.rounding:
        case "sigmoid":
            return SigmoidRounding.of(weight, grid)
        case "straight-through":
            return StraightThrough.of(weight, grid)
        case "progressive":
            return Progressive.of(weight, grid, start=method.warm_up)
        case "flexround":
            return FlexRound.of(weight, grid)
        case _:
            assert_never(method.rounding)


def rectified_sigmoid(alpha: torch.Tensor) -> torch.Tensor:
    """`clip(sigmoid(alpha) (zeta - gamma) + gamma, 0, 1)`, AdaRound's h (arXiv 2004.10568, equation 23)."""
    return torch.clamp(torch.sigmoid(alpha) * (_ZETA - _GAMMA) + _GAMMA, 0, 1)


@dataclass(frozen=True, kw_only=True)
class SigmoidRounding:
    """Down or up: `scale * clip(floor(w / scale) + h(alpha))` (AdaRound, arXiv 2004.10568).

    The floor is taken once, with the scale that calibration found; a learned scale moves the whole grid (Genie-M,
    arXiv 2212.04780).

    Attributes:
        grid: Where the codes lie.
        base: `floor(w / scale)`.
        alpha: Learned; the sign decides.
    """

    grid: LearnedGrid
    base: torch.Tensor
    alpha: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, grid: LearnedGrid) -> SigmoidRounding:
        """Alpha such that the soft weight is the weight itself, where the range of codes covers it."""
        with torch.no_grad():
            ratio = weight / grid.scale
            base = torch.floor(ratio)
            alpha = -torch.log((_ZETA - _GAMMA) / (ratio - base - _GAMMA) - 1)
        return cls(grid=grid, base=base, alpha=alpha.requires_grad_())

    @property
    def variables(self) -> list[torch.Tensor]:
        return [self.alpha]

    def soft(self, position: float) -> torch.Tensor:
        return self.grid.clipped(self.base + rectified_sigmoid(self.alpha)) * self.grid.scale

    def penalty(self, beta: float) -> torch.Tensor:
        return (1 - (2 * rectified_sigmoid(self.alpha) - 1).abs().pow(beta)).sum()

    def undecided(self) -> float:
        with torch.no_grad():
            h = rectified_sigmoid(self.alpha)
            return float(((h > _DECIDED) & (h < 1 - _DECIDED)).float().mean())

    def steps(self) -> torch.Tensor:
        return self.grid.clipped(self.base + (self.alpha.detach() >= 0))


@dataclass(frozen=True, kw_only=True)
class StraightThrough:
    """To any code: a latent weight is rounded, and gradients pass the rounding (Bengio et al. 2013, arXiv 1308.3432).

    Attributes:
        grid: Where the codes lie.
        latent: `w / scale`, learned.
    """

    grid: LearnedGrid
    latent: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, grid: LearnedGrid) -> StraightThrough:
        """A latent weight that is the weight itself, where the range of codes covers it."""
        with torch.no_grad():
            latent = grid.clipped(weight / grid.scale)
        return cls(grid=grid, latent=latent.requires_grad_())

    @property
    def variables(self) -> list[torch.Tensor]:
        return [self.latent]

    def soft(self, position: float) -> torch.Tensor:
        return clipped_steps(self.latent, self.grid.low, self.grid.high) * self.grid.scale

    def penalty(self, beta: float) -> torch.Tensor:
        return self.latent.new_zeros(())

    def undecided(self) -> float:
        return 0.0

    def steps(self) -> torch.Tensor:
        return self.grid.clipped(torch.round(self.latent.detach()))


@dataclass(frozen=True, kw_only=True)
class Progressive:
    """To any code: weights move freely, and step by step those that are nearest to a code stay there for good.

    Our reading of AE-QDrop's progressive optimisation (Electronics 2024, 13(3) 644), whose formula is not published;
    as in INQ (Zhou et al. 2017, arXiv 1702.03044), the weights that are left make up for those that are fixed.

    Attributes:
        grid: Where the codes lie.
        latent: `w / scale`, learned.
        start: Position in training at which rounding sets in.
    """

    grid: LearnedGrid
    latent: torch.Tensor
    start: float

    @classmethod
    def of(cls, weight: torch.Tensor, grid: LearnedGrid, *, start: float) -> Progressive:
        """A latent weight that is the weight itself, where the range of codes covers it."""
        return cls(grid=grid, latent=StraightThrough.of(weight, grid).latent, start=start)

    @property
    def variables(self) -> list[torch.Tensor]:
        return [self.latent]

    def soft(self, position: float) -> torch.Tensor:
        share = min(1.0, max(0.0, position - self.start) / max(1e-9, ALL_FIXED - self.start))
        code = torch.round(self.latent.detach())
        fixed = (code - self.latent.detach()).abs() < 0.5 * share
        return self.grid.clipped(torch.where(fixed, code, self.latent)) * self.grid.scale

    def penalty(self, beta: float) -> torch.Tensor:
        return self.latent.new_zeros(())

    def undecided(self) -> float:
        return math.nan

    def steps(self) -> torch.Tensor:
        return self.grid.clipped(torch.round(self.latent.detach()))


@dataclass(frozen=True, kw_only=True)
class FlexRound:
    """By learned divisors: `scale * clip(round(w / (scale S)))`, S > 0 by element and along two axes.

    Source: Lee et al. 2023, arXiv 2306.00317, equations 2 and 3. All divisors start at 1 and are learned as
    logarithms.

    Attributes:
        grid: Where the codes lie.
        weight: The float weight.
        divisors: Logarithms: one for each element, then for each index of the first and of the second axis.
    """

    grid: LearnedGrid
    weight: torch.Tensor
    divisors: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, weight: torch.Tensor, grid: LearnedGrid) -> FlexRound:
        """Divisors of 1: nearest rounding."""
        sizes = list(enumerate(weight.shape))
        shapes = [tuple(weight.shape), *([n if at == axis else 1 for at, n in sizes] for axis, _ in sizes[:2])]
        return cls(grid=grid, weight=weight, divisors=[weight.new_zeros(s).requires_grad_() for s in shapes])

    @property
    def variables(self) -> list[torch.Tensor]:
        return self.divisors

    def soft(self, position: float) -> torch.Tensor:
        return clipped_steps(self._ratio(), self.grid.low, self.grid.high) * self.grid.scale

    def penalty(self, beta: float) -> torch.Tensor:
        return self.weight.new_zeros(())

    def undecided(self) -> float:
        return math.nan

    def steps(self) -> torch.Tensor:
        with torch.no_grad():
            return self.grid.clipped(round_through(self._ratio()))

    def _ratio(self) -> torch.Tensor:
        total = self.divisors[0]
        for divisor in self.divisors[1:]:
            total = total + divisor
        return self.weight / (self.grid.scale * total.exp())
