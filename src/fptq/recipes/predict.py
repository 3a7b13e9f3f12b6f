"""A quantized network on new data: the folder that `quantize` wrote and samples in, label maps or arrays out."""

from __future__ import annotations

import itertools
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fptq.config import Recipe, load_recipe
from fptq.engines import CompileOptions, Engine, engine_named
from fptq.engines.cpu import made_elsewhere
from fptq.errors import ConfigError, DataError, ModelError, OutputError
from fptq.feeds import Preprocess, Scan, stem
from fptq.feeds.conform import conform
from fptq.feeds.items import FileItems, IterableItems, open_items
from fptq.feeds.scans import NIFTI, is_scan, label_image, suffix
from fptq.feeds.source import prepared
from fptq.graph.load import read_onnx
from fptq.graph.model import Model, TensorInfo
from fptq.recipes.bundle_source import holds_bundle
from fptq.recipes.nnunet import FACTS_FILE
from fptq.recipes.problem import preprocess_of, threads_of, volume_input
from fptq.recipes.result import MODEL_FILE, PACKED_FILE
from fptq.recipes.resume import Origin, Todo, forget, inside, kept
from fptq.recipes.targets import check_free
from fptq.report.files import replacing
from fptq.tasks import Case, FolderStore, SegmentationTask, VolumeInput
from fptq.types import Array, Feeds, Progress, Runner, silent

_LOG = logging.getLogger(__name__)


def predict(
    folder: str | Path,
    data: object,
    *,
    output: str | Path,
    overwrite: bool = False,
    progress: Progress = silent,
    **options: object,
) -> tuple[Path, ...]:
    """Run a quantized network on its engine, with the preprocessing that it was calibrated with.

    With `task="segmentation"` a NIfTI scan or DICOM series becomes a label map of its name, on its own grid. Any other
    sample becomes a `.npz` file of the network's outputs by name, on the network's grid.

    A call that was interrupted goes on when it is made again: label maps that are finished are recognised by their
    header, and one that is not is continued at the window where it stopped.

    Args:
        folder: What `quantize` wrote; `model.packed.onnx` is used where `model.onnx` is not.
        data: What `quantize` takes for calibration.
        output: The folder to write; samples of several folders keep their folders below it.
        overwrite: Whether results that are there already are made anew.
        progress: Told after each window, as if all scans had as many as the one at hand, and after each sample.
        **options: Options that override the saved recipe's, by its field names.

    Returns:
        The files, in the order of the samples.

    Raises:
        ConfigError: The folder is not one that `quantize` wrote, or its preprocess cannot be imported.
        MissingExtra: The engine, or a package that reading or sliding windows need, is not installed.
        DataError: There is no sample, or one is not what the network takes.
        OutputError: A result of another network, scan or option is there already, or one cannot be written.
    """
    saved, output, items = _read(Path(folder), options), Path(output), open_items(data)
    targets = _targets(items, output, maps=saved.recipe.task == "segmentation")
    origin = Origin.of(saved.path, saved.recipe)
    todo = Todo.of(items, targets, None if overwrite else origin)
    for target in todo.targets:
        check_free(target, overwrite=overwrite)
        if overwrite:
            forget(target)
    network = saved.compiled(origin)
    progress(todo.finished, len(targets), "prediction")
    written: list[Path] = []
    for index, (name, sample) in enumerate(todo.items):
        target = todo.targets[index] if targets else output / f"sample_{index}.npz"
        check_free(target, overwrite=overwrite)
        network.write(name, sample, target, progress=inside(progress, todo.finished + index, len(targets)))
        written.append(target)
        progress(todo.finished + len(written), len(targets), "prediction")
    if not written and not targets:
        raise DataError("there is no sample", rule="prediction needs at least one")
    return tuple(targets) or tuple(written)


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """What a folder says about its network.

    Attributes:
        path: The ONNX file.
        model: What is in it.
        engine: What it is made for.
        recipe: The recipe that made it, with the caller's options.
    """

    path: Path
    model: Model
    engine: Engine
    recipe: Recipe

    def compiled(self, origin: Origin) -> _Network:
        """The network on its engine."""
        preprocess = preprocess_of(self.recipe)
        options = CompileOptions(threads=threads_of(self.recipe), float_precision="default")
        runner = self.engine.compile(self.path, options)
        return _Network(model=self.model, recipe=self.recipe, preprocess=preprocess, runner=runner, origin=origin)


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A network that is ready to run, from raw samples to files."""

    model: Model
    recipe: Recipe
    preprocess: Preprocess | None
    runner: Runner
    origin: Origin

    def write(self, name: str, sample: object, target: Path, *, progress: Progress = silent) -> None:
        """Predict one sample into a file, which is a label map where its name says so."""
        if isinstance(sample, Scan) and suffix(target) in NIFTI:
            mark = self.origin.mark(Path(name))
            with kept(target, mark) as store:
                labels = self._labels(name, sample, store, progress)
                with replacing(target) as temporary:
                    label_image(labels, scan=Path(name), made_by=mark).to_filename(temporary)
            return
        outputs = self._outputs(name, sample)
        with replacing(target) as temporary:
            _save_arrays(temporary, outputs)

    def _labels(self, name: str, scan: Scan, store: FolderStore, progress: Progress) -> Array:
        """Decided as the segmentation task decides when it scores."""
        case = Case(name=name, volume=scan.volume, affine=scan.affine)
        network = volume_input(self.model, self.recipe)
        task = SegmentationTask(cases=(case,), network=network, preprocess=self.preprocess)
        return task.segment(self.runner, case, store=store, progress=progress)

    def _outputs(self, name: str, sample: object) -> Feeds:
        given = prepared(sample, self.model.inputs, preprocess=self.preprocess, name=name)
        scan = isinstance(sample, Scan) and _keeps_grid(self.model)
        if scan or self.recipe.task == "segmentation" or self.recipe.patch is not None:
            network = volume_input(self.model, self.recipe)
            (batch,) = conform(given, (_of_any_size(network.info),), name=name)
            return _joined([_covered(network, self.runner, image) for image in batch[network.info.name]])
        return _joined([self.runner(feeds) for feeds in conform(given, self.model.inputs, name=name)])


def _read(folder: Path, options: Mapping[str, object]) -> _Saved:
    """The folder's network, its engine and its recipe."""
    path = next((folder / name for name in (MODEL_FILE, PACKED_FILE) if (folder / name).is_file()), None)
    if path is None:
        lacks = "has no model.onnx" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {lacks}", remedy="Give the folder that fptq quantize wrote")
    if (folder.parent / FACTS_FILE).is_file():
        raise ConfigError(
            f"{folder} is one fold of a network of nnU-Net",
            rule="nnU-Net prepares its images, for all folds together",
            remedy=f"Give {folder.parent}",
        )
    if holds_bundle(folder):
        raise ConfigError(
            f"{folder} holds the network of a bundle of MONAI",
            rule="the bundle's own transforms prepare scans and finish predictions",
            remedy="Use fptq predict, or fptq.bundle_predictor in Python",
        )
    graph_model = read_onnx(path)
    metadata = graph_model.metadata_props
    if "fptq.engine" not in metadata:
        raise ConfigError(
            f"{path} names no engine",
            rule="fptq quantize writes the engine into the metadata of the model",
            remedy="Give the folder that fptq quantize wrote",
        )
    # What the network was made from may be gone, and need not fit the caller's options.
    recipe = load_recipe(folder).merged(**{"calib": None, "val": None, "labels": None, **options})
    unsaved = metadata.get("fptq.unsaved", "").split()
    if "preprocess" in unsaved and recipe.preprocess is None:
        raise ConfigError(
            f"{folder} lacks its preprocess",
            rule="a preprocess that was given in Python, inside a task, is not saved",
            remedy="Give --preprocess package.module:function",
        )
    if recipe.task == "segmentation" and (lost := [name for name in unsaved if name != "preprocess"]):
        _LOG.warning("%s lacks the task's %s: label maps are made without", folder, " and ".join(lost))
    if (warning := made_elsewhere(metadata)) is not None:
        _LOG.warning("%s: %s", path, warning)
    return _Saved(
        path=path, model=Model(graph_model=graph_model), engine=engine_named(metadata["fptq.engine"]), recipe=recipe
    )


