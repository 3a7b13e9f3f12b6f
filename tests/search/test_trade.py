"""The rule that trades time for accuracy, on timings as data."""

from __future__ import annotations

import numpy as np

from fptq.engines.benchmark import Timing, Timings
from fptq.search.trade import Contender, is_better, preferred

ROUNDS = 15
CALM = (0.0,) * ROUNDS


def contender(ms: float, sqnr_db: float, *, spread: float = 0.0, seed: int = 0) -> Contender:
    noise = np.random.default_rng(seed).uniform(1, 1 + spread, ROUNDS)
    timing = Timing(samples=tuple(ms * noise), waited=CALM)
    return Contender(timings=Timings(by_load=(timing,)), speedups=(100 / ms,), sqnr_db=sqnr_db)


def test_of_equally_accurate_ones_the_faster_is_taken() -> None:
    assert preferred({"a": contender(30.0, 39.2), "b": contender(29.0, 39.0)}) == "b"


def test_a_few_per_cent_are_not_worth_many_db() -> None:
    assert preferred({"products": contender(30.0, 39.0), "all": contender(27.5, 31.2)}) == "products"


def test_much_time_is_worth_a_few_db() -> None:
    assert preferred({"products": contender(40.0, 39.0), "all": contender(30.0, 35.0)}) == "all"


def test_noise_does_not_buy_accuracy() -> None:
    """The same medians that decide when they are calm do not when the rounds disagree."""
    fine, fast = contender(40.0, 39.0), contender(35.0, 36.0)
    assert preferred({"fine": fine, "fast": fast}) == "fast"
    fine, fast = contender(40.0, 39.0, spread=0.5), contender(35.0, 36.0, spread=0.5, seed=1)
    assert fast.timings.median_ms < fine.timings.median_ms
    assert preferred({"fine": fine, "fast": fast}) == "fine"


def test_a_lighter_form_must_not_lose_accuracy_for_little() -> None:
    whole = contender(30.0, 35.0)
    assert is_better(contender(30.1, 36.0), whole)
    assert not is_better(contender(30.1, 35.0), whole)
    assert is_better(contender(29.0, 35.0), whole)
    assert not is_better(contender(29.0, 33.0), whole)
