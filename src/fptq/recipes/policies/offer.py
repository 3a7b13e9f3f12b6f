"""What a policy offers for an activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fptq.graph.model import Model
from fptq.plan.encoding import Encoding
from fptq.recipes.refine import Refined

Change = Callable[[Model, Encoding], tuple[Model, Encoding]]
"""A rewrite of a network with its encoding."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A way to quantize one activation.

    Attributes:
        policy: Name of the policy.
        detail: Which of its forms, in a few words: the same network gets the same ones.
        sqnr_db: What it leaves of the activation itself [dB].
        extra: Multiplications that its products gain, as a share of those they have.
        make: The network with it; None where it cannot be made.
    """

    policy: str
    detail: str
    sqnr_db: float
    extra: float = 0.0
    make: Callable[[Refined], Refined | None]


def rewriting(change: Change) -> Callable[[Refined], Refined]:
    """What makes a network with a rewrite that brings its own numbers: it is not calibrated again."""

    def make(best: Refined) -> Refined:
        model, encoding = change(best.model, best.encoding)
        exact = model if best.exact is best.model else change(best.exact, best.encoding)[0]
        return replace(best, model=model, exact=exact, encoding=encoding)

    return make
