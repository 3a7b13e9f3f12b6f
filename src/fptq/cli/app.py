"""The application: global options anywhere on the line, errors in one line, exit codes."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from fptq.cli import commands
from fptq.cli.predict import predict
from fptq.cli.terminal import Interrupted, Terminal

_GLOBAL = ("--json", "--debug")
_RESUMABLE = frozenset({"quantize", "sensitivity", "search", "demo", "predict"})
_EPILOG = (
    "--json and --debug may stand anywhere. Exit codes: 0 done, 2 options, 3 model, 4 data, 5 metric, 6 engine, "
    "7 demo asset, 8 output, 70 unexpected, 130 interrupted."
)
_MORE = (
    "The recipe file knows more: bits, granularity, sliding window, gate, cache, ... Options given here override it."
)


class CommandLine(TyperGroup):
    """A group whose commands report every failure through the `Terminal`."""

    def main(self, args: Any = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run one command and exit."""
        given = list(sys.argv[1:] if args is None else args)
        terminal = Terminal(json="--json" in given, debug="--debug" in given)
        rest = [argument for argument in given if argument not in _GLOBAL] or ["--help"]
        extra |= {"standalone_mode": False, "obj": terminal}
        try:
            with terminal.quiet():
                done = super().main(args=rest, **extra)
        except Exception as error:  # the last place that can turn it into a line
            raise SystemExit(terminal.failed(error)) from error
        raise SystemExit(done if isinstance(done, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            kept = "what was computed so far is kept, the same command goes on from there"
            resumable = ctx.invoked_subcommand in _RESUMABLE
            raise Interrupted(f"interrupted: {kept}" if resumable else "interrupted") from error


def _show_version(ctx: typer.Context, asked: bool) -> None:
    if asked:
        from fptq import __version__

        ctx.obj.show(f"fptq {__version__}", document={"fptq": __version__})
        raise typer.Exit


def _global_options(
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and other packages' warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Post-training quantization for scientific deep learning: float model in, int8 model on a real engine out."""


def _application() -> typer.Typer:
    app = typer.Typer(
        name="fptq",
        cls=CommandLine,
        callback=_global_options,
        epilog=_EPILOG,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.command(epilog=_MORE)(commands.quantize)
    for command in (
        predict,
        commands.inspect,
        commands.sensitivity,
        commands.search,
        commands.bench,
        commands.report,
        commands.doctor,
    ):
        app.command()(command)
    demo = typer.Typer(
        name="demo", help="Quantize a real network on real data, downloaded once.", rich_markup_mode=None
    )
    demo.command()(commands.brain)
    app.add_typer(demo)
    return app


app = _application()


def main() -> NoReturn:
    """The entry point of the `fptq` command."""
    app(prog_name="fptq")
    raise AssertionError("the application exits by itself")
