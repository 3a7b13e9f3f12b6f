"""Ways to quantize an activation that one scale does not fit: one file each, one line each in the table.

A policy makes offers for an activation that loses much: a change to the network, what it leaves of the activation, and
what it is expected to cost. `contest` tries them on the engine and keeps what gains most for its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from fptq.recipes.policies.float_input import float_input
from fptq.recipes.policies.offer import Offer
from fptq.recipes.policies.per_token import per_token
from fptq.recipes.policies.pieces import pieces
from fptq.recipes.policies.smoothing import smoothing
from fptq.recipes.policies.spots import Spot
from fptq.recipes.policies.two_regions import two_regions
from fptq.recipes.workbench import Bench

POLICIES: Mapping[str, Callable[[Spot, Bench], Iterable[Offer]]] = MappingProxyType(
    {
        "smoothing": smoothing,
        "pieces": pieces,
        "two regions": two_regions,
        "per token": per_token,
        "float input": float_input,
    }
)
"""Policies by the names that profiles use."""

__all__ = ["POLICIES", "Offer", "Spot"]
