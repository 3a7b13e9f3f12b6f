"""The integer program on made-up networks of 500 layers and 5 formats: how long, how close to the bound."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fptq.errors import BudgetError
from fptq.search import Options, solve
from fptq.search.baselines import greedy, uniform
from fptq.search.table import monotone
from tables import number, table

LAYERS = 500
FORMATS = {"float": (32, 32), "w8a8": (8, 8), "w4a8": (4, 8), "w4a4": (4, 4), "w2a4": (2, 4)}
SEEDS = range(6)
SIZES = (0.3, 0.2, 0.15, 0.1)
BOPS = (0.05, 0.03)
"""Limits as fractions of what the float network costs."""


@dataclass(frozen=True, kw_only=True)
class Solved:
    """One program.

    Attributes:
        seed: Of the table.
        limits: As fractions of the float network's costs.
        seconds: Of `solve`.
        cpu_s: Of all threads; on a shared machine what the time would be.
        gap: Proven: a better assignment has at most this fraction less loss.
        loss: Of the integer program.
        uniform: Loss of the best single format, over that of the integer program; infinite where none meets the limits.
        greedy: Likewise, of the greedy descent.
    """

    seed: int
    limits: Mapping[str, float]
    seconds: float
    cpu_s: float
    gap: float
    loss: float
    uniform: float
    greedy: float


def made_up(seed: int) -> Options:
    """A table like those of real networks.

    Sizes and multiplications follow log-normal distributions over some four decades and are correlated, as in a
    network that halves its resolution and doubles its channels. Losses fall by 6 dB for each bit, from layer to
    layer they differ by some eight decades, more in layers with few weights; noise breaks every rule a little.
    """
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 1, LAYERS)
    weights = np.exp(10 + 1.6 * common + 0.8 * rng.normal(0, 1, LAYERS))
    multiplications = weights * np.exp(4 - 1.0 * common + 1.2 * rng.normal(0, 1, LAYERS))
    sensitivity = np.exp(-6 - 0.8 * common + 3.0 * rng.normal(0, 1, LAYERS))
    activations = np.exp(2.0 * rng.normal(0, 1, LAYERS))
    bits = np.array([*FORMATS.values()], dtype=np.float64)
    noise = np.exp(0.4 * rng.normal(0, 1, (LAYERS, len(FORMATS))))
    errors = 4.0 ** -bits[:, 0] + activations[:, None] * 4.0 ** -bits[:, 1]
    loss = np.where(bits[:, 0] == 32, 0.0, sensitivity[:, None] * errors * noise)
    return Options(
        items=tuple(f"layer{index}" for index in range(LAYERS)),
        formats=tuple(FORMATS),
        loss=monotone(loss),
        costs={
            "size": np.outer(weights, bits[:, 0] / 8),
            "bops": np.outer(multiplications, bits.prod(1)),
        },
    )


def measured() -> Iterator[Solved]:
    """All seeds and limits."""
    wanted: list[dict[str, float]] = [{"size": size} for size in SIZES]
    wanted += [{"bops": bops} for bops in BOPS]
    wanted += [{"size": size, "bops": bops} for size, bops in itertools.product(SIZES[1:], BOPS)]
    for seed in SEEDS:
        options = made_up(seed)
        for fractions in wanted:
            if (found := _solved(options, fractions, seed)) is not None:
                yield found


def _solved(options: Options, fractions: Mapping[str, float], seed: int) -> Solved | None:
    limits = {name: share * float(options.costs[name][:, 0].sum()) for name, share in fractions.items()}
    start, before = time.perf_counter(), time.process_time()
    try:
        best = solve(options, limits)
    except BudgetError:
        return None
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - before
    others = [one.loss / best.loss if one else np.inf for one in (uniform(options, limits), greedy(options, limits))]
    return Solved(
        seed=seed,
        limits=dict(fractions),
        seconds=seconds,
        cpu_s=cpu_s,
        gap=best.gap,
        loss=best.loss,
        uniform=others[0],
        greedy=others[1],
    )


def summary(found: Sequence[Solved]) -> dict[str, Any]:
    """What the bar needs, and every program."""
    seconds = np.array([one.seconds for one in found])
    return {
        "layers": LAYERS,
        "formats": list(FORMATS),
        "programs": len(found),
        "seconds_median": float(np.median(seconds)),
        "seconds_max": float(seconds.max()),
        "cpu_s_max": max(one.cpu_s for one in found),
        "gap_max": max(one.gap for one in found),
        "all": [asdict(one) for one in found],
    }


def markdown(found: Sequence[Solved]) -> str:
    """One line for each kind of limit."""
    groups: dict[tuple[tuple[str, float], ...], list[Solved]] = {}
    for one in found:
        groups.setdefault(tuple(one.limits.items()), []).append(one)
    head = (
        "limits",
        "programs",
        "time median [s]",
        "max [s]",
        "CPU max [s]",
        "largest gap",
        "uniform / program",
        "greedy / program",
    )
    return table(head, (_cells(limits, ones) for limits, ones in groups.items()))


def _cells(limits: Sequence[tuple[str, float]], ones: Sequence[Solved]) -> list[str]:
    seconds = [one.seconds for one in ones]
    return [
        ", ".join(f"{name} {share:g}x" for name, share in limits),
        str(len(ones)),
        number(float(np.median(seconds)), 2),
        number(max(seconds), 2),
        number(max(one.cpu_s for one in ones), 2),
        f"{max(one.gap for one in ones):.1e}",
        _ratio([one.uniform for one in ones]),
        _ratio([one.greedy for one in ones]),
    ]


def _ratio(values: Sequence[float]) -> str:
    known = [value for value in values if np.isfinite(value)]
    missing = f", none {len(values) - len(known)}x" if len(known) < len(values) else ""
    return f"{np.median(known):.4g}{missing}" if known else "none fits"
