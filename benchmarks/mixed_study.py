"""A network with its sensitivities and costs in several formats: what all parts of mixed.py use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fptq.analyze import Sensitivity
from fptq.analyze.cost import shapes_of
from fptq.analyze.mixed import mixed_encoding
from fptq.config import Recipe
from fptq.engines import engine_named
from fptq.execute import Executor
from fptq.graph.model import Model
from fptq.plan.encoding import Encoding
from fptq.recipes.costs import cost_table
from fptq.recipes.problem import open_problem
from fptq.recipes.study import open_study
from fptq.search import Assignment, Options
from fptq.types import Feeds, silent
from layout import Folder


@dataclass(frozen=True)
class Listed:
    """Samples in memory, as a feed source."""

    samples: tuple[Feeds, ...]

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network in several formats.

    Attributes:
        model: The float network, rewritten for the engine.
        encodings: By format, from the highest precision down.
        found: Sensitivities.
        table: Losses and costs of every unit, and of what is never quantized.
        engine: Whose placement it is.
    """

    model: Model
    encodings: Mapping[str, Encoding]
    found: Sensitivity
    table: Options
    engine: str

    @cached_property
    def executor(self) -> Executor:
        return Executor.open(self.model)

    @property
    def floats(self) -> dict[str, float]:
        """What the float network costs."""
        return {name: float(values[:, 0].sum()) for name, values in self.table.costs.items()}

    def encoding(self, assignment: Assignment) -> Encoding:
        return mixed_encoding(self.model, self.found.units, self.encodings, assignment.as_dict())


def opened(folder: Folder, formats: Sequence[str], *, engine: str = "openvino") -> Subject:
    """Calibrate, and estimate all sensitivities on the calibration samples.

    Args:
        folder: The float file and the samples; all of them are calibrated on.
        formats: From the highest precision down.
        engine: Whose placement; only ONNX Runtime's leaves images free to come in batches.
    """
    recipe = Recipe().merged(cache=str(folder.results / "cache"), engine=engine)
    # Samples that are held out would be missing from the calibration; here agreement is measured elsewhere.
    calibration = str(folder.calibration)
    problem = open_problem(str(folder.float_model), calibration, recipe, validation=calibration)
    study = open_study(problem, engine_named(engine), formats, silent)
    found = study.sensitivity("fisher", silent)
    shapes = shapes_of(Executor.open(study.model), study.samples[0])
    return Subject(
        model=study.model,
        encodings=study.encodings,
        found=found,
        table=cost_table(study, found, shapes, target=None, progress=silent),
        engine=engine,
    )


def without(table: Options, formats: Sequence[str]) -> Options:
    """The table without some formats."""
    kept = [index for index, name in enumerate(table.formats) if name not in formats]
    return replace(
        table,
        formats=tuple(table.formats[index] for index in kept),
        loss=table.loss[:, kept],
        costs={name: values[:, kept] for name, values in table.costs.items()},
    )
