"""A PyTorch module as a canonical model: which axes come out dynamic, parity, the signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from fptq.errors import ConfigError, ModelError
from fptq.graph import from_torch, parity, query
from fptq.graph.axes import NONE, Axes, parse_axes, varying_axes
from fptq.graph.canonical import canonicalize
from fptq.graph.from_torch import Exported, TorchCall
from fptq.graph.model import Model
from fptq.graph.sample import example_feeds


def load_module(module: nn.Module, example: object, *, others: Sequence[object], dynamic: str) -> Model:
    """Export a module and check the graph against it.

    Args:
        module: Any module; it is run and exported in evaluation mode and left as it was.
        example: One sample.
        others: Further samples, for their shapes.
        dynamic: "auto", "none" or the dynamic axes.

    Raises:
        ModelError: The module cannot be run or exported.
        ParityError: The graph computes something else.
        ConfigError: An axis is not the module's.
    """
    call = from_torch.take_apart(module, example)
    traced = _Traced(module=module, call=call, result=from_torch.run_module(module, call))
    if dynamic == "auto":
        return _load_auto(traced, [call, *(from_torch.take_apart(module, other) for other in others)])
    axes = NONE if dynamic == "none" else _checked(parse_axes(dynamic), call)
    exported = from_torch.export_module(module, call, axes, hint=torch.export.Dim.DYNAMIC)
    return _finished(traced, exported)


def load_program(path: Path, example: object) -> Model:
    """Read a `.pt2` program, which can execute code, and check the graph against it.

    Args:
        path: The file.
        example: One sample; the one that the program was exported with when None.

    Raises:
        ModelError: The file is no program, or has no ONNX form.
    """
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise ModelError(f"{path.name} cannot be read: {error}", rule="it must be a torch.export program") from error
    module = program.module()
    call = from_torch.take_apart(module, program.example_inputs if example is None else example)
    traced = _Traced(module=module, call=call, result=from_torch.run_module(module, call))
    return _finished(traced, from_torch.export_program(program, call), source=str(path))


@dataclass(frozen=True, kw_only=True)
class _Traced:
    """A module, the example and what came of it."""

    module: nn.Module
    call: TorchCall
    result: Any


def _load_auto(traced: _Traced, calls: Sequence[TorchCall]) -> Model:
    axes = varying_axes([{name: tuple(t.shape) for name, t in call.tensors.items()} for call in calls])
    module, call = traced.module, traced.call
    problem = ""
    if axes:
        try:
            exported = from_torch.export_module(module, call, axes, hint=torch.export.Dim.AUTO)
            wrong = _wrongly_fixed(exported.graph_model, call)
            if not wrong:
                return _finished(traced, exported, notes=_fixed_notes(exported.graph_model, axes))
            problem = f"tracing fixes {wrong}"
        except ModelError as error:
            problem = error.what
    exported = from_torch.export_module(module, call, NONE, hint=torch.export.Dim.AUTO)
    note = f"Exported with fixed shapes, because with dynamic axes {problem}." if problem else ""
    return _finished(traced, exported, notes=(note,) if note else ())


def _finished(traced: _Traced, exported: Exported, *, notes: tuple[str, ...] = (), source: str = "") -> Model:
    """The parity gate between a module and its graph, then the model."""
    call, made = traced.call, canonicalize(exported.graph_model)
    outputs = [str(value.name) for value in made.graph_model.graph.outputs]
    signature = from_torch.signature(call, result=traced.result, names=outputs)
    tensors = tuple(call.tensors.values())
    reference = parity.Reference(
        name=type(traced.module).__name__,
        outputs=[from_torch.to_numpy(leaf) for leaf in from_torch.tensor_leaves(traced.result)],
        values=lambda names: exported.intermediates(tensors, names),
    )
    feeds = example_feeds(made.graph_model, call.feeds)
    parity.check_parity(made.graph_model, feeds, reference, tolerance=parity.HALF if made.halves else parity.SINGLE)
    return Model(
        graph_model=made.graph_model,
        origin=made.origin,
        source=source or f"{type(traced.module).__module__}.{type(traced.module).__qualname__}",
        notes=(*notes, *made.notes),
        signature=signature,
    )


def _checked(axes: Axes, call: TorchCall) -> Axes:
    for name, named in axes.items():
        if name not in call.tensors:
            raise ConfigError(f"dynamic axes for {name!r}", rule=f"the module's inputs are {', '.join(call.tensors)}")
        count = call.tensors[name].ndim
        if max(named) >= count:
            raise ConfigError(f"dynamic axis {name}:{max(named)}", rule=f"{name} has {count} axes")
    return axes


def _wrongly_fixed(model: ir.Model, call: TorchCall) -> str:
    """The first input axis that tracing fixed at a size that the example does not have."""
    for value in model.graph.inputs:
        sizes = tuple(call.tensors[value.name or ""].shape)
        for axis, (dim, size) in enumerate(zip(query.shape(value) or (), sizes, strict=True)):
            if isinstance(dim, int) and dim != size:
                return f"axis {axis} of {value.name!r} at {dim}"
    return ""


def _fixed_notes(model: ir.Model, axes: Axes) -> tuple[str, ...]:
    """Axes that should be dynamic and that the module's own code fixes."""
    shapes = {value.name: query.shape(value) or () for value in model.graph.inputs}
    fixed = [
        f"{name}:{axis} at {shapes[name][axis]}"
        for name, named in axes.items()
        for axis in named
        if isinstance(shapes[name][axis], int)
    ]
    return (f"The module's code fixes {', '.join(fixed)}.",) if fixed else ()
