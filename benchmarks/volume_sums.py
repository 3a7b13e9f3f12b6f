"""Sums of windows in float16 against float64: the largest error, beside the bound that the documents state.

python benchmarks/volume_sums.py
"""

from __future__ import annotations

import json

import numpy as np

from fptq.feeds import scratch
from fptq.tasks.stitch import Stitcher
from fptq.tasks.store import MemoryStore
from fptq.tasks.windows import WindowGrid

CLASSES, SHAPE, SIZE = 14, (96, 96, 96), (32, 32, 32)


def main() -> None:
    scratch.LARGE = 0  # every sum in float16
    grid = WindowGrid(shape=SHAPE, size=SIZE, overlap=0.5)
    image = np.random.default_rng(0).normal(0, 5, (1, *SHAPE)).astype(np.float32)
    sums = np.empty((CLASSES, *SHAPE), np.float32)

    def finish(first: int, planes: np.ndarray) -> None:
        sums[:, first : first + planes.shape[1]] = planes

    Stitcher(predict=outputs, grid=grid).run(image, MemoryStore(), finish)
    exact, largest = dense(image, grid)
    error = np.abs(sums - exact) / largest
    found = {
        "windows on a voxel": grid.cover,
        "bound": grid.cover * 2.0**-11,
        "largest error": float(error.max()),
        "root mean square": float(np.sqrt(np.square(error).mean())),
        "labels that differ": float((sums.argmax(0) != exact.argmax(0)).mean()),
    }
    print(json.dumps(found, indent=1))


def outputs(windows: np.ndarray) -> np.ndarray:
    """Classes that grow with the intensity, and with the place in the window: windows do not agree on a voxel."""
    ramp = 1 + 0.1 * np.linspace(-1, 1, windows.shape[2])[:, None, None]
    return np.concatenate([windows * ramp * (k - 6) / 3 for k in range(CLASSES)], axis=1).astype(np.float32)


def dense(image: np.ndarray, grid: WindowGrid) -> tuple[np.ndarray, float]:
    """The weighted mean of all windows in float64, and the largest output."""
    total, count, largest = np.zeros((CLASSES, *SHAPE)), np.zeros(SHAPE), 0.0
    for index in range(len(grid)):
        output, weight = outputs(grid.cut(image, index)[None])[0], grid.shares(index).astype(np.float64)
        region = tuple(slice(s, s + n) for s, n in zip(grid.start(index), grid.size, strict=True))
        total[(slice(None), *region)] += output * weight
        count[region] += weight
        largest = max(largest, float(np.abs(output).max()))
    return total / count, largest


if __name__ == "__main__":
    main()
