"""What a task computes, as a text: two tasks with the same one give the same scores.

Scores are kept between runs, and a stale one would be a wrong answer: what cannot be told apart for sure has no
fingerprint, and its scores are computed again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, MethodType, ModuleType

import numpy as np

from fptq.cache import cache_key


def fingerprint(task: object) -> str | None:
    """The fingerprint of a task, metric or anything else that is called; None where there is none for sure.

    Functions count with their code, their defaults, and every value, function and class that they name; packages by
    name and version; paths with the bytes behind them. What a function reads from elsewhere (a file that it opens, a
    random state) is not seen.
    """
    try:
        return cache_key(_described(task, set()))
    except _Opaque:
        return None


class _Opaque(Exception):
    """Something that cannot be told apart from another one of its kind."""


_PLAIN = (type(None), bool, int, float, str, bytes, np.ndarray)


def _described(thing: object, seen: set[int]) -> object:
    """Plain data for `cache_key`."""
    if isinstance(thing, _PLAIN):
        return thing
    match thing:
        case complex() | EllipsisType() | slice() | range() | np.generic() | np.dtype():
            return (type(thing).__name__, repr(thing))
        case Path():
            return ("path", _content(thing))
        case ModuleType():
            return ("module", thing.__name__, str(getattr(thing, "__version__", "")))
        case BuiltinFunctionType():
            return ("builtin", thing.__module__ or "", thing.__qualname__)
    if id(thing) in seen:
        return "again"
    return _container(thing, seen | {id(thing)})


def _container(thing: object, seen: set[int]) -> object:
    match thing:
        case Mapping():
            return ("mapping", [(_described(k, seen), _described(v, seen)) for k, v in thing.items()])
        case set() | frozenset():
            return ("set", sorted(cache_key(_described(one, seen)) for one in thing))
        case list() | tuple():
            return ("sequence", [_described(one, seen) for one in thing])
    return _compound(thing, seen)


def _compound(thing: object, seen: set[int]) -> object:
    match thing:
        case FunctionType():
            return _function(thing, seen)
        case MethodType():
            return ("method", _described(thing.__func__, seen), _described(thing.__self__, seen))
        case CodeType():
            return ("code", thing.co_code, thing.co_names, [_described(one, seen) for one in thing.co_consts])
        case type():
            return _class(thing)
    if callable(getattr(thing, "detach", None)) and callable(getattr(thing, "numpy", None)):
        return ("tensor", thing.detach().cpu().numpy())  # type: ignore[attr-defined]
    if is_dataclass(thing):
        values = [(field.name, _described(getattr(thing, field.name), seen)) for field in fields(thing)]
        return (_class(type(thing)), values)
    if isinstance(thing, Sequence):
        return (_class(type(thing)), [_described(one, seen) for one in thing])
    # An object's attributes are all that distinguishes it, where none of them can hide outside Python: in a torch
    # module (the one kind with a state_dict) and in the user's own classes.
    hidden = type(thing).__module__.split(".")[0] in _foreign() and not callable(getattr(thing, "state_dict", None))
    if hidden or not hasattr(thing, "__dict__"):
        raise _Opaque(type(thing))
    return (_class(type(thing)), _described(vars(thing), seen))


def _function(function: FunctionType, seen: set[int]) -> object:
    if function.__module__ and function.__module__.split(".")[0] in _foreign():
        return ("package", function.__module__, function.__qualname__, _version(function.__module__))
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    named = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return (
        "function",
        _described(function.__code__, seen),
        _described(function.__defaults__, seen),
        _described(function.__kwdefaults__, seen),
        [_described(cell, seen) for cell in cells],
        [(name, _described(value, seen)) for name, value in sorted(named.items())],
    )


def _names(code: CodeType) -> set[str]:
    """The names that a function reads, those of the functions inside it too."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _class(kind: type) -> object:
    top = kind.__module__.split(".")[0]
    if top in _foreign() or top == "builtins":
        return ("class", kind.__module__, kind.__qualname__, _version(kind.__module__))
    try:
        return ("class", kind.__qualname__, inspect.getsource(kind))
    except (OSError, TypeError) as error:
        raise _Opaque(kind) from error


@functools.cache
def _foreign() -> frozenset[str]:
    """Top-level names of installed packages: what they compute is known by their version."""
    return frozenset(importlib.metadata.packages_distributions()) | sys.stdlib_module_names


def _version(module: str) -> str:
    return str(getattr(sys.modules.get(module.split(".")[0]), "__version__", ""))


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _Opaque(path) from error
