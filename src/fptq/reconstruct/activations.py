"""Activation quantizers inside a block: which share a scale, and how scales are learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fptq.graph.placement import Placement
from fptq.numerics import UniformParams
from fptq.numerics.spec import QuantizerSpec
from fptq.numerics.torch_uniform import clipped_steps, expanded
from fptq.plan.encoding import Encoding

Group = frozenset[Placement]


def groups_of(encoding: Encoding) -> dict[Placement, Group]:
    """The placements that have one quantizer together: tied ones, and those of one value with equal numbers.

    The latter share one pair of nodes in the file; scales that drift apart would cost a second one.
    """
    alike: dict[object, set[Placement]] = {}
    for placement, spec in encoding.plan.specs.items():
        params = encoding.params[placement]
        numbers = params.scale.tobytes() + params.zero_point.tobytes()
        alike.setdefault((placement.value, spec, numbers), set()).add(placement)
    groups = {placement: frozenset(group) for group in alike.values() for placement in group}
    for tie in encoding.plan.ties:
        joined = frozenset().union(*(groups[placement] for placement in tie))
        groups |= dict.fromkeys(joined, joined)
    return groups


@dataclass(frozen=True, kw_only=True)
class LearnedScale:
    """An activation quantizer whose scale is learned, with its zero point fixed (LSQ, arXiv 1902.08153).

    The paper's factor on the gradient is left out: Adam's steps do not depend on it.

    Attributes:
        spec: The quantizer.
        initial: The scale that calibration found, f32 of the quantizer's own shape.
        stretch: Logarithm of the learned scale over the initial one.
        zero_point: i32 of the same shape.
    """

    spec: QuantizerSpec
    initial: torch.Tensor
    stretch: torch.Tensor
    zero_point: torch.Tensor

    @classmethod
    def of(cls, spec: QuantizerSpec, params: UniformParams, device: str) -> LearnedScale:
        """Starts at the scale of `params`."""
        scale, zero_point = (torch.tensor(part, device=device) for part in (params.scale, params.zero_point))
        stretch = torch.zeros_like(scale).requires_grad_()
        return cls(spec=spec, initial=scale, stretch=stretch, zero_point=zero_point)

    @property
    def scale(self) -> torch.Tensor:
        """The learned scale, of the quantizer's own shape."""
        return self.initial * self.stretch.exp()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = expanded(self.scale, self.spec.granularity, x.shape).to(x.dtype)
        zero_point = expanded(self.zero_point, self.spec.granularity, x.shape)
        low, high = ((end - zero_point).to(x.dtype) for end in (self.spec.qmin, self.spec.qmax))
        return clipped_steps(x / scale, low, high) * scale

    def params(self) -> UniformParams:
        """The numbers that were learned."""
        return UniformParams(scale=self.scale.detach().cpu().numpy(), zero_point=self.zero_point.cpu().numpy())


def learnable(inside: Mapping[Placement, Group], settled: frozenset[Placement]) -> tuple[Group, ...]:
    """The groups whose scale a block may learn.

    A scale belongs to the first block that sees it, for a change would undo what earlier blocks have learned. A tie
    of several values is learned only where all of them are inside: a block cannot tell the range of what it does not
    see.

    Args:
        inside: For every activation quantizer of the block its group.
        settled: Placements whose numbers an earlier block has used.
    """
    found = dict.fromkeys(inside.values())
    return tuple(
        group
        for group in found
        if not group & settled and (len({p.value for p in group}) == 1 or group <= inside.keys())
    )
