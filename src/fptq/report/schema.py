"""The documentation of `report.json`, made from the records themselves."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fptq.report.records import Record
from fptq.report.report import Report

BEGIN = "<!-- generated from the records; tests/report/test_schema.py says how to renew it -->"
END = "<!-- end of the generated part -->"


def schema_tables() -> str:
    """The schema as Markdown: one table a record, the report first."""
    return "\n".join(_table(record) for record in _records(Report, {}))


def renewed(document: str) -> str:
    """The document with the part between the two markers made anew."""
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{schema_tables()}\n{END}{rest.partition(END)[2]}"


def renew(path: Path) -> None:
    """Make the generated part of a Markdown file anew."""
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


def _records(record: type[Record], seen: dict[type[Record], None]) -> Mapping[type[Record], None]:
    if record not in seen:
        seen[record] = None
        for info in record.model_fields.values():
            for inner in _mentioned(info.annotation):
                _records(inner, seen)
    return seen


def _mentioned(annotation: Any) -> Iterator[type[Record]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    for part in get_args(annotation):
        yield from _mentioned(part)


def _table(record: type[Record]) -> str:
    summary, attributes = _documented(record)
    title = f"`{record.__name__}`" if record is not Report else "`Report`: the document"
    rows = [
        f"| `{name}` | {_type(info.annotation)} | {'yes' if info.is_required() else 'no'} | {attributes[name]} |"
        for name, info in record.model_fields.items()
    ]
    head = ("| field | type | required | meaning |", "|---|---|---|---|")
    return "\n".join((f"### {title}", "", summary, "", *head, *rows, ""))


def _documented(record: type[Record]) -> tuple[str, dict[str, str]]:
    summary, _, attributes = (record.__doc__ or "").partition("Attributes:")
    lines = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", attributes, flags=re.MULTILINE)
    return summary.strip(), {name: " ".join(text.split()) for name, text in lines}


def _type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin is Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(arg) for arg in args)
    if origin is tuple:
        return f"list of {_type(args[0])}" if args[-1] is ... else f"list of {len(args)} ({_type(args[0])})"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"object: {_type(args[0])} to {_type(args[1])}"
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return names.get(annotation) or f"[`{annotation.__name__}`](#{annotation.__name__.lower()})"
