"""What pydantic found wrong, in one line each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from fptq.config.preprocess import TAGS, PreprocessTable
from fptq.errors import ConfigError


def config_error(error: ValidationError, source: str, record: type[BaseModel]) -> ConfigError:
    """One line for each problem.

    Args:
        error: What pydantic says.
        source: Where the values come from.
        record: What was to be made of them.
    """
    problems = [_problem(entry, record) for entry in error.errors(include_url=False, include_context=False)]
    if len(problems) == 1:
        return ConfigError(f"{source}: {problems[0]}")
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{source} has {len(problems)} problems:\n{lines}")


def _problem(entry: Any, record: type[BaseModel]) -> str:
    location = entry["loc"]
    if location[0] == "preprocess":  # the tag of the union is no part of the file
        location = [part for part in location if part not in TAGS]
    name = ".".join(str(part) for part in location)
    if entry["type"] == "extra_forbidden":
        table = PreprocessTable if location[0] == "preprocess" else record
        return f"unknown key {name!r}; {_nearest(str(location[-1]), table.model_fields)}"
    if entry["type"] == "missing":
        return f"{name} is missing"
    message = entry["msg"].removeprefix("Input should be ").replace("tuple", "list")
    message = message.removesuffix(" or instance of PreprocessTable").replace("dictionary", "table")
    return f"{name} = {entry['input']!r} should be {message}"


def _nearest(key: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(key.replace("-", "_").lower(), names, n=1, cutoff=0.5)
    return f"the nearest one is {close[0]!r}" if close else f"the keys are {', '.join(names)}"
