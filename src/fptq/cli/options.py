"""The options that several commands share, and how they become a `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fptq.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from fptq.config import Recipe

_FUNCTION = "package.module:function"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"ONNX file, .pt2 program, {_FUNCTION}, nnunet:RESULTS_FOLDER[:FOLD], or monai:BUNDLE_FOLDER.",
    ),
]
Calib = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help=f"Calibration data: folder or glob of images, .npz, .npy, .nii[.gz], DICOM, FASTA, or {_FUNCTION}.",
    ),
]
Val = Annotated[
    str | None, typer.Option(metavar="DATA", help="Validation data, likewise; class folders for a classification.")
]
Labels = Annotated[
    str | None, typer.Option(metavar="DATA", help="Masks with the names of the volumes, or a file of class names.")
]
Task = Annotated[
    str | None, typer.Option(metavar="generic|segmentation|classification|proteins", help="What the scores mean.")
]
Vocab = Annotated[
    str | None, typer.Option(metavar="FILE", help=f"Tokens for --task proteins, one a line, or {_FUNCTION}.")
]
Engine = Annotated[
    str | None,
    typer.Option(metavar="auto|onnxruntime|openvino|tensorrt", help="What will run it; auto picks of the CPU's."),
]
Observer = Annotated[
    str | None,
    typer.Option(metavar="auto|minmax|moving-average|percentile|entropy|lp", help="Estimator of activation ranges."),
]
Effort = Annotated[
    str | None,
    typer.Option("--recipe", metavar="fast|auto|best", help="How much is tried to lower the output error."),
]
Preprocess = Annotated[str | None, typer.Option(metavar=_FUNCTION, help="What a raw scan becomes before the network.")]
Metric = Annotated[str | None, typer.Option(metavar=_FUNCTION, help="A metric of your own.")]
HigherIsBetter = Annotated[
    bool | None, typer.Option("--higher-is-better/--lower-is-better", help="Which way is good, for --metric.")
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="ONNX names or PyTorch module paths that stay float; may be repeated."),
]
Precision = Annotated[
    list[str] | None, typer.Option(metavar="GLOB=int8|float", help="Precision by name; may be repeated.")
]
Regions = Annotated[
    str | None, typer.Option(metavar="auto|one|two|three", help="Of activations: two or more is piecewise linear.")
]
AlsoQuantize = Annotated[
    list[str] | None,
    typer.Option(
        metavar="layernorm|softmax|activation",
        help="Inputs that engines compute on in float, quantized without gain, for studies; may be repeated.",
    ),
]
Dynamic = Annotated[
    str | None, typer.Option(metavar="auto|none|SPEC", help="Dynamic axes; SPEC is input:axis=name,... .")
]
Threads = Annotated[int | None, typer.Option(metavar="N", help="CPU threads for one run.")]
Samples = Annotated[int | None, typer.Option(metavar="N", help="Most calibration samples to use.")]
Plan = Annotated[Path | None, typer.Option(metavar="FILE", help="A plan.json to replay exactly.")]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Recipe file, such as fptq.toml.")]
MaxSize = Annotated[str | None, typer.Option(metavar="0.3x|20MB", help="Search: most stored bytes.")]
MaxLatency = Annotated[str | None, typer.Option(metavar="0.5x|40ms", help="Search: longest run.")]
MaxBops = Annotated[str | None, typer.Option(metavar="0.1x|5TBOPs", help="Search: most bit operations of a run.")]
MaxDrop = Annotated[float | None, typer.Option(metavar="0.005", help="Search: largest loss of the metric.")]
TimeBudget = Annotated[str | None, typer.Option(metavar="10m", help="Time of the search; the best so far is kept.")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", metavar="w4a8", help="Search: what a layer may be beside float; may be repeated."),
]
Bits = Annotated[str | None, typer.Option(metavar="w4a8", help="One format for all layers but the ends.")]
Method = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With --bits: nearest, correction, gptaq, ridge, adaround, brecq, qdrop, ..."),
]
Setting = Annotated[str | None, typer.Option(metavar="qdrop|brecq", help="With --bits: what keeps 8 bits at the ends.")]
Iterations = Annotated[int | None, typer.Option(metavar="N", help="With --bits: learning steps for each block.")]
Memory = Annotated[str | None, typer.Option(metavar="4GB", help="With --bits: what learning may keep in RAM.")]
Trust = Annotated[bool, typer.Option("--trust", help="Read files that can execute code (.pt2, nnU-Net, MONAI).")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of everything random.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="What fptq quantize wrote.")]
Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help=f"Folder or glob of images, .npz, .npy, .nii[.gz], DICOM, or {_FUNCTION}."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make results anew that are there already.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the results go.")]


def recipe(config: Path | None, options: Mapping[str, object]) -> Recipe:
    """The recipe of a file with the options given on the line in place of the file's.

    Args:
        config: The file; None for none.
        options: Values by field name; None and empty lists were not given.

    Raises:
        ConfigError: The file or an option is wrong.
    """
    from fptq.config import Recipe, load_recipe

    base = load_recipe(config) if config is not None else Recipe()
    given = {name: value for name, value in options.items() if value is not None and value not in ([], False)}
    if options.get("higher_is_better") is False:
        given["higher_is_better"] = False
    if "precision" in given:
        given["precision"] = precisions(options["precision"])  # type: ignore[arg-type]
    return base.merged(**given)


def precisions(pairs: Sequence[str]) -> Mapping[str, str]:
    """`--precision` as a table.

    >>> precisions(["decoder.*=float", "/encoder/Conv_1=int8"])
    {'decoder.*': 'float', '/encoder/Conv_1': 'int8'}

    Raises:
        ConfigError: A pair has another form.
    """
    table: dict[str, str] = {}
    for pair in pairs:
        pattern, equals, precision = pair.rpartition("=")
        if not equals or not pattern:
            raise ConfigError(f"--precision {pair!r}", rule="the form is GLOB=int8 or GLOB=float")
        if table.setdefault(pattern, precision) != precision:
            raise ConfigError(f"--precision gives {pattern!r} twice", rule="a layer has one precision")
    return table


def writable(folder: Path) -> Path:
    """The folder, after making sure that results can go there: better now than after an hour.

    Raises:
        OutputError: It is a file, or cannot be written.
    """
    probe = folder / ".fptq-writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or str(error)
        raise OutputError(f"{folder} cannot hold results: {reason}", remedy="Choose another folder with -o") from error
    return folder
