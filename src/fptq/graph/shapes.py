"""The same network for other input shapes."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from fptq.graph.axes import Shapes, fix_axes
from fptq.graph.canonical import canonicalize
from fptq.graph.model import Model


def with_fixed_shapes(model: Model, shapes: Shapes) -> Model:
    """A model whose inputs have the sizes of a sample; what then is constant is folded.

    Args:
        model: A canonical float model.
        shapes: The shape of every input.

    Returns:
        The model without dynamic axes; the same model when it has none.

    Raises:
        DataError: A shape is missing or has another number of axes.
    """
    fixed = all(info.shape is not None and all(isinstance(dim, int) for dim in info.shape) for info in model.inputs)
    if fixed:
        return model
    graph_model = model.clone()
    fix_axes(graph_model, shapes)
    made = canonicalize(graph_model)
    origin = {name: _traced(names, model) for name, names in made.origin.items()}
    return replace(model, graph_model=made.graph_model, origin=MappingProxyType(origin))


def _traced(names: tuple[str, ...], model: Model) -> tuple[str, ...]:
    return tuple(dict.fromkeys(old for name in names for old in model.origin.get(name, (name,))))
