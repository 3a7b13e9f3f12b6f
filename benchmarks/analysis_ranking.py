"""Do Fisher sensitivities rank layers and formats as exact ones do?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from analysis_subjects import Opened
from fptq.analyze import SensitivityOptions, fisher_sensitivity, leave_one_in
from fptq.execute.objective import natural
from fptq.types import Feeds


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Spearman's rank correlation with leave-one-in on the same samples.

    Attributes:
        units: How many layers.
        samples: How many samples.
        by_format: Over the layers, in each format.
        overall: Over all pairs of layer and format.
        interval: 95 % of `overall` over resampled samples (percentile bootstrap).
    """

    units: int
    samples: int
    by_format: Mapping[str, float]
    overall: float
    interval: tuple[float, float]


def ranking(found: Opened, samples: Sequence[Feeds], *, resamples: int = 1000) -> Ranking:
    """Both methods on the same samples.

    Args:
        found: The network.
        samples: What judges.
        resamples: Of the bootstrap.
    """
    objective = natural(found.model)
    options = [SensitivityOptions(objective=objective, seed=index) for index in range(len(samples))]
    # Sample by sample, for the bootstrap: the mean of these is what a call with all of them returns.
    fisher = np.stack(
        [
            fisher_sensitivity(found.executor, found.units, found.encodings, [sample], options=one).loss
            for sample, one in zip(samples, options, strict=True)
        ]
    )
    exact = np.stack(
        [
            leave_one_in(found.executor, found.units, found.encodings, [sample], objective=objective).loss
            for sample in samples
        ]
    )
    generator = np.random.default_rng(0)
    draws = generator.integers(len(samples), size=(resamples, len(samples)))
    spread = [_correlation(fisher[draw].mean(0), exact[draw].mean(0)) for draw in draws]
    low, high = np.quantile(spread, (0.025, 0.975))
    predicted, true = fisher.mean(0), exact.mean(0)
    return Ranking(
        units=len(found.units),
        samples=len(samples),
        by_format={one: _correlation(predicted[:, i], true[:, i]) for i, one in enumerate(found.encodings)},
        overall=_correlation(predicted, true),
        interval=(float(low), float(high)),
    )


def _correlation(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    return float(spearmanr(predicted.ravel(), true.ravel()).statistic)
