"""The command line. Nothing heavy is imported before a command needs it: `fptq --help` answers at once."""

from fptq.cli.app import app, main

__all__ = ["app", "main"]
