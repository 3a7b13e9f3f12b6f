"""How a PyTorch module is called and what it returns, so that an engine can stand in for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fptq.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A part of a call or of a result that is no tensor: the graph was made for this value."""

    value: object


@dataclass(frozen=True, kw_only=True)
class ModuleSignature:
    """The arguments and the output structure of an exported module.

    Attributes:
        call: The parameters of the module's `forward`.
        arguments: For each argument of the exported call, what its parts (pytree leaves) became: the name of a
            graph input, or a `Constant`.
        outputs: The same for the parts of the result.
        out_spec: The result's structure (`torch.utils._pytree.TreeSpec`).
        dtypes: The `torch.dtype` of each graph output as the module returned it: half precision is widened in the
            graph, and a pipeline may count on it.
    """

    call: inspect.Signature
    arguments: Mapping[str, tuple[str | Constant, ...]]
    outputs: tuple[str | Constant, ...]
    out_spec: Any
    dtypes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def feeds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The graph's inputs from a call's arguments.

        Args:
            args: Positional arguments, as the module takes them.
            kwargs: Keyword arguments.

        Returns:
            Tensors by graph input name.

        Raises:
            DataError: The call has other arguments than the exported one, or another value where that was frozen.
        """
        bound = bind(self.call, args, kwargs)
        for name, value in bound.items():
            if name not in self.arguments and value is not None and not _same(value, self._default(name)):
                raise DataError(
                    f"argument {name} is {_shown(value)}",
                    rule=f"the model was exported without it, with {', '.join(self.arguments)}",
                    remedy="Leave it out, or export the model again with the value you need",
                )
        found: dict[str, Any] = {}
        for argument, parts in self.arguments.items():
            value = bound.get(argument, self._default(argument))
            a_tensor = any(isinstance(part, str) for part in parts)
            if value is inspect.Parameter.empty or (a_tensor and argument not in bound):
                raise DataError(
                    f"argument {argument} is missing (given: {', '.join(bound) or 'nothing'})",
                    rule=f"the model was exported with {', '.join(self.arguments)}",
                    remedy="Call it as it was called for the export",
                )
            found.update(_tensors(argument, value, parts))
        return found

    def _default(self, argument: str) -> object:
        """What the module takes when an argument is left out; `Parameter.empty` when that is not known."""
        parameter = self.call.parameters.get(argument)
        return inspect.Parameter.empty if parameter is None else parameter.default

    def result(self, outputs: Mapping[str, Any]) -> Any:
        """What the module would return, from the graph's outputs by name."""
        from torch.utils import _pytree as pytree

        leaves = [part.value if isinstance(part, Constant) else outputs[part] for part in self.outputs]
        return pytree.tree_unflatten(leaves, self.out_spec)


def bind(call: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by parameter name; `*args` become `args_0`, ..., `**kwargs` their own names.

    Raises:
        DataError: The arguments do not fit the parameters.
    """
    try:
        bound = call.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise DataError(f"the model cannot be called so: {error}", rule=f"its signature is {call}") from error
    found: dict[str, Any] = {}
    for name, value in bound.items():
        kind = call.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found.update({f"{name}_{index}": item for index, item in enumerate(value)})
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        else:
            found[name] = value
    return found


def _tensors(argument: str, value: object, parts: tuple[str | Constant, ...]) -> dict[str, Any]:
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves(value)
    if len(leaves) != len(parts):
        raise DataError(
            f"argument {argument} has {len(leaves)} parts", rule=f"the exported call had {len(parts)} there"
        )
    found: dict[str, Any] = {}
    for leaf, part in zip(leaves, parts, strict=True):
        if isinstance(part, str) and hasattr(leaf, "__array__"):
            found[part] = leaf
        elif isinstance(part, str) or not _same(leaf, part.value):
            raise DataError(
                f"argument {argument} is {_shown(leaf)}",
                rule=f"the model was exported with {'a tensor' if isinstance(part, str) else repr(part.value)} there",
                remedy="Export it again with the value you need",
            )
    return found


def _same(value: object, recorded: object) -> bool:
    """Whether a value that is no tensor is the recorded one."""
    return not hasattr(value, "__array__") and bool(value == recorded)


def _shown(value: object) -> str:
    """A value in one line; of a tensor its shape."""
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else f"a tensor {list(shape)}"
