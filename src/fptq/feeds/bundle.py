"""Calibration windows as a bundle of MONAI feeds its network: scans that its own transforms prepare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fptq.errors import ConfigError, DataError, in_one_line
from fptq.feeds.conform import as_array
from fptq.feeds.patches import Cutter, check_finite, spread_patches
from fptq.graph.bundle import OpenBundle
from fptq.types import Array

if TYPE_CHECKING:
    from torch import nn


def scan_windows(
    opened: OpenBundle, network: nn.Module, scans: Sequence[Path], *, count: int | None = None, seed: int = 0
) -> Iterator[Array]:
    """Windows `f32[1, C, *S]` of scans that the bundle's transforms prepare, as `spread_patches` cuts them.

    Args:
        opened: The bundle.
        network: Its float network.
        scans: The files.
        count: How many windows; None: 32.
        seed: Of the places.

    Raises:
        ConfigError: The bundle has no preprocessing.
        DataError: A scan cannot be prepared, has other channels than the network, or NaN or infinite voxels.
    """
    cutter = Cutter(size=opened.window, segment=_segmenter(network), generator=np.random.default_rng(seed))
    return spread_patches(scans, partial(_padded, opened, preprocessing_of(opened)), cutter, count=count)


def preprocessing_of(opened: OpenBundle) -> Any:
    """The bundle's transforms of an image.

    Raises:
        ConfigError: It has none.
    """
    transforms = opened.content("preprocessing")
    if transforms is None:
        raise ConfigError(
            f"{opened.bundle.config} has no preprocessing",
            rule="scans are prepared by the transforms of this entry",
            remedy="Add it, or give samples that are prepared: .npz, .npy or package.module:function",
        )
    return transforms


def prepared_scan(opened: OpenBundle, transforms: Any, path: Path) -> dict[str, Any]:
    """What the transforms make of a file, with its image `[C, *S]`.

    Raises:
        DataError: They raised, or made no image that the network takes.
    """
    try:
        found: dict[str, Any] = transforms({opened.image: str(path)})
    except Exception as error:  # whatever the transforms raise; MONAI's own hide what happened behind a RuntimeError
        cause = error
        while isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        raise DataError(
            f"{path} cannot be prepared by the bundle's preprocessing: {in_one_line(cause)}",
            rule=f'the transforms are called with {{"{opened.image}": the path}}',
            remedy="Mend or drop this file",
        ) from error
    image = as_array(found.get(opened.image)) if isinstance(found, dict) else None
    if image is None or image.ndim != len(opened.window) + 1 or len(image) != opened.channels:
        said = "no image" if image is None else f"an image of shape {list(image.shape)}"
        raise DataError(
            f"{path}: the bundle's preprocessing makes {said}",
            rule=f"the network takes {opened.channels} channels and {len(opened.window)} spatial axes",
            remedy="Give scans as those of the training, all channels in one file",
        )
    return found


def _padded(opened: OpenBundle, transforms: Any, path: Path) -> Array:
    """A scan `f32[C, *S]` as MONAI's sliding window sees it: at least as large as a window, zeros around."""
    image = np.asarray(as_array(prepared_scan(opened, transforms, path)[opened.image]), np.float32)
    check_finite(image, path.name)
    short = [max(window - size, 0) for window, size in zip(opened.window, image.shape[1:], strict=True)]
    return np.pad(image, [(0, 0), *((pad // 2, pad - pad // 2) for pad in short)])


def _segmenter(network: nn.Module) -> Callable[[Array], Array]:
    """The float network's labels of a window; of one channel, foreground is where a logit is positive."""
    import torch

    @torch.inference_mode()
    def segment(window: Array) -> Array:
        found = network(torch.from_numpy(window[None]))
        logits = (found[0] if isinstance(found, list | tuple) else found)[0]
        return np.asarray(logits.argmax(0) if len(logits) > 1 else logits[0] > 0)

    return segment
