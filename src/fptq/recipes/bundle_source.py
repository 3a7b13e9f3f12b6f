"""A bundle of MONAI as what any other model is here: a module and calibration samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fptq.config import Recipe
from fptq.feeds.bundle import scan_windows
from fptq.feeds.callables import names_callable
from fptq.feeds.scans import NIFTI, find_files, suffix
from fptq.graph.bundle import CONFIGS, Bundle, open_bundle
from fptq.graph.trust import Trust
from fptq.recipes.outside import Tool

BUNDLE = "monai_bundle"
"""Folder in a result that holds what prediction needs of the bundle: all but its weights."""
_SOURCE = "source.txt"
"""Where the bundle was; by it fptq knows a folder that it wrote itself."""


def keep_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy a bundle's configs and its own code into a result's folder.

    Raises:
        OSError: They cannot be written.
    """
    for part in (CONFIGS, "scripts"):
        if (bundle.folder / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(bundle.folder / part, folder / BUNDLE / part, ignore=ignored)
    (folder / BUNDLE / _SOURCE).write_text(f"{bundle.folder.resolve()}\n", encoding="utf-8")


def holds_bundle(folder: Path) -> bool:
    """Whether `keep_bundle` wrote there."""
    return (folder / BUNDLE / _SOURCE).is_file()


def forget_bundle(folder: Path) -> None:
    """Remove what `keep_bundle` wrote for an older result; another folder of this name stays.

    Raises:
        OSError: It cannot be removed.
    """
    if holds_bundle(folder):
        shutil.rmtree(folder / BUNDLE)


BUNDLES = Tool(
    network="a bundle of MONAI",
    pieces="windows",
    decides=("preprocess", "patch", "val", "labels"),
    rule="the bundle's own transforms prepare scans, and its inferer cuts windows",
    remedy="Leave it out, or quantize the network as a module",
    scorer="MONAI's metrics",
)


def open_monai(bundle: Bundle, calibration: object, recipe: Recipe, *, validation: object = None) -> tuple[Any, object]:
    """The bundle's network and its calibration samples, for whatever takes a module and samples.

    Args:
        bundle: The folder.
        calibration: A folder, glob or file of NIfTI scans, which the bundle's transforms prepare; anything else is
            prepared already.
        recipe: The options.
        validation: Samples that are prepared already, or none: files would be read without the bundle's transforms.

    Raises:
        FptqError: Something is wrong with the bundle or the scans.
    """
    if isinstance(validation, str | Path):
        raise BUNDLES.decided("validation")
    opened = open_bundle(bundle, trust=Trust.given(recipe.trust))
    network = opened.network()
    if not isinstance(calibration, str | Path) or (names_callable(str(calibration)) and not Path(calibration).exists()):
        return network, calibration
    scans = [path for path in find_files(calibration) if suffix(path) in NIFTI]
    if not scans:
        return network, calibration
    return network, scan_windows(opened, network, scans, count=recipe.samples, seed=recipe.seed)
