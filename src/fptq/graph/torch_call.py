"""One call of a PyTorch module, taken apart into tensors and everything else."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fptq.errors import DataError, ModelError
from fptq.graph.signature import Constant, ModuleSignature, bind
from fptq.types import Array, Feeds

_Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TorchCall:
    """One call of a module, taken apart into tensors and everything else.

    Attributes:
        call: The module's parameters.
        tensors: The tensors by the name that the graph's input gets.
        arguments: For each argument, what its parts became: an input's name, or a constant.
        template: The arguments, with input names in the tensors' places.
    """

    call: inspect.Signature
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    arguments: Mapping[str, tuple[str | Constant, ...]]
    template: _Arguments

    @property
    def feeds(self) -> Feeds:
        """The tensors as the graph takes them."""
        return {name: to_numpy(tensor) for name, tensor in self.tensors.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def rebuild(self, tensors: Sequence[torch.Tensor]) -> _Arguments:
        """The call's arguments with other tensors."""
        leaves, spec = pytree.tree_flatten(self.template)
        named = dict(zip(self.tensors, tensors, strict=True))
        filled = [named[leaf.name] if isinstance(leaf, _Slot) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return args, kwargs

    def signature(self, *, result: object, names: Sequence[str]) -> ModuleSignature:
        """How to call the graph as the module was called.

        Args:
            result: What the module returned for it.
            names: The graph's outputs, in the order of the result's tensors.

        Raises:
            ModelError: The graph has other outputs than the module.
        """
        leaves, spec = pytree.tree_flatten(result)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if len(tensors) != len(names):
            raise ModelError(f"the module returns {len(tensors)} tensors and its graph {len(names)}")
        rest = iter(names)
        parts = tuple(next(rest) if isinstance(leaf, torch.Tensor) else Constant(value=leaf) for leaf in leaves)
        dtypes = {name: tensor.dtype for name, tensor in zip(names, tensors, strict=True)}
        return ModuleSignature(call=self.call, arguments=self.arguments, outputs=parts, out_spec=spec, dtypes=dtypes)


def take_apart(module: nn.Module, example: object) -> TorchCall:
    """Bind an example to a module's parameters and name its tensors.

    Args:
        module: Its parameters' dtype and device are given to the example's floating-point tensors.
        example: A tensor or array, a tuple of positional or a mapping of keyword arguments, or a recorded call
            `(args, kwargs)`.

    Raises:
        DataError: The example does not fit the module.
    """
    call = inspect.signature(module.forward)
    args, kwargs = _arguments(example, call)
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
    args, kwargs = pytree.tree_map(lambda leaf: _as_tensor(leaf, like), (args, kwargs))
    tensors: dict[str, torch.Tensor] = {}
    arguments: dict[str, tuple[str | Constant, ...]] = {}
    slots: dict[int, _Slot] = {}
    for argument, value in bind(call, args, kwargs).items():
        parts: list[str | Constant] = []
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            if isinstance(leaf, torch.Tensor):
                name = "_".join([argument, *(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)])
                tensors[name], slots[id(leaf)] = leaf, _Slot(name)
            parts.append(name if isinstance(leaf, torch.Tensor) else Constant(value=leaf))
        arguments[argument] = tuple(parts)
    if not tensors:
        raise DataError("the example has no tensor", rule=f"{type(module).__name__} takes {call}")
    template = pytree.tree_map(lambda leaf: slots.get(id(leaf), leaf), (args, kwargs))
    return TorchCall(call=call, tensors=tensors, arguments=arguments, template=template)


def tensor_leaves(result: object) -> tuple[torch.Tensor, ...]:
    """The tensors in a result of any structure, in order."""
    return tuple(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor))


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as graphs take it: half precision becomes float32, as it does in the graph."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def to_numpy(tensor: torch.Tensor) -> Array:
    """A copy as a numpy array; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy().copy()


@dataclass(frozen=True)
class _Slot:
    name: str


def _arguments(example: object, call: inspect.Signature) -> _Arguments:
    match example:
        case Mapping():
            return (), dict(example)
        case (tuple() as args, Mapping() as kwargs):
            return args, dict(kwargs)
        case tuple() | list():
            # A loader's samples may carry targets behind what the module takes.
            kinds = inspect.Parameter
            places = [
                p for p in call.parameters.values() if p.kind in {kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD}
            ]
            anything = any(p.kind is kinds.VAR_POSITIONAL for p in call.parameters.values())
            return tuple(example if anything else example[: len(places)]), {}
        case _:
            return (example,), {}


def _as_tensor(leaf: Any, like: torch.Tensor) -> Any:
    if hasattr(leaf, "__array__") and not isinstance(leaf, torch.Tensor):
        leaf = torch.as_tensor(leaf)
    if not isinstance(leaf, torch.Tensor):
        return leaf
    wanted = like.dtype if leaf.is_floating_point() else leaf.dtype
    # A new object even when nothing changes: parts are told apart by identity.
    return leaf.detach().to(device=like.device, dtype=wanted).view_as(leaf)
