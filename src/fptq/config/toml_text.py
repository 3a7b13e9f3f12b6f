"""Values as text in a TOML file."""

from __future__ import annotations

import json
from pathlib import Path


def toml_text(value: object) -> str:
    """A value as TOML writes it."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str() | Path():
            return _quoted(str(value))
        case list() | tuple():
            return f"[{', '.join(map(toml_text, value))}]"
    raise TypeError(f"{type(value).__name__} has no TOML form here")


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, but for one control character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def key_text(text: str) -> str:
    """A key, quoted where it must be."""
    plain = text.isascii() and text.replace("_", "").replace("-", "").isalnum()
    return text if plain else _quoted(text)
