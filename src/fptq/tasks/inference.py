"""One network over one volume: direct, or by a sliding window where the volume does not fit its fixed size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fptq.errors import ConfigError, ModelError
from fptq.feeds.optional import optional
from fptq.graph.model import TensorInfo
from fptq.types import Array, Runner

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class VolumeInput:
    """The input of a network that segments volumes.

    Attributes:
        info: Its name, dtype and shape `[N, C, *S]`.
        window: Window size along each spatial axis where the network takes any size; None: the whole volume.
        overlap: Share of a window that the next one covers again, in [0, 1).
        output: Name of the output to use; None: the first.
    """

    info: TensorInfo
    window: tuple[int, ...] | None = None
    overlap: float = 0.5
    output: str | None = None

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

    def run(self, runner: Runner, image: Array) -> Array:
        """The network's output `f32[K, *S]` for an image `f32[C, *S]`.

        Windows overlap and are blended with Gaussian weights (MONAI).

        Raises:
            MissingExtra: The image does not fit the network's fixed size, and MONAI is not installed.
            ModelError: The network has no such output, or not one of the image's size.
        """
        sizes = tuple(w or n for w, n in zip(self.sizes, image.shape[1:], strict=True))
        if sizes == image.shape[1:]:
            output = self._call(runner, image[None])[0]
        else:
            output = self._slide(lambda batch: self._call(runner, batch), image, sizes)
        if output.shape[1:] != image.shape[1:]:
            raise ModelError(
                f"an output of shape {list(output.shape)} for an image of {list(image.shape)}",
                rule="a segmentation network returns [N, K, *S] on the grid of its input",
            )
        return np.asarray(output, np.float32)

    def _slide(self, predict: Callable[[Array], Array], image: Array, sizes: tuple[int, ...]) -> Array:
        inferers = optional("monai.inferers", extra="monai", purpose="sliding-window inference")
        torch = optional("torch", extra="torch", purpose="sliding-window inference")

        def predictor(batch: Tensor) -> Tensor:
            result: Tensor = torch.from_numpy(np.ascontiguousarray(predict(batch.numpy()), np.float32))
            return result

        output = inferers.sliding_window_inference(
            torch.from_numpy(np.ascontiguousarray(image[None], np.float32)),
            roi_size=sizes,
            sw_batch_size=self._batch,
            predictor=predictor,
            overlap=self.overlap,
            mode="gaussian",
        )
        return np.asarray(output[0].numpy())

    def _call(self, runner: Runner, batch: Array) -> Array:
        short = -len(batch) % self._batch
        # The last windows may not fill a fixed batch.
        full = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)]) if short else batch
        outputs = runner({self.info.name: np.ascontiguousarray(full, self.info.dtype)})
        name = self.output if self.output is not None else next(iter(outputs))
        if name not in outputs:
            raise ModelError(f"no output {name!r}", rule=f"the network returns {', '.join(outputs)}")
        return np.asarray(outputs[name])[: len(batch)]

    @property
    def _batch(self) -> int:
        batch = (self.info.shape or (1,))[0]
        return batch if isinstance(batch, int) else 1
