"""Packages that only some features need."""

from __future__ import annotations

import importlib
from typing import Any

from fptq.errors import MissingExtra


def optional(module: str, *, extra: str, purpose: str) -> Any:
    """A module of an optional package.

    Args:
        module: Dotted name, such as "scipy.ndimage".
        extra: The extra of fptq that installs it.
        purpose: What needs it; the subject of "... needs it".

    Raises:
        MissingExtra: The package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks one of its own dependencies must show that name instead.
        missing = (error.name or package).partition(".")[0]
        raise MissingExtra(missing, extra=extra, purpose=purpose) from error
