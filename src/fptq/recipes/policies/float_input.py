"""The activation stays float, its products' weights stay int8: wider than 16 bits, which no engine here multiplies.

ONNX Runtime keeps 16-bit codes but has no kernel for their products; OpenVINO strips them. What becomes of float beside
int8 weights is each engine's own: see `docs/engines.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fptq.recipes.policies.offer import Offer
from fptq.recipes.policies.spots import Spot
from fptq.recipes.workbench import Bench, Refined
from fptq.rewrite import ProductInput


def float_input(spot: Spot, bench: Bench) -> Iterator[Offer]:
    """The only form there is."""

    def make(best: Refined) -> Refined:
        return _without_quantizer(best, spot.cut)

    yield Offer(policy="float input", detail="weights stay int8", sqnr_db=math.inf, make=make)


def _without_quantizer(best: Refined, cut: ProductInput) -> Refined:
    plan = best.encoding.plan.without(*cut.placements)
    # Codes of a bias have the scale of the input's codes.
    plan = replace(plan, int32_bias=plan.int32_bias - set(cut.readers))
    return replace(best, encoding=best.encoding.restricted(plan))
