"""From a network's outputs to a mask on the scan's own grid, a few planes or one channel at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fptq.errors import ConfigError, ModelError
from fptq.feeds.preprocess import InvertiblePreprocess, Preprocess, PreprocessSpec
from fptq.tasks.cases import Case
from fptq.tasks.inference import VolumeInput
from fptq.tasks.store import MemoryStore, Store
from fptq.types import Array, Progress, Runner, silent

_POSITIVE, _LIKELY, _NO_PROBABILITY = 1, 2, 4
# A quantizer's range may pass 1 by a step.
_LOW, _HIGH = -0.01, 1.01


@dataclass(frozen=True, kw_only=True)
class MaskMaker:
    """Decides the class of each voxel.

    Attributes:
        network: The network's input and its windows.
        preprocess: Where its outputs are brought back from.
        threshold: As for `SegmentationTask`.
    """

    network: VolumeInput
    preprocess: Preprocess | None = None
    threshold: float | None = None

    def mask(
        self, runner: Runner, case: Case, image: Array, *, store: Store | None = None, progress: Progress = silent
    ) -> tuple[Array, int]:
        """The mask `u8[*S]` of a case on its own grid, and the number of output channels.

        Where each voxel of the network's grid is one of the scan's, classes are decided as planes are completed, and no
        volume of outputs is kept. Otherwise outputs are interpolated, channel by channel, before they are decided.

        Args:
            runner: The network.
            case: The scan.
            image: The scan as the network takes it, `f32[C, *S]`.
            store: Where the state is kept; None: in memory.
            progress: Told after each window.

        Raises:
            ConfigError: The mask is not on the scan's grid.
            ModelError: The outputs are not those of a segmentation network.
        """
        kept = store or MemoryStore()
        spec = self.preprocess
        if isinstance(spec, InvertiblePreprocess) and not self._keeps_voxels(case):
            outputs = self.network.run(runner, image, store=kept, progress=progress)
            _check_count(len(outputs))
            inverted = _inverted(spec, outputs, case)
            return self._of_channels(inverted, len(outputs), _grid(case, self.network)), len(outputs)
        channels, mask = self._of_planes(runner, image, kept, progress)
        if isinstance(spec, InvertiblePreprocess):
            (mask,) = spec.invert(mask[None], case.volume, _affine(case))
        _check_grid(mask.shape, case, self.network)
        return np.asarray(mask, np.uint8), channels

    def _keeps_voxels(self, case: Case) -> bool:
        spec = self.preprocess
        return isinstance(spec, PreprocessSpec) and spec.keeps_voxels(case.volume, _affine(case))

    def _of_planes(self, runner: Runner, image: Array, store: Store, progress: Progress) -> tuple[int, Array]:
        codes = store.array("codes", image.shape[1:], np.uint8)

        def finish(first: int, planes: Array) -> None:
            _check_count(len(planes))
            codes[first : first + planes.shape[1]] = planes.argmax(0) if len(planes) > 1 else self._coded(planes[0])

        channels = self.network.stream(runner, image, finish, store=store, progress=progress)
        return channels, codes if channels > 1 else self._decided(codes)

    def _of_channels(self, channels: Iterable[Array], count: int, grid: tuple[int, ...]) -> Array:
        """The mask of whole channels, of which two are in memory at a time."""
        mask, best = np.zeros(grid, np.uint8), np.zeros(())
        for number, channel in enumerate(channels):
            if channel.shape != grid:
                raise ConfigError(
                    f"the mask has shape {list(channel.shape)}, the volume {list(grid)}",
                    rule="masks are compared on the volume's own grid",
                    remedy="Let invert(outputs, volume, affine) return outputs on the volume's grid",
                )
            if count == 1:
                return self._decided(self._coded(channel))
            if number == 0:
                best = np.array(channel)
                continue
            better = channel > best
            mask[better] = number
            np.copyto(best, channel, where=better)
        return mask

    def _coded(self, output: Array) -> Array:
        """What a single channel's values say, before all of them tell whether they are probabilities."""
        if self.threshold is not None:
            return (output > self.threshold).astype(np.uint8)
        code = np.where(output > 0, _POSITIVE, 0) | np.where(output > 0.5, _LIKELY, 0)
        code |= np.where((output < _LOW) | (output > _HIGH), _NO_PROBABILITY, 0)
        return code.astype(np.uint8)

    def _decided(self, codes: Array) -> Array:
        if self.threshold is not None:
            return codes
        logits = any((plane & _NO_PROBABILITY).any() for plane in codes)
        return ((codes & (_POSITIVE if logits else _LIKELY)) > 0).astype(np.uint8)


def _inverted(preprocess: InvertiblePreprocess, outputs: Array, case: Case) -> Iterable[Array]:
    if isinstance(preprocess, PreprocessSpec):
        return preprocess.inverted(outputs, case.volume, _affine(case))
    return preprocess.invert(np.asarray(outputs, np.float32), case.volume, _affine(case))


def _grid(case: Case, network: VolumeInput) -> tuple[int, ...]:
    return case.volume.shape[case.volume.ndim - network.rank :]


def _check_grid(shape: tuple[int, ...], case: Case, network: VolumeInput) -> None:
    if shape != (grid := _grid(case, network)):
        raise ConfigError(
            f"{case.name}: the mask has shape {list(shape)}, the volume {list(grid)}",
            rule="masks are compared on the volume's own grid",
            remedy="Give the preprocess an attribute invert(outputs, volume, affine)",
        )


def _check_count(channels: int) -> None:
    if channels > 256:
        raise ModelError(f"{channels} output channels", rule="a mask has at most 256 classes")


def _affine(case: Case) -> Array:
    return np.eye(4) if case.affine is None else case.affine
