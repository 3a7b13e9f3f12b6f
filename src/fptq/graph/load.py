"""The door: whatever the user has becomes a canonical `Model`, or a clear refusal."""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import onnx_ir as ir

from fptq.errors import DataError, MissingExtra, ModelError
from fptq.graph import parity
from fptq.graph.axes import Axes, fix_axes, parse_axes, require_axes, symbols
from fptq.graph.bundle import find_bundle, names_bundle, open_bundle, random_window
from fptq.graph.canonical import Canonical, canonicalize
from fptq.graph.check import check_whole
from fptq.graph.model import Model
from fptq.graph.nnunet import find_fold, names_nnunet, open_fold, random_patch
from fptq.graph.opset import quiet
from fptq.graph.pretrained import is_pretrained, load_pretrained, missing
from fptq.graph.rest import put_to_rest, settle
from fptq.graph.sample import example_feeds, random_feeds
from fptq.graph.trust import Trust

if TYPE_CHECKING:
    from torch import nn

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

_CHECKPOINTS = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl", ".safetensors", ".tar"})


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a network is loaded.

    Attributes:
        dynamic: "auto": the batch and the axes that differ between samples for a module, those that the file leaves
            open for ONNX. "none": every axis has the example's size. Otherwise the axes by name, such as
            "x:0=batch,x:2=depth"; all others have the example's size.
        trust: `.pt2` files, checkpoints of nnU-Net and bundles of MONAI can execute code when they are read: they need
            `Trust.SOURCE`.
    """

    dynamic: str = "auto"
    trust: Trust = Trust.NOTHING


def load(
    source: object, *, example: object = None, others: Sequence[object] = (), options: LoadOptions | None = None
) -> Model:
    """Load a network and bring it into canonical form; check that it still computes the same.

    Args:
        source: The path of an ONNX file (or, trusted, of a `.pt2` program), the folder of a Hugging Face checkpoint,
            an `onnx.ModelProto`, an `onnx_ir.Model`, an `nn.Module`, "nnunet:FOLDER:FOLD" for a result of nnU-Net,
            "monai:FOLDER" for a bundle of MONAI, or "package.module:function" for a function that returns one of these.
        example: One sample: a tensor or array, a tuple or mapping of them, or a recorded call `(args, kwargs)`.
            A module needs it; a file is checked with random inputs without it.
        others: More samples, of which only the shapes matter: axes that differ become dynamic.
        options: Dynamic axes and trust.

    Raises:
        ModelError: The network cannot be read, exported or converted.
        ParityError: It would not compute the same.
        DataError: A module comes without an example, or the example does not fit.
        ConfigError: The dynamic axes are not the model's.
    """
    made = _loaded(source, example, others, options or LoadOptions())
    put_to_rest(made.graph_model)  # what folding has made
    settle(made)
    return made


def _loaded(source: object, example: object, others: Sequence[object], options: LoadOptions) -> Model:
    if isinstance(source, str) and names_nnunet(source):
        return _load_fold(source, options)
    if isinstance(source, str) and names_bundle(source):
        return _load_bundle(source, options)
    if isinstance(source, str) and _FUNCTION.fullmatch(source) and not Path(source).exists():
        made = _loaded(_call(source), example, others, options)
        return replace(made, source=source)
    if isinstance(source, str | Path) and is_pretrained(source):
        return _load_module(load_pretrained(source), example, others, options)
    if isinstance(source, str | Path):
        return _load_path(Path(source), example, options)
    if isinstance(source, ir.Model):
        return _load_graph(source, "ONNX model", example, options)
    if type(source).__name__ == "ModelProto":
        return _load_graph(_from_proto(source), "ONNX model", example, options)
    if _is_module(source):
        return _load_module(source, example, others, options)
    raise ModelError(
        f"{type(source).__name__} is no network",
        rule="a network is an ONNX file, an onnx or onnx_ir model, or a torch.nn.Module",
        remedy="Give one of these, or package.module:function for a function that returns one",
    )


def _load_fold(source: str, options: LoadOptions) -> Model:
    """A network of nnU-Net, which says itself what it takes."""
    trained = find_fold(source)
    predictor = open_fold(trained, trained.folds[0], trust=options.trust)
    made = _load_module(predictor.network, random_patch(predictor), (), replace(options, dynamic="none"))
    return replace(made, source=source)


def _load_bundle(source: str, options: LoadOptions) -> Model:
    """A network of MONAI's, whose bundle says what it takes."""
    opened = open_bundle(find_bundle(source), trust=options.trust)
    made = _load_module(opened.network(), random_window(opened), (), replace(options, dynamic="none"))
    return replace(made, source=source)


