"""What a policy offers for an activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fptq.recipes.workbench import Refined
from fptq.rewrite import Change, applied


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


def rewriting(*changes: Change) -> Callable[[Refined], Refined]:
    """What makes a network with rewrites that bring their own numbers: it is not calibrated again."""

    def make(best: Refined) -> Refined:
        model, encoding = applied(best.model, best.encoding, *changes)
        exact = model if best.exact is best.model else applied(best.exact, best.encoding, *changes)[0]
        return replace(best, model=model, exact=exact, encoding=encoding)

    return make
