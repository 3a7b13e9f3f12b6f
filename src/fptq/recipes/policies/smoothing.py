"""Logarithmic equalization of one norm: channels that stand out are pulled in there, and made up for in the weights.

Source of the rule: Li et al., FPTQ, arXiv 2308.15987, chooses by the largest value of an activation: below 15 one fixed
scale, up to 150 equalization, beyond it a scale for each token. These numbers belong to one family of networks; here
equalization is offered where the largest channel is `STANDS_OUT` times the median one, and measuring chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fptq.calibrate import Statistics, collect, needed, solve
from fptq.graph.placement import Placement
from fptq.numerics import fake_quantize
from fptq.plan.plan import Plan
from fptq.recipes.observers import calibration_options
from fptq.recipes.policies.offer import Offer
from fptq.recipes.policies.spots import Spot
from fptq.recipes.refine import EFFORTS
from fptq.recipes.workbench import Bench, Refined
from fptq.rewrite import logarithmically_smoothed, smooth_readers
from fptq.rewrite.smooth import logarithmic_factors

STANDS_OUT = 4.0
"""The largest channel over the median one, from which there is something to level."""


def smoothing(spot: Spot, bench: Bench) -> Iterator[Offer]:
    """Offered behind a norm whose channels differ, by recipes that calibrate such a network again."""
    if not EFFORTS[bench.problem.recipe.recipe].calibrates_again:
        return
    largest = np.maximum(-spot.low, spot.high)
    stands_out = largest.max() >= STANDS_OUT * np.median(largest)
    readers = smooth_readers(bench.best.model, spot.cut.readers[0])
    if not stands_out or not readers.issuperset(spot.cut.readers):
        return
    factors = logarithmic_factors(largest).astype(np.float32)
    yield Offer(
        policy="smoothing",
        detail=f"logarithmic, largest channel {largest.max() / np.median(largest):.3g} times the median",
        sqnr_db=_left(spot, factors),
        make=lambda best: _smoothed(best, readers, bench),
    )


def _left(spot: Spot, factors: np.ndarray) -> float:
    """What one scale for the levelled channels leaves, over their full range."""
    from fptq.numerics import params_from_range

    rows = spot.rows / factors
    params = params_from_range(spot.cut.spec, float(rows.min()), float(rows.max()))
    return spot.left_by(fake_quantize(rows, spot.cut.spec, params) * factors)


def _smoothed(best: Refined, readers: frozenset[str], bench: Bench) -> Refined | None:
    """The network with the norm in front of these products equalized, and new numbers where it made a difference."""
    model = logarithmically_smoothed(best.model, bench.problem.calibration, readers=readers)
    if model is None:
        return None
    plan = best.encoding.plan
    part = plan.only(*_touched(plan, readers))
    options = calibration_options(bench.problem.recipe, best.observers, bench.problem.threads)
    asked = needed(part, [options.observer])
    seen = collect(
        model, asked, bench.problem.calibration, options=options.run, store=bench.problem.store, progress=bench.progress
    )
    found = solve(model, part, seen, options=options)
    encoding = replace(best.encoding, params={**best.encoding.params, **found.params}, model_sha256=model.sha256)
    exact = model
    if best.exact is not best.model:
        exact = logarithmically_smoothed(best.exact, bench.problem.calibration, readers=readers) or best.exact
    statistics = Statistics(states={**best.statistics.states, **seen.states}, samples=best.statistics.samples)
    return replace(best, model=model, exact=exact, encoding=encoding, statistics=statistics)


def _touched(plan: Plan, readers: frozenset[str]) -> frozenset[Placement]:
    """The inputs and the weights of these products, with what shares their scale."""
    return frozenset().union(*(plan.tied(p) for p in plan.specs if p.consumer in readers))
