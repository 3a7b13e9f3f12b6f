"""The user's own code by name: `package.module:function`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from fptq.errors import ConfigError, FptqError

_FORM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def names_callable(text: str) -> bool:
    """Whether a text has the form `package.module:function`.

    >>> names_callable("mypkg.data:batches"), names_callable("scans/*.nii.gz")
    (True, False)
    """
    return _FORM.fullmatch(text) is not None


def load_callable(spec: str) -> Callable[..., Any]:
    """The function (or other callable) that `package.module:function` names.

    The current directory is importable, as with `python -m`.

    Args:
        spec: Dotted module name, a colon, and a name inside the module, which may be dotted too.

    Raises:
        ConfigError: The text has another form, or the module, the name or the callable does not exist.
    """
    if not names_callable(spec):
        raise ConfigError(f"{spec!r} names no function", rule="the form is package.module:function")
    module_name, _, attributes = spec.partition(":")
    found: Any = _import(module_name, spec)
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise ConfigError(
                f"{spec!r}: {module_name} has no {attribute!r}", remedy=_nearest(attribute, public) or "Check the name"
            )
        found = getattr(found, attribute)
    if not callable(found):
        raise ConfigError(f"{spec!r} is a {type(found).__name__}", rule="it must be callable")
    return found  # type: ignore[no-any-return]


def _import(name: str, spec: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        # Left in place: the user's module may import its neighbours later, when it is called.
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except FptqError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            parent, _, leaf = error.name.rpartition(".")
            remedy = _nearest(leaf, _modules(parent)) or f"Run from the folder that holds it (now {here}) or install it"
            raise ConfigError(f"{spec!r}: no module named {error.name!r}", remedy=remedy) from error
        raise ConfigError(f"{spec!r}: importing {name} raised {type(error).__name__}: {error}") from error


def _modules(parent: str) -> Iterable[str]:
    path = sys.modules[parent].__path__ if parent else None
    return (info.name for info in pkgutil.iter_modules(path))


def _nearest(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=3)
    return f"Did you mean {' or '.join(close)}?" if close else ""
