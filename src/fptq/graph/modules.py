"""A PyTorch module as a canonical model: which axes come out dynamic, parity, the signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fptq.errors import ConfigError, ModelError
from fptq.graph import from_torch, parity
from fptq.graph.axes import NONE, Axes, Shapes, parse_axes, varying_axes
from fptq.graph.canonical import Canonical, canonicalize
from fptq.graph.from_torch import Exported
from fptq.graph.model import Model
from fptq.graph.rest import let_go, put_to_rest
from fptq.graph.sample import example_feeds
from fptq.graph.torch_call import TorchCall, take_apart, tensor_leaves, to_numpy


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
    subject = _run(module, take_apart(module, example))
    if dynamic == "auto":
        return _load_auto(subject, others)
    if dynamic == "none":
        return _export(subject, NONE, torch.export.Dim.AUTO).model
    return _export(subject, _checked(parse_axes(dynamic), subject.call), torch.export.Dim.DYNAMIC).model


def load_program(path: Path, example: object) -> Model:
    """Read a `.pt2` program, which can execute code, and check the graph against it.

    Args:
        path: The file.
        example: One sample; the one that the program was exported with when None.

    Raises:
        ModelError: The file is no program, or has no ONNX form.
        ParityError: The graph computes something else.
    """
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise ModelError(f"{path.name} cannot be read: {error}", rule="it must be a torch.export program") from error
    module = program.module()
    call = take_apart(module, program.example_inputs if example is None else example)
    loaded = _finish(_run(module, call), from_torch.export_program(program, call))
    return replace(loaded.model, source=str(path))


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A module, an example of how it is called, and what it returned."""

    module: nn.Module
    call: TorchCall
    result: object


def _run(module: nn.Module, call: TorchCall) -> _Subject:
    return _Subject(module=module, call=call, result=from_torch.run_module(module, call))


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A module's model, and what it takes to check it on another sample."""

    model: Model
    made: Canonical
    exported: Exported


def _load_auto(subject: _Subject, others: Sequence[object]) -> Model:
    shapes, seen, other = subject.call.shapes, [subject.call.shapes], None
    for sample in others:  # one at a time: taking a call apart may copy its tensors
        call = take_apart(subject.module, sample)
        seen.append(call.shapes)
        other = call if other is None and call.shapes != shapes else other
    axes = varying_axes(seen)
    problem = "no input has a batch axis" if not axes else ""
    if axes:
        try:
            loaded = _export(subject, axes, torch.export.Dim.AUTO)
            problem = _wrongly_fixed(loaded.model, shapes)
            if not problem:
                if other is not None:
                    _check(_run(subject.module, other), loaded.made, loaded.exported)
                return replace(loaded.model, notes=(*loaded.model.notes, *_fixed_notes(loaded.model, axes)))
        except ModelError as error:
            problem = error.what
    model = _export(subject, NONE, torch.export.Dim.AUTO).model
    return replace(model, notes=(*model.notes, f"Exported with fixed shapes: {problem}."))


def _export(subject: _Subject, axes: Axes, hint: object) -> _Loaded:
    return _finish(subject, from_torch.export_module(subject.module, subject.call, axes, hint=hint))


def _finish(subject: _Subject, exported: Exported) -> _Loaded:
    """The canonical graph, the parity gate, and the model."""
    kind = type(subject.module)
    made = canonicalize(exported.graph_model)
    put_to_rest(made.graph_model)
    let_go(exported.graph_model)  # onnxscript's rules remember the graph that they matched last
    _check(subject, made, exported)
    outputs = [str(value.name) for value in made.graph_model.graph.outputs]
    model = Model(
        graph_model=made.graph_model,
        origin=made.origin,
        source=f"{kind.__module__}.{kind.__qualname__}",
        notes=made.notes,
        signature=subject.call.signature(result=subject.result, names=outputs),
    )
    return _Loaded(model=model, made=made, exported=exported)


def _check(subject: _Subject, made: Canonical, exported: Exported) -> None:
    """The parity gate between a module and its graph."""
    tensors = tuple(subject.call.tensors.values())
    reference = parity.Reference(
        name=type(subject.module).__name__,
        outputs=[to_numpy(leaf) for leaf in tensor_leaves(subject.result)],
        values=lambda names: exported.intermediates(tensors, names),
    )
    feeds = example_feeds(made.graph_model, subject.call.feeds)
    parity.check_parity(made.graph_model, feeds, reference, tolerance=parity.HALF if made.halves else parity.SINGLE)


def _checked(axes: Axes, call: TorchCall) -> Axes:
    for name, named in axes.items():
        if name not in call.tensors:
            raise ConfigError(f"dynamic axes for {name!r}", rule=f"the module's inputs are {', '.join(call.tensors)}")
        count = call.tensors[name].ndim
        if max(named) >= count:
            raise ConfigError(f"dynamic axis {name}:{max(named)}", rule=f"{name} has {count} axes")
    return axes


def _wrongly_fixed(model: Model, shapes: Shapes) -> str:
    """The first input axis that tracing fixed at a size that the example does not have."""
    for info in model.inputs:
        for axis, (dim, size) in enumerate(zip(info.shape or (), shapes[info.name], strict=True)):
            if isinstance(dim, int) and dim != size:
                return f"tracing fixes axis {axis} of {info.name!r}"
    return ""


def _fixed_notes(model: Model, axes: Axes) -> tuple[str, ...]:
    """Axes that should be dynamic and that the module's own code fixes."""
    fixed = [
        f"{info.name}:{axis} at {info.shape[axis]}"
        for info in model.inputs
        for axis in axes.get(info.name, {})
        if info.shape is not None and isinstance(info.shape[axis], int)
    ]
    return (f"The module's code fixes {', '.join(fixed)}.",) if fixed else ()
