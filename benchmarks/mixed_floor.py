"""How often accuracy control breaks its floor on data that it did not see.

All points of a front are scored once on all samples. A search then sees some of the scores, drawn at random, and what
it chooses is checked on all others; that costs nothing and is repeated many times. Floors are the hardest there are:
the drop of one of the points itself on all samples, a hair less, so that this point is wrong and nearly right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

import fashion
from fptq.execute.overlay import Overlay
from fptq.search import Assignment, front
from fptq.search.accuracy import Floor, control
from layout import Folder
from mixed_control import Judge, written
from mixed_study import Subject, opened
from mixed_subjects import BRAIN, ENGINES, FASHION, colin
from peers.scores import SCORES
from tables import number, table

CONFIDENCE = 0.95
POINTS = 10
RESAMPLES = 2000
"""Of the bootstrap: a fifth of the default, the quantiles' noise averages out over the splits."""
FORMATS: Mapping[str, tuple[str, ...]] = {FASHION: ("w8a8", "w4a8", "w4a4", "w2a4"), BRAIN: ("w8a8",)}
IMAGES, HEADS = 1500, 40
LARGEST = {FASHION: 0.2, BRAIN: 1.0}
"""Size of the most accurate point over the float network's: above it nothing is lost that a search could miss."""
BATCH = 100

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A front whose points were scored on all samples.

    Attributes:
        name: The subject.
        metric: What was scored.
        points: From the cheapest.
        floats: f64[samples], the float network's scores.
        scores: f64[points, samples].
    """

    name: str
    metric: str
    points: tuple[Assignment, ...]
    floats: Scores
    scores: Scores

    @property
    def drops(self) -> Scores:
        """f64[points], mean drops on all samples."""
        return np.asarray((self.floats - self.scores).mean(1))


@dataclass(frozen=True, kw_only=True)
class Broken:
    """Searches with the same floor and number of samples.

    Attributes:
        name: The subject.
        metric: What was scored.
        samples: That a search saw.
        all_samples: All there are.
        max_drop: The floor.
        searches: How many.
        broken: Those whose choice loses more on the samples that it did not see.
        none: Those that chose nothing.
        cost: Mean size of the choices over that of the cheapest point that keeps the floor on all samples.
        evaluations: Mean number of full evaluations.
    """

    name: str
    metric: str
    samples: int
    all_samples: int
    max_drop: float
    searches: int
    broken: int
    none: int
    cost: float
    evaluations: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the rate (Clopper and Pearson 1934)."""
        k, n = self.broken, self.searches
        low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
        return float(low), float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0

    @property
    def allowed(self) -> float:
        """The worst rate of a perfect limit: the samples that judge are few, and lose more where the seen lose less.

        With s the standard deviation of the drop, n of N samples seen and u = (1 - n/N)^1/2, the seen mean differs
        from that of all by s u / n^1/2 and the unseen one by the same times -n/(N - n). A limit that adds
        z s / n^1/2 is passed while the unseen mean exceeds the floor with at most the probability of -z u.
        """
        z = NormalDist().inv_cdf(CONFIDENCE)
        return NormalDist().cdf(-z * math.sqrt(1 - self.samples / self.all_samples))


def scored(name: str, folder: Folder) -> Iterator[Scored]:
    """The fronts of a subject, by metric; from the files of an earlier run where they are there."""
    subject = opened(folder, FORMATS[name], engine=ENGINES[name])
    limits = {"size": LARGEST[name] * subject.floats["size"]}
    points = front(subject.table, "size", points=POINTS, limits=limits)
    kept = folder.root / f"scores_{LARGEST[name]:g}.npz"
    if not kept.exists():
        found = _image_scores(subject, points) if name == FASHION else _head_scores(subject, points, folder)
        np.savez(kept, **found)
    with np.load(kept) as arrays:
        for metric in arrays.files:
            yield Scored(name=name, metric=metric, points=points, floats=arrays[metric][0], scores=arrays[metric][1:])


