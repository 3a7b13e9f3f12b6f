"""What the user brought, opened and checked: the network, the samples, the task."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fptq.cache import Cache
from fptq.config import IMAGE_KEYS, PreprocessTable, Recipe
from fptq.errors import ConfigError, DataError
from fptq.feeds import Image, ImageSpec, Part, Preprocess, PreprocessSpec, image_array, load_callable, open_feeds
from fptq.feeds.callables import names_callable
from fptq.feeds.items import open_items
from fptq.feeds.scans import Scan
from fptq.graph.bundle import Bundle, find_bundle, names_bundle
from fptq.graph.load import LoadOptions, load
from fptq.graph.model import Model, TensorInfo
from fptq.graph.nnunet import names_nnunet
from fptq.graph.pretrained import is_pretrained, load_pretrained
from fptq.graph.trust import Trust
from fptq.recipes.bundle_source import BUNDLES, open_monai
from fptq.recipes.nnunet_source import NNUNET, open_nnunet
from fptq.recipes.proteins import as_runs, as_samples, protein_task
from fptq.tasks import ClassificationTask, MetricTask, SegmentationTask, Task, VolumeInput, open_cases, open_labelled
from fptq.types import Feeds, FeedSource, Runner

_HELD_OUT = 8
_PEEKED = 3
_SCORED_ON: Mapping[str, tuple[str, str]] = {
    "classification": ("images in a folder for each class", "Give --val a folder of class folders"),
    "proteins": ("sequences", "Give --val a FASTA file"),
}
"""Tasks that need validation data: what, and what to do without."""
_SPREAD = 32
"""Samples of a sequence that are looked at for sizes that differ: sequences are often sorted by length."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A network to quantize.

    Attributes:
        model: The canonical float network.
        calibration: Samples whose ranges count.
        held_out: Samples on which agreement is measured; never those of the calibration where there are two or more.
        task: How the network is scored; None: agreement only.
        recipe: The options.
        store: The cache.
        warnings: What the user must know before trusting the numbers.
        bundle: Of MONAI, that the network comes from; None: from elsewhere.
    """

    model: Model
    calibration: FeedSource
    held_out: tuple[Feeds, ...]
    task: Task | None
    recipe: Recipe
    store: Cache
    warnings: tuple[str, ...] = ()
    bundle: Bundle | None = None

    @property
    def threads(self) -> int:
        """CPU threads for one run."""
        return threads_of(self.recipe)


def open_problem(
    network: object, calibration: object, recipe: Recipe, *, validation: object = None, task: Task | None = None
) -> Problem:
    """Load the network, open the samples, hold some out.

    Args:
        network: Whatever `fptq.graph.load.load` takes.
        calibration: Whatever `fptq.feeds.open_feeds` takes.
        recipe: The options.
        validation: Unlabelled samples for the agreement; without them some of the calibration set are held out.
        task: How the network is scored.
    """
    bundle: Bundle | None = None
    if isinstance(network, str) and names_nnunet(network):
        recipe = NNUNET.checked(recipe)
        network, calibration = open_nnunet(network, calibration, recipe, validation=validation)
    elif isinstance(network, str) and names_bundle(network):
        recipe, bundle = BUNDLES.checked(recipe), find_bundle(network)
        network, calibration = open_monai(bundle, calibration, recipe, validation=validation)
    preprocess = preprocess_of(recipe)
    if isinstance(network, str) and names_callable(network) and not Path(network).exists():
        network = load_callable(network)()
    if isinstance(network, str | Path) and is_pretrained(network):
        network = load_pretrained(network)
    calibration, examples = _peek(network, as_samples(calibration, recipe), seed=recipe.seed)
    options = LoadOptions(dynamic=recipe.dynamic, trust=Trust.given(recipe.trust))
    raw = [_as_example(sample, network, preprocess) for sample in examples]
    model = load(network, example=raw[0] if raw else None, others=raw[1:], options=options)
    opened = partial(
        open_feeds, inputs=model.inputs, preprocess=preprocess, signature=model.signature, spread=recipe.seed
    )
    samples = opened(as_runs(calibration, model, recipe), limit=recipe.samples)
    store = Cache(recipe.cache) if recipe.cache else Cache()
    warnings: list[str] = []
    if validation is not None:
        part: FeedSource = samples
        held_out = tuple(opened(validation, limit=_HELD_OUT))
    else:
        part, held_out = _split(samples, warnings)
    return Problem(
        model=model,
        calibration=part,
        held_out=held_out,
        task=task,
        recipe=recipe,
        store=store,
        warnings=tuple(warnings),
        bundle=bundle,
    )


def open_scored(
    network: object,
    calibration: object,
    recipe: Recipe,
    *,
    evaluate: Callable[..., Any] | str | None,
    task: Task | None,
    validation: object,
    labels: str | Path | None,
) -> Problem:
    """The problem with what scores it: a task, a metric, or volumes with labels.

    Args:
        network: Whatever `fptq.graph.load.load` takes.
        calibration: Whatever `fptq.feeds.open_feeds` takes.
        recipe: The options.
        evaluate: A metric, in place of the recipe's.
        task: A ready-made task.
        validation: Samples for the agreement, volumes of a segmentation, class folders of a classification, or the
            sequences of a protein language model.
        labels: Labels of the volumes, or the names of the classes.

    Raises:
        ConfigError: A classification has nothing to classify, or a protein language model no sequences.
    """
    if task is None and recipe.task in _SCORED_ON and validation is None:
        what, remedy = _SCORED_ON[recipe.task]
        raise ConfigError(
            f'task = "{recipe.task}" without validation data', rule=f"it is scored on {what}", remedy=remedy
        )
    kind = recipe.task if validation is not None else "generic"
    problem = open_problem(network, calibration, recipe, validation=validation if kind == "generic" else None)
    if task is None and kind == "segmentation":
        task = segmentation_task(problem.model, recipe, str(validation), labels)
    elif task is None and kind == "classification":
        task = classification_task(problem.model, recipe, str(validation), labels)
    elif task is None and kind == "proteins":
        task = protein_task(problem.model, recipe, validation)
    elif task is None and (metric := evaluate or recipe.metric) is not None:
        task = metric_task(problem.model, metric, recipe)
    return replace(problem, task=task)


def preprocess_of(recipe: Recipe) -> Preprocess | None:
    """The recipe's preprocessing as a callable."""
    match recipe.preprocess:
        case None:
            return None
        case PreprocessTable() as table:
            given = table.model_dump()
            images = {name: given.pop(name) for name in IMAGE_KEYS}
            return ImageSpec(**images) if table.for_images else PreprocessSpec(**given)
        case str(name):
            found: Preprocess = load_callable(name)
            return found


