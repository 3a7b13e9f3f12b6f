"""PyTorch modules through the door: `torch.export`, then ONNX, with names and module paths kept."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from fptq.errors import ModelError
from fptq.graph.axes import NONE, Axes, rename_symbols
from fptq.graph.opset import OPSET, quiet
from fptq.graph.origin import SCOPES_KEY
from fptq.graph.rest import put_to_rest
from fptq.graph.torch_call import TorchCall, tensor_leaves, to_numpy
from fptq.types import Array

_PREFIX = "net."
"""What wrapping the user's module puts before the names of its parameters and scopes."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported module, before any conversion.

    Attributes:
        graph_model: The graph as the exporter wrote it; its weights are copies.
        program: The decomposed program, whose node names are the graph's value names.
    """

    graph_model: ir.Model
    program: torch.export.ExportedProgram

    def intermediates(self, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> dict[str, Array]:
        """What PyTorch computes, by value name; names that it does not know are left out."""
        found: dict[str, Array] = {}
        watched = set(names)

        class Watch(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                value = super().run_node(n)
                if n.name in watched and isinstance(value, torch.Tensor):
                    found[n.name] = to_numpy(value)
                return value

        module = self.program.module()
        with torch.no_grad():
            Watch(module).run(*tensors)
        return found


class _Bound(nn.Module):
    """A module that takes and returns nothing but tensors; everything else of the call is bound.

    Modules with `**kwargs` export with dynamic axes only so, and the exporter refuses numbers among the results.
    """

    def __init__(self, net: nn.Module, call: TorchCall) -> None:
        super().__init__()
        self.net = net
        self._call = call

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = self._call.rebuild(tensors)
        return tensor_leaves(self.net(*args, **kwargs))


def run_module(module: nn.Module, call: TorchCall) -> Any:
    """The module's result in evaluation mode.

    Raises:
        ModelError: The module raises.
    """
    args, kwargs = call.rebuild(tuple(call.tensors.values()))
    with evaluating(module):
        try:
            result = module(*args, **kwargs)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in call.tensors.items())
            raise ModelError(
                f"{type(module).__name__} cannot be run on the example ({shapes}): {_cause(error)}",
                remedy="Check the sample's shape and dtype",
            ) from error
    return result


def export_module(module: nn.Module, call: TorchCall, axes: Axes, *, hint: Any) -> Exported:
    """Export a module in evaluation mode; its training flags are restored.

    Args:
        module: Any module that `torch.export` can trace.
        call: The example.
        axes: Which axes are dynamic.
        hint: `Dim.DYNAMIC` when each of them must be, `Dim.AUTO` when tracing may fix them.

    Raises:
        ModelError: The module cannot be exported so.
    """
    dims = tuple(dict.fromkeys(axes.get(name, {}), hint) for name in call.tensors)
    tensors = tuple(_at_least_two(t, axes.get(name, {})) for name, t in call.tensors.items())
    with evaluating(module), _silent():
        try:
            wrapped = _Bound(module, call).eval()
            program = torch.export.export(wrapped, tensors, dynamic_shapes={"tensors": dims} if axes else None)
        except Exception as error:
            raise ModelError(
                f"{type(module).__name__} cannot be exported: {_cause(error)}",
                rule="torch.export must be able to trace it",
                remedy="Try --dynamic none, or give an ONNX file",
            ) from error
        return export_program(program, call, axes)


def export_program(program: torch.export.ExportedProgram, call: TorchCall, axes: Axes = NONE) -> Exported:
    """Turn an exported program into a graph whose inputs are named as the call's tensors.

    Raises:
        ModelError: An operation has no ONNX equivalent, or an input is gone.
    """
    with _silent():
        try:
            made = torch.onnx.export(
                program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False, external_data=False
            )
        except Exception as error:
            raise ModelError(
                f"the program has no ONNX form: {_cause(error)}",
                rule="every operation needs an ONNX equivalent",
            ) from error
    assert made is not None
    assert made.exported_program is not None
    model = made.model
    if len(model.graph.inputs) != len(call.tensors):
        listed = ", ".join(str(value.name) for value in model.graph.inputs)
        raise ModelError(f"the exported graph takes {listed}", rule=f"the example has {', '.join(call.tensors)}")
    _restore_names(model, tuple(call.tensors), axes)
    put_to_rest(model)
    for value in model.graph.initializers.values():
        # The exporter's tensors share memory with the module: training it further would change this graph.
        if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(value.const_value.numpy().copy(), dtype=value.dtype, name=value.name)
    return Exported(graph_model=model, program=made.exported_program)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule's own flag comes back."""
    flags = [(part, part.training) for part in module.modules()]
    with contextlib.suppress(NotImplementedError):  # exported programs are fixed in the mode they were exported in
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, flag in flags:
            part.training = flag


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _at_least_two(tensor: torch.Tensor, axes: Mapping[int, str]) -> torch.Tensor:
    """A tensor whose dynamic axes are longer than one: torch.export takes a size of 0 or 1 for fixed."""
    repeats = [2 if axis in axes and size == 1 else 1 for axis, size in enumerate(tensor.shape)]
    return tensor.repeat(repeats) if 2 in repeats else tensor


def _restore_names(model: ir.Model, inputs: Sequence[str], axes: Axes) -> None:
    """Take the wrapper out of all names, and name the inputs and their dynamic sizes as the user does."""
    for name, value in list(model.graph.initializers.items()):
        value.name = name.removeprefix(_PREFIX)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        scopes = node.metadata_props.get(SCOPES_KEY)
        if scopes is not None:
            node.metadata_props[SCOPES_KEY] = scopes.replace(f"'{_PREFIX}", "'").replace("'net', ", "")
    sizes: dict[str, str] = {}
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                sizes.setdefault(str(dim.value), axes.get(name, {}).get(axis, f"{name}_{axis}"))
    rename_symbols(model, sizes)


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first: the exporters wrap their errors in instructions."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
