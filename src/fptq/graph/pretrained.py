"""Hugging Face checkpoints from local folders; nothing is ever downloaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fptq.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONFIG = "config.json"
_HUB_NAME = re.compile(r"[\w-]+/[\w.-]+")
_FILE = re.compile(r".*\.(onnx|pt2?|pth|ckpt|bin|pkl|safetensors|tar)")


def is_pretrained(source: str | Path) -> bool:
    """Whether it is the folder of a checkpoint: configuration and weights in one place."""
    return (Path(source) / _CONFIG).is_file()


def load_pretrained(folder: str | Path, *, architecture: str | None = None, dtype: str = "float32") -> PreTrainedModel:
    """The model of a local checkpoint, in evaluation mode; no code that lies in the folder is run.

    Args:
        folder: A folder with `config.json` and weights, as `hf download NAME --local-dir FOLDER` makes it.
        architecture: A class of `transformers`, such as "EsmModel"; None: the one that the configuration names.
        dtype: Of the parameters; "auto": as they are stored.

    Raises:
        ModelError: There is no such folder, or no model in it.
        MissingExtra: `transformers` is not installed.
    """
    folder = Path(folder)
    if not is_pretrained(folder):
        raise missing(folder)
    name = architecture or _architecture(folder)
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtra("transformers", extra="transformers", purpose="opening a checkpoint") from error
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ModelError(f"transformers {transformers.__version__} has no {name}", remedy="Name an architecture it has")
    try:
        made: PreTrainedModel = kind.from_pretrained(folder, local_files_only=True, dtype=dtype)
    except Exception as error:  # OSError, ValueError, errors of safetensors: whatever is wrong with the files
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(
            f"{folder} cannot be opened as {name}: {lines[0]}", rule="configuration and weights must fit"
        ) from error
    return made.eval()


def missing(path: Path) -> ModelError:
    """What to say of a network that is not there; of names on the Hub also how to fetch them."""
    if not path.exists() and _HUB_NAME.fullmatch(str(path)) and not _FILE.fullmatch(path.name):
        return ModelError(
            f"there is no folder {path}",
            rule="fptq downloads no checkpoint",
            remedy=f"Fetch it with: hf download {path} --local-dir {path.name}; then name the folder {path.name}",
        )
    if path.is_dir():
        return ModelError(f"{path} has no {_CONFIG}", rule="a checkpoint is a folder with it and the weights")
    return ModelError(f"{path} does not exist", remedy="Check the path")


def _architecture(folder: Path) -> str:
    try:
        named = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / _CONFIG} cannot be read: {error}") from error
    if len(named) != 1:
        raise ModelError(
            f"{folder / _CONFIG} names {len(named)} architectures", remedy="Give load_pretrained an architecture"
        )
    return str(named[0])