def _image_scores(subject: Subject, points: Sequence[Assignment]) -> dict[str, Scores]:
    """By metric f64[1 + points, images], the float network first; emulated in torch."""
    import torch

    test = fashion.test_images()
    hooks = [None, *(Overlay(encoding=subject.encoding(point)) for point in points)]
    found: dict[str, list[list[float]]] = {metric: [[] for _ in hooks] for metric in ("right", "probability")}
    with torch.no_grad():
        for start in range(0, IMAGES, BATCH):
            part = slice(start, start + BATCH)
            feeds = {"image": test.normalized(part)}
            for number_of, hook in enumerate(hooks):
                (logits,) = subject.executor.run(feeds, hook=hook).values()
                for metric, rows in found.items():
                    pairs = zip(logits.numpy()[:, None], test.labels[part].numpy(), strict=True)
                    rows[number_of] += [SCORES[metric](one, target) for one, target in pairs]
    return {metric: np.array(rows) for metric, rows in found.items()}


def _head_scores(subject: Subject, points: Sequence[Assignment], folder: Folder) -> dict[str, Scores]:
    """f64[1 + points, heads], Dice against the float network's masks; run in OpenVINO."""
    heads = folder.root / "heads"
    heads.mkdir(exist_ok=True)
    session = Judge.session(folder.float_model)
    for index, feeds in enumerate(colin(HEADS, seed=21)):
        (logits,) = session(feeds).values()
        np.savez(heads / f"{index:05d}.npz", target=logits[0, 0] > 0, **feeds)
    judge, rows = Judge("dice", heads), [np.ones(HEADS)]
    for number_of, point in enumerate(points):
        rows.append(judge(written(subject, point, folder.quantized / "floor" / f"{number_of}.onnx"))[0])
    return {"dice": np.array(rows)}


def broken(front_: Scored, *, samples: int, max_drop: float, searches: int) -> Broken:
    """Search again and again on other samples."""
    lookup = {id(point): row for point, row in zip(front_.points, front_.scores, strict=True)}
    sizes = np.array([point.costs["size"] for point in front_.points])
    keeping = sizes[front_.drops <= max_drop]
    best, wrong, costs, evaluations = float(keeping.min()) if keeping.size else math.inf, 0, [], []
    for number_of in range(searches):
        order = np.random.default_rng((samples, number_of)).permutation(front_.floats.size)
        seen, rest = order[:samples], order[samples:]
        floor = Floor(max_drop=max_drop, confidence=CONFIDENCE, resamples=RESAMPLES, seed=number_of)
        outcome = control(
            front_.points,
            lambda point, seen=seen: lookup[id(point)][seen],  # type: ignore[misc]
            floats=front_.floats[seen],
            floor=floor,
        )
        evaluations.append(outcome.evaluations)
        if outcome.best is None:
            continue
        chosen = outcome.best.assignment
        costs.append(chosen.costs["size"])
        wrong += bool((front_.floats - lookup[id(chosen)])[rest].mean() > max_drop)
    return Broken(
        name=front_.name,
        metric=front_.metric,
        samples=samples,
        all_samples=front_.floats.size,
        max_drop=max_drop,
        searches=searches,
        broken=wrong,
        none=searches - len(costs),
        cost=float(np.mean(costs)) / best if costs else math.nan,
        evaluations=float(np.mean(evaluations)),
    )


def hard_floors(front_: Scored, count: int) -> list[float]:
    """A hair less than the drops of some points, from the most accurate to the cheapest; none below a resolution."""
    drops = np.unique(front_.drops)
    useful = drops[drops > 2e-4]
    chosen = useful[np.unique(np.linspace(0, useful.size - 1, min(count, useful.size)).round().astype(int))]
    return [float(drop) * (1 - 1e-9) for drop in chosen]


def markdown(found: Sequence[Broken]) -> str:
    head = ("subject", "score", "samples seen", "floor", "searches", "broken", "95 % interval", "at worst")
    head += ("none chosen", "size / best", "evaluations")
    return table(head, (_cells(one) for one in found))


def _cells(one: Broken) -> list[str]:
    low, high = one.interval
    return [
        one.name,
        one.metric,
        f"{one.samples} of {one.all_samples}",
        f"{one.max_drop:.4f}",
        str(one.searches),
        f"{100 * one.broken / one.searches:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
        f"{100 * one.allowed:.1f} %",
        f"{100 * one.none / one.searches:.0f} %",
        number(one.cost, 2),
        number(one.evaluations),
    ]


def plain(found: Sequence[Broken]) -> list[dict[str, Any]]:
    return [asdict(one) | {"interval": one.interval, "at_worst": one.allowed} for one in found]