def threads_of(recipe: Recipe) -> int:
    """CPU threads for one run: the recipe's, else one for each core."""
    return recipe.threads or os.cpu_count() or 1


def volume_input(model: Model, recipe: Recipe) -> VolumeInput:
    """The input of a network that takes one volume, with the recipe's windows.

    Raises:
        ConfigError: The model has several inputs.
    """
    if len(model.inputs) != 1:
        names = ", ".join(info.name for info in model.inputs)
        raise ConfigError(f"the model takes {names}", rule="segmentation networks take one image")
    return VolumeInput(
        info=model.inputs[0],
        window=recipe.patch,
        overlap=recipe.overlap,
        windows_per_call=recipe.windows_per_call,
    )


def segmentation_task(model: Model, recipe: Recipe, volumes: str | Path, labels: str | Path | None) -> SegmentationTask:
    """Segmentation of a folder of volumes, with labels where there are any.

    Raises:
        ConfigError: The model has several inputs.
    """
    return SegmentationTask(
        cases=open_cases(volumes, labels),
        network=volume_input(model, recipe),
        preprocess=preprocess_of(recipe),
        tolerance=recipe.tolerance,
    )


def classification_task(
    model: Model, recipe: Recipe, images: str | Path, classes: str | Path | None
) -> ClassificationTask:
    """Classification of a folder of class folders.

    Raises:
        DataError: The folders do not name the network's classes.
    """
    shape = model.outputs[0].shape or ()
    count = next((size for size in shape[1:2] if isinstance(size, int)), None)
    labelled = open_labelled(images, classes, count=count)
    return ClassificationTask(images=labelled, inputs=model.inputs, preprocess=preprocess_of(recipe))