def _targets(items: FileItems | IterableItems, output: Path, *, maps: bool) -> Sequence[Path]:
    """Where the results of files go: their names, below the folder that they share; none where samples have no names.

    A folder of slices counts as a file.

    Raises:
        DataError: Two files would have the same result.
        OutputError: A result would replace a sample.
    """
    if not isinstance(items, FileItems):
        return ()
    paths = [path.absolute() for path in items.paths]
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    made: dict[Path, Path] = {}
    for path in paths:
        ending = (suffix(path) or ".nii.gz") if maps and is_scan(path) else ".npz"
        target = output / path.parent.relative_to(shared) / f"{stem(path)}{ending}"
        if target in made:
            raise DataError(
                f"{made[target]} and {path} would both become {target}",
                rule="a result has the name of its sample",
                remedy="Predict them one after the other, with an output folder for each",
            )
        made[target] = path
    samples = {path.resolve() for path in paths}
    for target in made:
        if target.resolve() in samples:
            raise OutputError(f"{target} is a sample", rule="results never replace samples", remedy="Choose another -o")
    return tuple(made)


def _keeps_grid(model: Model) -> bool:
    """Whether windows can slide over what a network takes: one volume, and every output on its grid."""
    if len(model.inputs) != 1 or len(model.inputs[0].shape or ()) < 3:
        return False
    shape = model.inputs[0].shape or ()
    return all(
        output.shape is not None
        and len(output.shape) == len(shape)
        and all(a == b for a, b in zip(output.shape[2:], shape[2:], strict=True) if isinstance(b, int))
        for output in model.outputs
    )


def _of_any_size(info: TensorInfo) -> TensorInfo:
    """An input but for its batch and its spatial axes, which windows take care of."""
    shape = info.shape or ()
    return replace(info, shape=tuple(size if axis == 1 else None for axis, size in enumerate(shape)))


def _covered(network: VolumeInput, runner: Runner, image: Array) -> Feeds:
    """All outputs `f32[1, K, *S]` for an image `[C, *S]`: they ride through the windows as channels of one."""
    ends: dict[str, int] = {}

    def as_one(feeds: Feeds) -> Feeds:
        found = runner(feeds)
        grid = feeds[network.info.name].shape[2:]
        if any(array.shape[2:] != grid for array in found.values()):
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in found.items())
            raise ModelError(f"outputs {shapes}", rule=f"windows are blended on the grid of the input, {list(grid)}")
        ends.update(zip(found, itertools.accumulate(array.shape[1] for array in found.values()), strict=True))
        return {"": np.concatenate(list(found.values()), axis=1)}

    whole = network.run(as_one, image)
    parts = np.split(whole, list(ends.values())[:-1])
    return {name: part[None] for name, part in zip(ends, parts, strict=True)}


def _joined(runs: Sequence[Feeds]) -> Feeds:
    """The outputs of the runs of one sample, along the batch."""
    if len(runs) == 1:
        return runs[0]
    return {name: np.concatenate([np.atleast_1d(run[name]) for run in runs]) for name in runs[0]}


def _save_arrays(path: Path, arrays: Feeds) -> None:
    """Write a `.npz` file; `numpy.savez` takes no array of the name `file`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
