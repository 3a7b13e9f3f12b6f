"""Bundles of MONAI: what a folder holds, and its network, its window and its transforms, made by MONAI's own code."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fptq.errors import MissingExtra, ModelError, in_one_line
from fptq.graph.trust import Trust
from fptq.types import Array

if TYPE_CHECKING:
    from monai.bundle import ConfigParser
    from torch import nn

PREFIX = "monai:"
CONFIGS, METADATA = "configs", "configs/metadata.json"

_INFERENCE = ("inference.json", "inference.yaml", "inference.yml")
_WEIGHTS = ("model.pt", "model.ts")
_NESTED = ("model", "state_dict", "network")
"""Where a checkpoint keeps the weights beside an optimizer's state."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The folder of a bundle.

    Attributes:
        folder: It holds `configs/`, and `models/` with the weights.
        config: How the network is made and fed.
        metadata: What `configs/metadata.json` says.
    """

    folder: Path
    config: Path
    metadata: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        """The file of weights.

        Raises:
            ModelError: There is none.
        """
        found = next((path for name in _WEIGHTS if (path := self.folder / "models" / name).is_file()), None)
        if found is None:
            raise ModelError(
                f"{self.folder} has no models/{' and no models/'.join(_WEIGHTS)}",
                rule="a bundle is quantized from its weights",
                remedy="Put them there; a bundle without weights downloads them: python -m monai.bundle download",
            )
        return found


@dataclass(frozen=True, kw_only=True)
class OpenBundle:
    """A bundle whose config MONAI has read.

    Attributes:
        bundle: The folder.
        image: Name of the network's one input in the transforms.
        channels: Of the input.
        window: Its spatial size.
    """

    bundle: Bundle
    image: str
    channels: int
    window: tuple[int, ...]
    _parser: ConfigParser

    def content(self, name: str) -> Any:
        """What an entry of the config makes; None where there is no such entry.

        Raises:
            ModelError: MONAI cannot make it.
        """
        return _content(self._parser, name, self.bundle)

    def network(self) -> nn.Module:
        """The network with its weights, on the CPU, in evaluation mode.

        Raises:
            ModelError: There are no weights, they cannot be read, or they are another network's.
        """
        network: nn.Module = self.content("network_def").cpu().eval()
        weights = _state(self.bundle.weights)
        _check_weights(network.state_dict(), weights, self.bundle)
        network.load_state_dict(weights)
        return network


def names_bundle(source: object) -> bool:
    """Whether a model is named as a bundle of MONAI.

    >>> names_bundle("monai:spleen_ct_segmentation"), names_bundle("net.onnx")
    (True, False)
    """
    return isinstance(source, str) and source.startswith(PREFIX)


def find_bundle(source: str | Path) -> Bundle:
    """The bundle that a text of the form `monai:FOLDER`, or a path, names. Nothing is executed.

    Raises:
        ModelError: It is no bundle, or a part is missing.
    """
    folder = Path(str(source).removeprefix(PREFIX)).expanduser()
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder", rule=f"the form is {PREFIX}BUNDLE_FOLDER", remedy="Check the path")
    config = next((path for name in _INFERENCE if (path := folder / CONFIGS / name).is_file()), None)
    if config is None:
        there = sorted(path.name for path in (folder / CONFIGS).glob("*.*"))
        raise ModelError(
            f"{folder / CONFIGS} has no {', no '.join(_INFERENCE)}",
            rule="a bundle says there how its network is made and fed",
            remedy=f"It has {', '.join(there)}" if there else f"Name the folder that holds {CONFIGS}/ and models/",
        )
    return Bundle(folder=folder, config=config, metadata=_metadata(folder / METADATA))


def open_bundle(bundle: Bundle, *, trust: Trust) -> OpenBundle:
    """Let MONAI read the config.

    Raises:
        ModelError: The bundle is not trusted, its config cannot be read, or does not say what the network takes.
        MissingExtra: MONAI is not installed.
    """
    trust.require(bundle.config, because="configs of MONAI hold Python expressions and names of what to call")
    parser = _parser(bundle)
    if "network_def" not in parser:
        raise ModelError(
            f"{bundle.config} has no network_def",
            rule="the network is made by this entry",
            remedy="Add it, or build the network in Python and give package.module:function",
        )
    image, facts = _image(bundle)
    channels, sizes = facts.get("num_channels"), facts.get("spatial_shape")
    if not isinstance(channels, int) or not isinstance(sizes, list):
        raise ModelError(
            f"{bundle.folder / METADATA} says num_channels {channels} and spatial_shape {sizes} of {image}",
            rule="they are a number, and a list with an entry for each axis",
            remedy="Write what the network takes",
        )
    window = _window(bundle, _content(parser, "inferer", bundle), sizes)
    return OpenBundle(bundle=bundle, image=image, channels=channels, window=window, _parser=parser)


def random_window(opened: OpenBundle) -> Array:
    """A window `f32[1, C, *S]` of noise."""
    return np.random.default_rng(0).standard_normal((1, opened.channels, *opened.window), np.float32)


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """A bundle's own code is named from its folder, as `scripts.network.Net`."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


