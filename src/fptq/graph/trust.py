"""What a user trusts."""

from __future__ import annotations

from enum import Enum

from fptq.errors import ModelError


class Trust(Enum):
    """Whether files that can execute code when they are read may be read."""

    NOTHING = "nothing"
    SOURCE = "source"

    @classmethod
    def given(cls, trusted: object) -> Trust:
        """What an option says."""
        return cls.SOURCE if trusted else cls.NOTHING

    def require(self, what: object, *, because: str) -> None:
        """Refuse to read something.

        Args:
            what: Its name.
            because: Why it can execute code.

        Raises:
            ModelError: Where it comes from is not trusted.
        """
        if self is not Trust.SOURCE:
            raise ModelError(
                f"{what} can execute code when it is read",
                rule=because,
                remedy="If you trust where it comes from, say so with --trust",
            )
