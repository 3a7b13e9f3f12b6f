"""One network over one volume: direct, or by a sliding window where the volume does not fit its fixed size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fptq.errors import ConfigError, ModelError
from fptq.graph.model import TensorInfo
from fptq.tasks.stitch import Stitcher, accumulator
from fptq.tasks.store import MemoryStore, Store
from fptq.tasks.windows import WindowGrid
from fptq.types import Array, Progress, Runner, silent

_VOXELS = 2**20
"""Voxels of one call where the network takes any batch: about 1 GB of activations at 256 float channels."""


@dataclass(frozen=True, kw_only=True)
class VolumeInput:
    """The input of a network that segments volumes.

    Attributes:
        info: Its name, dtype and shape `[N, C, *S]`.
        window: Window size along each spatial axis where the network takes any size; None: the whole volume.
        overlap: Share of a window that the next one covers again, in [0, 1).
        output: Name of the output to use; None: the first.
        windows_per_call: Where the network takes any batch; None: as many as have 2^20 voxels together.
    """

    info: TensorInfo
    window: tuple[int, ...] | None = None
    overlap: float = 0.5
    output: str | None = None
    windows_per_call: int | None = None

    def __post_init__(self) -> None:
        if self.info.shape is None or len(self.info.shape) < 3:
            raise ConfigError(f"input {self.info}", rule="a segmentation network takes [N, C, *S]")
        if self.window is not None and len(self.window) != self.rank:
            raise ConfigError(f"window {self.window}", rule=f"it has one size for each of {self.rank} axes")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap {self.overlap}", rule="it lies in [0, 1)")

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.info.shape or ()) - 2

    @property
    def sizes(self) -> tuple[int, ...]:
        """The window along each spatial axis; 0: the volume's own size."""
        fixed = (self.info.shape or ())[2:]
        free = self.window or (0,) * self.rank
        return tuple(size if isinstance(size, int) else w for size, w in zip(fixed, free, strict=True))

    def channels_first(self, array: Array, *, name: str) -> Array:
        """An array as `[C, *S]`, with or without its batch and channel axes.

        Args:
            array: The volume.
            name: What it is called in errors.

        Raises:
            ModelError: It has another rank or other channels.
        """
        if array.ndim == self.rank + 2 and array.shape[0] == 1:
            array = array[0]
        if array.ndim == self.rank:
            array = array[None]
        channels = (self.info.shape or ())[1]
        if array.ndim != self.rank + 1 or (isinstance(channels, int) and array.shape[0] != channels):
            raise ModelError(f"{name} has shape {list(array.shape)}", rule=f"the network takes {self.info}")
        return array

    def grid(self, shape: tuple[int, ...]) -> WindowGrid:
        """The windows over a volume of a shape `[*S]`; one where the network takes it whole."""
        size = tuple(w or n for w, n in zip(self.sizes, shape, strict=True))
        return WindowGrid(shape=shape, size=size, overlap=self.overlap)

    def run(self, runner: Runner, image: Array, *, store: Store | None = None, progress: Progress = silent) -> Array:
        """The network's output `[K, *S]` for an image `f32[C, *S]`.

        Windows overlap and are blended with Gaussian weights. The output is float32; one of several windows that would
        take more than 256 MB is float16 and lies in a file.

        Args:
            runner: The network.
            image: The image.
            store: Where the output and the state are kept; None: in memory.
            progress: Told after each window.

        Raises:
            ModelError: The network has no such output, or not one of the image's size.
        """
        if self.grid(image.shape[1:]).shape == self.grid(image.shape[1:]).size:
            return self._direct(runner, image)
        kept = store or MemoryStore()

        def finish(first: int, planes: Array) -> None:
            shape = (len(planes), *image.shape[1:])
            kept.array("output", shape, accumulator(shape))[:, first : first + planes.shape[1]] = planes

        self.stream(runner, image, finish, store=kept, progress=progress)
        output = kept.found("output")
        assert output is not None
        return output

    def stream(
        self,
        runner: Runner,
        image: Array,
        finish: Callable[[int, Array], None],
        *,
        store: Store | None = None,
        progress: Progress = silent,
    ) -> int:
        """The same output plane by plane, without keeping it.

        Args:
            runner: The network.
            image: The image.
            finish: Told the first plane and the outputs `f32[K, n, *S[1:]]` of `n` planes, in order.
            store: Where the state is kept; a run that was interrupted goes on. None: in memory.
            progress: Told after each window.

        Returns:
            The number of output channels.

        Raises:
            ModelError: As for `run`.
        """
        grid = self.grid(image.shape[1:])
        if grid.size == grid.shape:
            output = self._direct(runner, image)
            finish(0, output)
            progress(1, 1, "windows")
            return len(output)
        stitcher = Stitcher(
            predict=partial(self._call, runner),
            grid=grid,
            batch=self._batch,
            told=lambda done: progress(done, len(grid), "windows"),
        )
        return stitcher.run(image, store or MemoryStore(), finish)

    def _direct(self, runner: Runner, image: Array) -> Array:
        output: Array = self._call(runner, image[None])[0]
        if output.shape[1:] != image.shape[1:]:
            raise ModelError(
                f"an output of shape {list(output.shape)} for an image of {list(image.shape)}",
                rule="a segmentation network returns [N, K, *S] on the grid of its input",
            )
        return output

    def _call(self, runner: Runner, batch: Array) -> Array:
        fixed = (self.info.shape or (1,))[0]
        short = -len(batch) % fixed if isinstance(fixed, int) else 0
        # The last windows may not fill a fixed batch.
        full = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)]) if short else batch
        outputs = runner({self.info.name: np.ascontiguousarray(full, self.info.dtype)})
        name = self.output if self.output is not None else next(iter(outputs))
        if name not in outputs:
            raise ModelError(f"no output {name!r}", rule=f"the network returns {', '.join(outputs)}")
        return np.asarray(outputs[name][: len(batch)], np.float32)

    @property
    def _batch(self) -> int:
        batch = (self.info.shape or (1,))[0]
        if isinstance(batch, int):
            return batch
        return self.windows_per_call or max(1, _VOXELS // math.prod(size or _VOXELS for size in self.sizes))
