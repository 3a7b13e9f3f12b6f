"""Plausible inputs for a graph, from the user's example or at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from fptq.errors import DataError
from fptq.graph import query
from fptq.types import Array, Feeds

_SIZES = (32, 64, 16, 96, 128, 7)
"""Sizes tried for dynamic axes other than the first: networks with strides want multiples of 16 or 32."""

_LOOKED_THROUGH = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"})


def example_feeds(model: ir.Model, example: object) -> Feeds:
    """An example as arrays by input name, in the inputs' dtypes.

    Args:
        model: Names and types of the inputs.
        example: An array or tensor, a tuple in the order of the inputs, a mapping by name, or a call `(args, kwargs)`.

    Raises:
        DataError: An input is missing.
    """
    named: dict[str, object] = {}
    rest: list[object] = []
    match example:
        case Mapping():
            named = dict(example)
        case (tuple() as args, Mapping() as kwargs):
            named, rest = dict(kwargs), list(args)
        case tuple() | list():
            rest = list(example)
        case _:
            rest = [example]
    found: dict[str, Array] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        if name not in named and not rest:
            listed = ", ".join(str(v.name) for v in model.graph.inputs)
            raise DataError(f"the example has no input {name!r}", rule=f"the model takes {listed}")
        found[name] = _array(named[name] if name in named else rest.pop(0), value)
    return found


def random_feeds(model: ir.Model, *, seed: int = 0) -> Iterator[Feeds]:
    """Random inputs of the right dtypes, with several sizes for the dynamic axes.

    Floats are standard normal; integers that index a table stay inside it, others are 0 or 1.

    Args:
        model: Names, types and shapes of the inputs.
        seed: Seed of the generator.

    Yields:
        One set of inputs per size tried; one in all when every axis is fixed.
    """
    dynamic = any(not isinstance(dim, int) for value in model.graph.inputs for dim in query.shape(value) or (None,))
    for size in _SIZES if dynamic else _SIZES[:1]:
        generator = np.random.default_rng(seed)
        yield {value.name or "": _random(value, size, generator) for value in model.graph.inputs}


def _array(item: Any, value: ir.Value) -> Array:
    if hasattr(item, "detach"):
        item = item.detach().cpu()
        if str(item.dtype) == "torch.bfloat16":  # numpy has none
            item = item.float()
    array = np.asarray(item)
    return array if value.dtype is None else array.astype(value.dtype.numpy(), copy=False)


def _random(value: ir.Value, size: int, generator: np.random.Generator) -> Array:
    dims = query.shape(value) or ()
    shape = tuple(dim if isinstance(dim, int) else (1 if axis == 0 else size) for axis, dim in enumerate(dims))
    dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
    if value.dtype is not None and not value.dtype.is_floating_point():
        return generator.integers(0, _table_rows(value) or 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _table_rows(value: ir.Value) -> int | None:
    """How many rows the table has that an integer input indexes."""
    for reader, index in query.readers(value):
        if reader.op_type == "Gather" and index == 1:
            table = query.static_shape(reader.inputs[0])
            axis = reader.attributes.get_int("axis", 0) or 0
            if table:
                return table[axis]
        elif reader.op_type in _LOOKED_THROUGH:
            rows = _table_rows(reader.outputs[0])
            if rows is not None:
                return rows
    return None