def _load_path(path: Path, example: object, options: LoadOptions) -> Model:
    if not path.exists():
        raise missing(path)
    if path.is_dir():
        raise ModelError(
            f"{path} is a folder",
            rule="a network is one file, or a folder with config.json and weights",
            remedy="Name the .onnx file in it",
        )
    if path.suffix == ".pt2":
        return _load_program(path, example, options)
    if path.suffix in _CHECKPOINTS:
        raise ModelError(
            f"{path.name} is a checkpoint",
            rule="it holds weights without a network, or pickled code",
            remedy="Give package.module:function for a function that builds the network and loads the weights",
        )
    graph_model = read_onnx(path)
    # At once: onnxscript's rules remember the graph that they matched last, and with it every tensor it had.
    put_to_rest(graph_model)
    return _load_graph(graph_model, str(path), example, options)


def read_onnx(path: Path) -> ir.Model:
    """Read an ONNX file; tensors in external files stay there until they are used.

    Raises:
        ModelError: It is no ONNX file.
    """
    try:
        with quiet():
            model = ir.load(path)
    except Exception as error:  # protobuf's errors and onnx_ir's have no common base class
        raise ModelError(
            f"{path.name} cannot be read as an ONNX model: {str(error).splitlines()[0] if str(error) else 'bad file'}",
            rule="the file must be a whole ONNX protobuf",
            remedy="Fetch or export it again; a git-lfs pointer or a truncated download looks like this",
        ) from error
    return model


def _from_proto(proto: object) -> ir.Model:
    try:
        with quiet():
            model: ir.Model = ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"the ONNX model cannot be read: {error}") from error
    return model


def _load_graph(graph_model: ir.Model, source: str, example: object, options: LoadOptions) -> Model:
    check_whole(graph_model)
    original = graph_model.clone()
    if options.dynamic != "auto":
        axes = {} if options.dynamic == "none" else parse_axes(options.dynamic)
        require_axes(original, axes)
        _fix(original, axes, example)
    made = canonicalize(original)
    notes = (*made.notes, *_check(original, made, example))
    return Model(graph_model=made.graph_model, origin=made.origin, source=source, notes=notes)


def _fix(model: ir.Model, axes: Axes, example: object) -> None:
    """Fix what is dynamic in a file and not asked to be."""
    wanted = {name for named in axes.values() for name in named.values()}
    if symbols(model) <= wanted:
        return
    if example is None:
        raise DataError(
            f"the model's axes {', '.join(sorted(symbols(model) - wanted))} have no size",
            rule="dynamic axes get the sizes of a sample",
            remedy="Give a sample, or --dynamic auto",
        )
    feeds = example_feeds(model, example)
    fix_axes(model, {name: array.shape for name, array in feeds.items()}, keep=axes)


def _check(original: ir.Model, made: Canonical, example: object) -> list[str]:
    """The parity gate between a file and its canonical form; what could not be checked."""
    # A whole volume as the example of a patch network does not run: random patches do.
    given = [] if example is None else [example_feeds(original, example)]
    problem = ""
    for feeds in (*given, *random_feeds(original)):
        try:
            reference = parity.graph_reference(original, feeds, name="the file")
        except ModelError as error:
            problem = error.what
            continue
        tolerance = parity.HALF if made.halves else parity.SINGLE
        converted = example_feeds(made.graph_model, feeds)
        parity.check_parity(made.graph_model, converted, reference, tolerance=tolerance)
        return []
    return [f"Parity with the file is unchecked: {problem}"]


def _load_module(module: nn.Module, example: object, others: Sequence[object], options: LoadOptions) -> Model:
    if example is None:
        raise DataError(
            f"{type(module).__name__} comes without an example",
            rule="a module is traced with one sample",
            remedy="Give calibration data, or an ONNX file",
        )
    from fptq.graph import modules

    return modules.load_module(module, example, others=others, dynamic=options.dynamic)


def _load_program(path: Path, example: object, options: LoadOptions) -> Model:
    options.trust.require(path.name, because=".pt2 files hold pickled parts")
    try:
        from fptq.graph import modules
    except ImportError as error:
        raise MissingExtra("torch", extra="torch", purpose="reading .pt2 programs") from error
    return modules.load_program(path, example)


def _is_module(source: object) -> TypeGuard[nn.Module]:
    """Whether it is a `torch.nn.Module`, without importing torch for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def _call(spec: str) -> Any:
    """What the user's function returns; the current folder is importable, as with `python -m`."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = pkgutil.resolve_name(spec)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{spec} cannot be found: {error}",
            rule="the form is package.module:function",
            remedy="Check the names and that the package is installed or in this folder",
        ) from error
    if not callable(function) or _is_module(function):
        return function
    try:
        return function()
    except Exception as error:
        raise ModelError(
            f"{spec} raised {type(error).__name__}: {error}",
            rule="it is called without arguments and returns a network",
        ) from error
