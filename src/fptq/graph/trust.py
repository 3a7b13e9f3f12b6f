"""What a user trusts."""

from __future__ import annotations

from enum import Enum


class Trust(Enum):
    """Whether files that can execute code when they are read may be read."""

    NOTHING = "nothing"
    SOURCE = "source"
