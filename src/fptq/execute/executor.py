"""Runs the canonical graph, or a part of it, in torch: differentiable, on CPU or CUDA, for any spatial rank."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from fptq.errors import ModelError
from fptq.execute.ops import OPS, Call, Op
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.types import Array

Tensors: TypeAlias = Mapping[str, torch.Tensor]

Hook: TypeAlias = Callable[[Placement, torch.Tensor], torch.Tensor]
"""Called for every floating-point value once, `Placement(value)`, and then for each reader of it,
`Placement(value, consumer, index)`; what it returns goes on."""


@dataclass(frozen=True)
class Step:
    """One node of a program.

    Attributes:
        name: The node's.
        op: Its function.
        call: Its attributes.
        inputs: Names of what it reads; None where an input is left out.
        outputs: Names of what it computes; empty for those that nobody asks for.
        last_read: Values that nobody reads afterwards.
    """

    name: str
    op: Op
    call: Call
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    last_read: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Executor:
    """A network, or the part of it between some values, as a torch function.

    Attributes:
        model: The network.
        inputs: Names of the values that are fed; empty: the network's inputs.
        outputs: Names of the values that are computed; empty: the network's outputs.
        device: Where it runs.
        dtype: What floating-point weights and feeds are cast to.
        weights: The stored tensors that the part reads, by name; `open` fills them in.
    """

    model: Model
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    weights: Mapping[str, torch.Tensor] = field(repr=False, default_factory=dict)

    @classmethod
    def open(cls, model: Model, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Executor:
        """The whole network.

        Raises:
            ModelError: An operation has no function yet; the message names the file to add it to.
        """
        executor = cls(model=model, device=device, dtype=dtype)
        executor.program(())
        return replace(executor, weights=_stored(model, device, dtype))

    def part(self, inputs: Sequence[str], outputs: Sequence[str]) -> Executor:
        """What computes some values from others; the weights are shared with the whole.

        Args:
            inputs: Values to be fed: no node before them runs.
            outputs: Values to compute.
        """
        return replace(self, inputs=tuple(inputs), outputs=tuple(outputs))

    def run(
        self, feeds: Mapping[str, Array | torch.Tensor], *, hook: Hook | None = None, fetch: Sequence[str] = ()
    ) -> dict[str, torch.Tensor]:
        """Compute the outputs, and further values on demand.

        Only what the outputs and `fetch` need runs; each value is freed after its last reader, unless autograd
        keeps it. Wrap in `torch.no_grad()` where no gradient is wanted.

        Args:
            feeds: The fed values by name; more than needed is no error.
            hook: Sees, and may replace, every floating-point value; see `Hook`.
            fetch: Names of further values to return.

        Returns:
            The outputs in their order, then what was fetched.

        Raises:
            ModelError: A fed value is missing, or an operation failed on its inputs.
        """
        wanted = dict.fromkeys((*self.output_names, *fetch))
        steps = self.program(tuple(wanted))
        state = _State(weights=self.weights, hook=hook, kept=frozenset(wanted))
        for name in self.input_names:
            if name in feeds:
                state.set(name, self._tensor(feeds[name]))
        for step in steps:
            state.run(step)
        return {name: state.value(name) for name in wanted}

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the fed values."""
        return self.inputs or tuple(info.name for info in self.model.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the computed values."""
        return self.outputs or tuple(info.name for info in self.model.outputs)

    def program(self, wanted: tuple[str, ...]) -> tuple[Step, ...]:
        """The steps that compute values, in order; none wanted: the outputs.

        Raises:
            ModelError: An operation has no function, or no node computes a wanted value.
        """
        names = wanted or self.output_names
        if names not in self._programs:
            self._programs[names] = _program(self.model, self.input_names, names)
        return self._programs[names]

    @cached_property
    def _programs(self) -> dict[tuple[str, ...], tuple[Step, ...]]:
        return {}

    def _tensor(self, value: Array | torch.Tensor) -> torch.Tensor:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value, order="C"))
        # Integers steer: shapes and indices are read on the host.
        return tensor.to(self.device, self.dtype) if tensor.is_floating_point() else tensor


@dataclass(kw_only=True)
class _State:
    """The values of one run."""

    weights: Tensors
    hook: Hook | None
    kept: frozenset[str]
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    def set(self, name: str, tensor: torch.Tensor) -> None:
        self.values[name] = self._seen(Placement(name), tensor)

    def value(self, name: str) -> torch.Tensor:
        if name not in self.values:
            if name not in self.weights:
                raise ModelError(f"value {name!r} is not fed", rule="a part of a network needs all of its inputs")
            self.set(name, self.weights[name])
        return self.values[name]

    def run(self, step: Step) -> None:
        inputs = [None if name is None else self._read(step, name, i) for i, name in enumerate(step.inputs)]
        try:
            result = step.op(step.call, *inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = [None if x is None else list(x.shape) for x in inputs]
            raise ModelError(
                f"{step.call.node.op_type} {step.name!r} failed on inputs of shapes {shapes}: {error}",
                rule="the executor runs what ONNX Runtime runs",
                remedy="Please report this with the model",
            ) from error
        results = result if isinstance(result, tuple) else (result,)
        for name, tensor in zip(step.outputs, results, strict=False):
            if name:
                self.set(name, tensor)
        for name in step.last_read:
            if name not in self.kept:
                self.values.pop(name, None)

    def _read(self, step: Step, name: str, index: int) -> torch.Tensor:
        return self._seen(Placement(name, step.name, index), self.value(name))

    def _seen(self, placement: Placement, tensor: torch.Tensor) -> torch.Tensor:
        return self.hook(placement, tensor) if self.hook is not None and tensor.is_floating_point() else tensor


def _program(model: Model, fed: Sequence[str], wanted: Sequence[str]) -> tuple[Step, ...]:
    nodes = _needed(model, set(fed), wanted)
    steps: list[Step] = []
    read_later: set[str] = set()
    for node in reversed(nodes):
        names = tuple(None if value is None else str(value.name) for value in node.inputs)
        outputs = tuple(str(value.name or "") for value in node.outputs)
        reads = {name for name in names if name is not None}
        dead = tuple(sorted((reads | set(outputs)) - read_later - {""}))
        steps.append(
            Step(
                name=str(node.name),
                op=_function(node),
                call=Call(node, model.opset),
                inputs=names,
                outputs=outputs,
                last_read=dead,
            )
        )
        read_later |= reads
    return tuple(reversed(steps))


def _needed(model: Model, fed: set[str], wanted: Iterable[str]) -> list[ir.Node]:
    """The nodes that the wanted values depend on, without those in front of what is fed."""
    open_names = [name for name in wanted if name not in fed]
    makers = {output.name: node for node in model.graph for output in node.outputs}
    found: set[ir.Node] = set()
    while open_names:
        name = open_names.pop()
        node = makers.get(name)
        if node is None:
            if name not in model.graph.initializers:
                raise ModelError(
                    f"value {name!r} is not fed", rule="what no node between inputs and outputs computes must be fed"
                )
            continue
        if node not in found:
            found.add(node)
            open_names += [str(value.name) for value in node.inputs if value is not None and value.name not in fed]
    return [node for node in model.graph if node in found]


def _function(node: ir.Node) -> Op:
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPS:
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        raise ModelError(
            f"{op} (node {node.name!r}) has no function in the executor",
            rule="analysis and learning run the network in torch",
            remedy="Add one to src/fptq/execute/ops/, in the file of its kind, and name it in that file's OPS",
        )
    return OPS[node.op_type]


def _stored(model: Model, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    stored = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            tensor = _from_numpy(value.const_value.numpy())
            stored[name] = tensor.to(device, dtype) if tensor.is_floating_point() else tensor
    return stored


def _from_numpy(array: Array) -> torch.Tensor:
    if array.dtype.kind not in "fiub":  # bfloat16 and 4-bit integers are ml_dtypes; torch takes neither from numpy
        array = array.astype(np.float32 if "float" in array.dtype.name else np.int8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights in mapped files are read-only, and nobody writes to them here
        return torch.from_numpy(np.asarray(array, order="C"))
