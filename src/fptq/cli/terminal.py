"""What a person, or a program, gets to see: tables and errors, or one JSON document."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TextIO

from fptq.errors import FptqError, OutputError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from fptq.cli.progress import ProgressBar

INTERRUPTED = 130
UNEXPECTED = 70
_WIDE = 400


class Interrupted(Exception):
    """Ctrl-C, with what becomes of the work so far."""


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """Where one command writes.

    Attributes:
        json: One JSON document on standard output, everything else on standard error.
        debug: Tracebacks, and the warnings of other packages.
        output: Standard output as it was when the command started.
    """

    json: bool = False
    debug: bool = False
    output: TextIO = field(default_factory=lambda: sys.stdout)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep other packages, and the user's own functions, from writing where the result goes."""
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger = logging.getLogger("fptq")
        logger.addHandler(handler)
        try:
            with warnings.catch_warnings(), contextlib.ExitStack() as stack:
                if not self.debug:
                    warnings.simplefilter("ignore")
                    warnings.filterwarnings("default", module=r"fptq\b")
                warnings.showwarning = _one_line
                if self.json:
                    stack.enter_context(contextlib.redirect_stdout(sys.stderr))
                yield
        finally:
            logger.removeHandler(handler)

    def show(self, *parts: RenderableType, document: Mapping[str, Any]) -> None:
        """The result: tables and sentences for a person, the document for a program."""
        if self.json:
            self.output.write(json.dumps(_plain(document), ensure_ascii=False, indent=1) + "\n")
            self.output.flush()
            return
        console = _console(self.output)
        for part in parts:
            console.print(part, highlight=False, markup=False)

    def progress(self) -> ProgressBar:
        """A `Progress` to be used as a context manager."""
        from fptq.cli.progress import ProgressBar

        return ProgressBar(None if self.json else _console(sys.stderr))

    def failed(self, error: BaseException) -> int:
        """Say what went wrong in one line; returns the exit code."""
        line, code = _described(error, debug=self.debug)
        if self.debug:
            traceback.print_exception(error, file=sys.stderr)
        if self.json:
            self.show(document={"error": {"kind": type(error).__name__, "message": line, "exit_code": code}})
        prefix = "" if isinstance(error, Interrupted) else "error: "
        sys.stderr.write(f"{prefix}{line}\n")
        return code


def _described(error: BaseException, *, debug: bool) -> tuple[str, int]:
    if isinstance(error, Interrupted):
        return str(error), INTERRUPTED
    if isinstance(error, FptqError):
        return str(error), error.exit_code
    if callable(getattr(error, "format_message", None)):  # Typer's, whose base class depends on its version
        return _usage(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        full = OutputError("the disk is full", rule="older results are unchanged", remedy="Free space and run it again")
        return str(full), full.exit_code
    way_out = "" if debug else " Run again with --debug for the traceback."
    return f"unexpected {type(error).__name__}: {_first_line(error)}.{way_out}", UNEXPECTED


def _usage(error: Any) -> tuple[str, int]:
    """An option or argument that the command line does not have, or of the wrong kind."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}. See {context.command_path if context else 'fptq'} --help.", error.exit_code


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no message"


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    # Piped tables are for grep: never wrapped.
    return Console(file=stream, width=None if stream.isatty() else _WIDE)


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"warning: {message}\n")


def _plain(value: Any) -> Any:
    """Numbers that JSON has: what is not finite becomes null."""
    match value:
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case None | bool():
            return value
        case Integral():  # numpy's too
            return int(value)
        case Real():
            return float(value) if math.isfinite(value) else None
    return str(value)