def _parser(bundle: Bundle) -> ConfigParser:
    try:
        from monai.bundle import ConfigParser
    except ModuleNotFoundError as error:
        package = (error.name or "monai").partition(".")[0]
        raise MissingExtra(package, extra="monai", purpose="opening bundles of MONAI") from error
    parser = ConfigParser()
    try:
        parser.read_config(str(bundle.config))
        parser.read_meta(str(bundle.folder / METADATA))
    except Exception as error:  # json, yaml and MONAI's own have no common base class
        raise ModelError(f"{bundle.config} cannot be read: {in_one_line(error)}", remedy="Mend it") from error
    parser["bundle_root"] = str(bundle.folder)
    return parser


def _content(parser: ConfigParser, name: str, bundle: Bundle) -> Any:
    if name not in parser:
        return None
    try:
        with importable(bundle.folder):
            return parser.get_parsed_content(name)
    except Exception as error:  # whatever the config calls
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ModelError(
            f"{name} of {bundle.config} cannot be made: {in_one_line(cause)}",
            rule=f"the bundle was made with MONAI {bundle.metadata.get('monai_version', '(it does not say which)')}",
            remedy="Check that `python -m monai.bundle run` takes this config here, and install what it needs",
        ) from error


def _metadata(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read: {in_one_line(error)}",
            rule="a bundle says there what its network takes",
            remedy="Take it from the bundle, or write it: network_data_format.inputs.image of num_channels and "
            "spatial_shape",
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}", rule="it is a JSON object")
    return found


def _image(bundle: Bundle) -> tuple[str, Mapping[str, Any]]:
    """The network's one input: its name, and what the metadata say about it."""
    data = bundle.metadata.get("network_data_format")
    inputs = data.get("inputs") if isinstance(data, Mapping) else None
    if not isinstance(inputs, Mapping) or len(inputs) != 1 or not all(isinstance(x, Mapping) for x in inputs.values()):
        names = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping | list) and inputs else "none"
        raise ModelError(
            f"{bundle.folder / METADATA} names as inputs of the network: {names}",
            rule="network_data_format.inputs has one, the image",
            remedy="Quantize networks of several inputs as modules, on samples of your own",
        )
    ((name, facts),) = inputs.items()
    return str(name), facts


def _window(bundle: Bundle, inferer: object, sizes: Sequence[object]) -> tuple[int, ...]:
    """The size of the inferer's windows; where it takes the image's own, what the metadata say."""
    roi = getattr(inferer, "roi_size", None)
    wanted = [roi] * len(sizes) if isinstance(roi, int) else list(roi or sizes)
    if len(wanted) != len(sizes):
        raise ModelError(
            f"roi_size {roi} of the inferer in {bundle.config}",
            rule=f"spatial_shape in {METADATA} has {len(sizes)} axes: {sizes}",
            remedy="Windows have as many as the network's input; say both alike",
        )
    window = [own if isinstance(own, int) and own > 0 else size for own, size in zip(wanted, sizes, strict=True)]
    if not all(isinstance(size, int) and size > 0 for size in window):
        raise ModelError(
            f"{bundle.config} gives windows no size, and {METADATA} says spatial_shape {sizes}",
            rule="the network is quantized for windows of one size",
            remedy="Give the inferer a roi_size",
        )
    return tuple(int(size) for size in window if isinstance(size, int))


def _state(path: Path) -> Mapping[str, Any]:
    """The weights in a file: a state dict, alone or in a checkpoint, or those of a TorchScript program."""
    try:
        found = _read_weights(path)
    except Exception as error:  # torch, zip and pickle have no common base class
        raise ModelError(
            f"{path} cannot be read: {in_one_line(error)}",
            rule="weights are what torch.save or torch.jit.save wrote",
            remedy="Fetch it again; a git-lfs pointer or a truncated download looks like this",
        ) from error
    if hasattr(found, "state_dict"):
        found = found.state_dict()
    if isinstance(found, Mapping):
        found = next((found[name] for name in _NESTED if isinstance(found.get(name), Mapping)), found)
    if not isinstance(found, Mapping) or not all(hasattr(value, "shape") for value in found.values()):
        raise ModelError(
            f"{path} holds a {type(found).__name__} that is no state dict",
            rule=f"weights are tensors by name, alone or as {' or '.join(_NESTED)} of a checkpoint",
            remedy="Save network.state_dict()",
        )
    return found


def _read_weights(path: Path) -> Any:
    import torch

    if path.suffix == ".ts":
        return torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # more than weights, and trusted
        return torch.load(path, map_location="cpu", weights_only=False)


def _check_weights(wanted: Mapping[str, Any], found: Mapping[str, Any], bundle: Bundle) -> None:
    both = [name for name in wanted if name in found]
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name].shape)} for {list(wanted[name].shape)}"
            for name in both
            if found[name].shape != wanted[name].shape
        ],
    }
    if any(problems.values()):
        said = [f"{len(names)} {what}, as {names[0]}" for what, names in problems.items() if names]
        raise ModelError(
            f"{bundle.weights} does not fit network_def: {'; '.join(said)}",
            rule="the weights are those of this network",
            remedy="Take configs and models from one bundle, for the installed MONAI (it was made with "
            f"{bundle.metadata.get('monai_version', 'one that it does not name')})",
        )
