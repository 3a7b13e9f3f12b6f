"""A bundle of MONAI whose network is an engine, from the folder that `quantize` wrote; all else is the bundle's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fptq.config import Recipe
from fptq.engines import CompileOptions
from fptq.errors import ConfigError, DataError, FptqError, in_one_line
from fptq.feeds.bundle import prepared_scan, preprocessing_of
from fptq.feeds.conform import as_array
from fptq.feeds.scans import NIFTI, find_files
from fptq.graph.bundle import OpenBundle, find_bundle, open_bundle
from fptq.graph.trust import Trust
from fptq.recipes.bundle_source import BUNDLE, holds_bundle
from fptq.recipes.compiled import compiled_folds, network_path
from fptq.recipes.problem import threads_of
from fptq.recipes.targets import check_targets
from fptq.report.files import replacing
from fptq.types import Progress, silent

if TYPE_CHECKING:
    from torch import nn

_PREDICTION = "pred"
"""What the transforms after the network call its output: MONAI's `CommonKeys.PRED`."""


def is_bundle_folder(folder: str | Path) -> bool:
    """Whether `quantize` wrote it for a bundle."""
    return holds_bundle(Path(folder))


@dataclass(frozen=True, kw_only=True)
class BundlePredictor:
    """A bundle's transforms and inferer around a network on an engine.

    Attributes:
        network: `f32[N, C, *S]` to `f32[N, K, *S]`, on the engine; in the place of the bundle's.
        inferer: Called with an image `[1, C, *S]` and the network.
        preprocessing: From `{image: path}` to the image.
        postprocessing: From the prediction, under "pred", to what is saved.
    """

    network: nn.Module
    inferer: Any
    preprocessing: Any
    postprocessing: Any
    _opened: OpenBundle

    def __call__(self, scan: str | Path) -> Any:
        """What the bundle makes of a scan: as a rule labels on its own grid, a `MetaTensor` `[1, *S]`.

        Raises:
            DataError: The scan cannot be prepared, or its prediction not be finished.
        """
        import torch

        data = prepared_scan(self._opened, self.preprocessing, Path(scan))
        try:
            with torch.no_grad():
                found = self.inferer(data[self._opened.image][None], self.network)
            logits = found[0] if isinstance(found, list | tuple) else found
            return self.postprocessing({**data, _PREDICTION: logits[0]})[_PREDICTION]
        except FptqError as error:
            raise DataError(f"{scan}: {error.what}", rule=error.rule, remedy=error.remedy) from error
        except Exception as error:  # whatever the bundle calls
            raise DataError(
                f"{scan}: the bundle's inferer or postprocessing raised {in_one_line(error)}",
                rule="the network takes windows of "
                f"{' x '.join(map(str, self._opened.window))}, and its prediction is called {_PREDICTION}",
                remedy="Mend the bundle's config",
            ) from error


def bundle_predictor(folder: str | Path, *, threads: int | None = None, trust: bool = False) -> BundlePredictor:
    """The transforms and the inferer of a bundle, with the quantized network on its engine in place of its own.

    What the bundle does after the network is done but for saving. A bundle that says nothing about it gets labels of
    the largest channel, or of where the only one is positive, on the scan's own grid.

    Args:
        folder: What `quantize` wrote for a bundle.
        threads: CPU threads of the engine; None: one for each core.
        trust: Whether the bundle's config, which can execute code, may be read.

    Raises:
        ConfigError: It did not write the folder for a bundle.
        ModelError: The config is not trusted, or cannot be read.
        MissingExtra: MONAI or the engine is not installed.
    """
    from fptq.engines.folds import EngineFolds

    folder = Path(folder)
    if not holds_bundle(folder):
        raise ConfigError(
            f"{folder} has no {BUNDLE}",
            rule="it holds the config of the bundle that the network comes from",
            remedy="Give the folder that fptq quantize monai:... wrote",
        )
    opened = open_bundle(find_bundle(folder / BUNDLE), trust=Trust.given(trust))
    options = CompileOptions(threads=threads_of(Recipe(threads=threads)), float_precision="default")
    compiled = compiled_folds([network_path(folder)], options)
    network = EngineFolds(compiled.runners, input_name=compiled.input_name, output_name=compiled.output_name)
    preprocessing = preprocessing_of(opened)
    return BundlePredictor(
        network=network,
        inferer=opened.content("inferer") or _inferer(opened),
        preprocessing=preprocessing,
        postprocessing=_postprocessing(opened, preprocessing),
        _opened=opened,
    )


def predict_bundle(
    predictor: BundlePredictor,
    scans: str | Path,
    *,
    output: str | Path,
    overwrite: bool = False,
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Label maps of NIfTI scans, on the scans' own grids, with their names.

    Args:
        predictor: What `bundle_predictor` gave.
        scans: A folder, a glob or a file.
        output: The folder to write.
        overwrite: Whether results that are there already are replaced.
        progress: Told after each scan.

    Returns:
        The files, in the order of the scans.

    Raises:
        DataError: There is no scan, or one cannot be read.
        OutputError: A result is there already, or cannot be written.
    """
    paths = find_files(scans, among=NIFTI)
    targets = tuple(Path(output) / path.name for path in paths)
    check_targets(targets, images=paths, overwrite=overwrite)
    Path(output).mkdir(parents=True, exist_ok=True)
    progress(0, len(paths), "prediction")
    for done, (path, target) in enumerate(zip(paths, targets, strict=True), start=1):
        labels = predictor(path)
        with replacing(target) as temporary:
            _write(labels, temporary)
        progress(done, len(paths), "prediction")
    return targets


def _inferer(opened: OpenBundle) -> Any:
    from monai.inferers import SlidingWindowInferer

    return SlidingWindowInferer(roi_size=opened.window, sw_batch_size=1, overlap=0.5, mode="gaussian")


def _postprocessing(opened: OpenBundle, preprocessing: Any) -> Any:
    """The bundle's, without what saves: files are written once, here."""
    from monai.transforms import AsDiscreted, Compose, Invertd, SaveImage, SaveImaged

    given = opened.content("postprocessing")
    if given is None:
        back = Invertd(keys=_PREDICTION, transform=preprocessing, orig_keys=opened.image, nearest_interp=False)
        return Compose([back, _labelled(AsDiscreted)])
    steps = given.transforms if isinstance(given, Compose) else [given]
    return Compose([step for step in steps if not isinstance(step, SaveImage | SaveImaged)])


def _labelled(as_discrete: Any) -> Any:
    """Labels of logits, however many channels there are."""
    largest, positive = as_discrete(keys=_PREDICTION, argmax=True), as_discrete(keys=_PREDICTION, threshold=0.0)

    def labelled(data: dict[str, Any]) -> Any:
        return (largest if len(data[_PREDICTION]) > 1 else positive)(data)

    return labelled


def _write(labels: Any, path: Path) -> None:
    """Write labels `[1, *S]`, or several maps `[K, *S]`, on the grid of the scan that they come from."""
    from monai.data import NibabelWriter

    array = as_array(labels)
    assert array is not None
    whole = np.array_equal(array, array.astype(np.uint8))
    writer = NibabelWriter(output_dtype=np.uint8 if whole else np.float32)
    writer.set_data_array(labels, channel_dim=0)
    writer.set_metadata(getattr(labels, "meta", None), mode="nearest")
    writer.write(str(path))
