"""Dynamic axes: which are asked for, and how a graph gets its sizes fixed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import onnx_ir as ir

from fptq.errors import ConfigError, DataError, ModelError

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shape of every input of one sample."""

Axes: TypeAlias = Mapping[str, Mapping[int, str]]
"""For each input, the axes that are dynamic, with the name of each size."""

NONE: Axes = MappingProxyType({})

_ENTRY = re.compile(r"(?P<input>.+):(?P<axis>\d+)=(?P<name>[A-Za-z_]\w*)")


def parse_axes(spec: str) -> Axes:
    """Axes as the user writes them.

    >>> parse_axes("x:0=batch, x:2=depth")
    {'x': {0: 'batch', 2: 'depth'}}

    Raises:
        ConfigError: An entry has another form.
    """
    axes: dict[str, dict[int, str]] = {}
    for entry in spec.split(","):
        match = _ENTRY.fullmatch(entry.strip())
        if match is None:
            raise ConfigError(
                f"dynamic axis {entry.strip()!r}",
                rule="an entry is input:axis=name",
                remedy="Write auto, none, or for example x:0=batch,x:2=depth",
            )
        axes.setdefault(match["input"], {})[int(match["axis"])] = match["name"]
    return axes


def varying_axes(samples: Sequence[Shapes]) -> Axes:
    """The batch axis, and every axis that differs between samples.

    >>> varying_axes([{"x": (1, 1, 96)}, {"x": (1, 1, 80)}])
    {'x': {0: 'batch', 2: 'x_2'}}

    Args:
        samples: Shapes of at least one sample.
    """
    first = samples[0]
    batch = next((shape[0] for shape in first.values() if len(shape) > 1), None)
    axes: dict[str, dict[int, str]] = {}
    for name, shape in first.items():
        same_rank = [sample[name] for sample in samples if len(sample.get(name, ())) == len(shape)]
        found = {axis: f"{name}_{axis}" for axis in range(len(shape)) if len({s[axis] for s in same_rank}) > 1}
        if shape and shape[0] == batch:
            found[0] = "batch"
        if found:
            axes[name] = dict(sorted(found.items()))
    return axes


def symbols(model: ir.Model) -> set[str]:
    """The names of the dynamic sizes of a graph's inputs."""
    dims = (dim for value in model.graph.inputs for dim in value.shape or ())
    return {str(dim.value) for dim in dims if isinstance(dim, ir.SymbolicDim)}


def require_axes(model: ir.Model, axes: Axes) -> None:
    """Check that a file leaves open what the user wants dynamic.

    Raises:
        ConfigError: There is no such input or axis.
        ModelError: The file fixes the axis.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    for name, wanted in axes.items():
        if name not in inputs:
            listed = ", ".join(str(n) for n in inputs)
            raise ConfigError(f"dynamic axes for {name!r}", rule=f"the model's inputs are {listed}")
        shape = inputs[name].shape or ()
        for axis in wanted if len(shape) else ():
            if axis >= len(shape):
                raise ConfigError(f"dynamic axis {name}:{axis}", rule=f"{name} has {len(shape)} axes")
            if isinstance(shape[axis], int):
                raise ModelError(
                    f"axis {axis} of {name!r} is {shape[axis]} in the file",
                    rule="a fixed axis cannot be made dynamic",
                    remedy="Export the model again with this axis dynamic",
                )


def fix_axes(model: ir.Model, shapes: Shapes, *, keep: Axes = NONE) -> None:
    """Give dynamic input axes the sizes of a sample, in place; shapes behind them are forgotten.

    Args:
        model: Its shapes must be inferred again afterwards.
        shapes: A sample's shapes.
        keep: Axes that stay dynamic, under these names.

    Raises:
        DataError: The sample does not fit the inputs.
    """
    for value in model.graph.inputs:
        name = value.name or ""
        if name not in shapes:
            raise DataError(f"the sample has no input {name!r}", rule="the sizes of dynamic axes come from a sample")
        found, wanted = shapes[name], keep.get(name, {})
        if value.shape is not None and len(value.shape) != len(found):
            raise DataError(f"input {name!r} has {len(found)} axes", rule=f"the model takes {len(value.shape)}")
        value.shape = ir.Shape([wanted.get(axis, size) for axis, size in enumerate(found)])
    forget_shapes(model)


def forget_shapes(model: ir.Model) -> None:
    """Drop every shape that may depend on a size that is no more, in place."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            if value.shape is not None and not value.shape.is_static():
                value.shape = None


def rename_symbols(model: ir.Model, names: Mapping[str, str]) -> None:
    """Rename dynamic sizes everywhere, also inside expressions such as `2*s53`, in place."""
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _all_values(model):
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape([_renamed(dim, pattern, names) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, pattern: re.Pattern[str], names: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    return pattern.sub(lambda found: names[found[0]], str(dim.value))


def _all_values(model: ir.Model) -> Iterable[ir.Value]:
    yield from model.graph.inputs
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs
