"""Where results go: never over an image, and over older results only when that is said."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fptq.errors import OutputError


def check_targets(targets: Iterable[Path], *, images: Iterable[Path], overwrite: bool) -> None:
    """Whether results can be written.

    Args:
        targets: Their files.
        images: What they are made from.
        overwrite: Whether older results are replaced.

    Raises:
        OutputError: One is an image, or is there already.
    """
    read = {path.resolve() for path in images}
    for target in targets:
        if target.resolve() in read:
            raise OutputError(f"{target} is an image", rule="results never replace images", remedy="Choose another -o")
        check_free(target, overwrite=overwrite)


def check_free(target: Path, *, overwrite: bool) -> None:
    """Whether a result can be written.

    Raises:
        OutputError: It is there already.
    """
    if target.exists() and not overwrite:
        raise OutputError(
            f"{target} exists",
            rule="older results are kept",
            remedy="Choose another folder with -o, or give --overwrite",
        )