def metric_task(model: Model, metric: object, recipe: Recipe) -> MetricTask:
    """The user's own metric, called as the user calls the network."""
    function = load_callable(metric) if isinstance(metric, str) else metric
    if not callable(function):
        raise ConfigError(f"evaluate={metric!r}", rule="a metric is a function or package.module:function")
    if model.signature is None:
        return MetricTask(metric=function, higher_is_better=recipe.higher_is_better)

    def adapt(runner: Runner) -> object:
        from fptq.engines.module import EngineModule

        return EngineModule(runner, model.signature, model.inputs)

    return MetricTask(metric=function, higher_is_better=recipe.higher_is_better, adapt=adapt)  # type: ignore[arg-type]


def _peek(network: object, calibration: object, *, seed: int) -> tuple[object, Sequence[object]]:
    """The first raw samples, which a module is exported with; files are checked with random inputs instead."""
    if calibration is None:
        raise DataError("there is no calibration data", rule="ranges are found on samples", remedy="Give --calib")
    if isinstance(network, str | Path) or type(network).__module__.startswith(("onnx", "onnx_ir")):
        return calibration, ()
    if isinstance(calibration, str) and names_callable(calibration) and not Path(calibration).exists():
        calibration = load_callable(calibration)()
    if isinstance(calibration, str | Path):
        items = open_items(calibration, spread=seed, limit=_PEEKED)
        return calibration, [sample for _, sample in itertools.islice(items, _PEEKED)]
    if isinstance(calibration, Iterator):
        first = list(itertools.islice(calibration, _PEEKED))
        return itertools.chain(first, calibration), first
    if isinstance(calibration, Sequence):
        places = np.linspace(0, len(calibration) - 1, min(_SPREAD, len(calibration))).astype(int)
        return calibration, [calibration[int(place)] for place in places]
    assert isinstance(calibration, Iterable)
    return calibration, list(itertools.islice(calibration, _PEEKED))


def _as_example(sample: object, network: object, preprocess: Preprocess | None) -> object:
    """A raw sample as the module takes it: scans are prepared, targets behind the inputs are left out."""
    if isinstance(sample, Image):
        return image_array(sample, _image_inputs(network), preprocess=preprocess)[None]
    if isinstance(sample, Scan):
        prepared = preprocess(sample.volume, sample.affine) if preprocess is not None else sample.volume
        return prepared[(None,) * (5 - prepared.ndim)]
    recorded = isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[1], Mapping)
    if isinstance(sample, tuple | list) and not recorded:
        return tuple(sample)[: _positional(network)]
    return sample


def _image_inputs(network: object) -> tuple[TensorInfo, ...]:
    """What a module that is not exported yet takes of an image: channels first, any size.

    It is grey where its first kernel `[C_out, C_in, H, W]` is.
    """
    parameters: Iterable[Any] = getattr(network, "parameters", tuple)()
    first = next((parameter for parameter in parameters if parameter.ndim == 4), None)
    channels = 1 if first is not None and first.shape[1] == 1 else 3
    return (TensorInfo(name="image", dtype=np.dtype(np.float32), shape=("n", channels, None, None)),)


def _positional(network: object) -> int | None:
    """How many positional arguments a module takes; None: any number."""
    parameters = inspect.signature(getattr(network, "forward", lambda *_: None)).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )


def _split(samples: FeedSource, warnings: list[str]) -> tuple[FeedSource, tuple[Feeds, ...]]:
    """Hold out a fifth of the samples, at most eight; with a single one say that it serves twice."""
    count = len(samples)
    if count == 0:
        raise DataError("there is no calibration sample", rule="ranges are found on at least one sample")
    if count == 1:
        warnings.append("there is one sample: agreement is measured on the data that the ranges come from")
        return samples, tuple(itertools.islice(iter(samples), 1))
    held = min(_HELD_OUT, max(1, count // 5))
    return Part(samples, count - held), tuple(itertools.islice(iter(samples), count - held, None))
