"""`fptq predict`: a quantized network on new data: fptq's sliding window, nnU-Net's predictor, a bundle's inferer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fptq.cli import options

if TYPE_CHECKING:
    from fptq.cli.terminal import Terminal

Task = Annotated[
    str | None,
    typer.Option(metavar="generic|segmentation", help="Arrays, or label maps of scans; default: as quantized."),
]
Preprocess = Annotated[str | None, typer.Option(metavar="package.module:function", help="In place of the saved one.")]
Overlap = Annotated[float | None, typer.Option(metavar="0.5", help="Share of a window that the next one covers again.")]
WindowsPerCall = Annotated[
    int | None, typer.Option(metavar="N", help="Where the network takes any batch; default: by memory.")
]
StepSize = Annotated[
    float | None, typer.Option(metavar="0.5", min=0.01, max=1.0, help="nnU-Net: step of the sliding window.")
]
Mirroring = Annotated[
    bool | None, typer.Option("--mirroring/--no-mirroring", help="nnU-Net: the mean over mirrored patches.")
]
Gaussian = Annotated[
    bool | None, typer.Option("--gaussian/--no-gaussian", help="nnU-Net: patches count less at their border.")
]
Probabilities = Annotated[bool, typer.Option("--save-probabilities", help="nnU-Net: .npz files too.")]


def predict(
    ctx: typer.Context,
    folder: options.Folder,
    data: options.Data,
    output: options.Output,
    task: Task = None,
    preprocess: Preprocess = None,
    overlap: Overlap = None,
    windows_per_call: WindowsPerCall = None,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    step_size: StepSize = None,
    mirroring: Mirroring = None,
    gaussian: Gaussian = None,
    probabilities: Probabilities = False,
    trust: options.Trust = False,
) -> None:
    """Run a quantized network on new data; interrupted, it goes on."""
    target = options.writable(output)
    from fptq import recipes
    from fptq.cli import nnunet

    terminal: Terminal = ctx.obj
    given = _given(task=task, preprocess=preprocess, overlap=overlap, windows_per_call=windows_per_call)
    tiles = nnunet.Prediction(
        threads=threads,
        overwrite=overwrite,
        tile_step_size=step_size,
        use_mirroring=mirroring,
        use_gaussian=gaussian,
        save_probabilities=probabilities,
    )
    if recipes.is_nnunet_folder(folder):
        nnunet.refuse(given, rule=f"{folder} holds a network of nnU-Net, which prepares images and labels them itself")
        written = tiles.run(terminal, folder, data, output=target)
    elif recipes.is_bundle_folder(folder):
        nnunet.refuse(given | tiles.of_nnunet, rule=f"{folder} holds a bundle of MONAI, which says it itself")
        predictor = recipes.bundle_predictor(folder, threads=threads, trust=trust)
        with terminal.progress() as progress:
            written = recipes.predict_bundle(predictor, data, output=target, overwrite=overwrite, progress=progress)
    else:
        nnunet.refuse(tiles.of_nnunet, rule=f"{folder} holds no network of nnU-Net, whose options these are")
        given |= _given(threads=threads)
        with terminal.progress() as progress:
            written = recipes.predict(folder, data, output=target, overwrite=overwrite, progress=progress, **given)
    _show(terminal, target, written)


def _given(**given: object) -> dict[str, object]:
    """The options that were given."""
    return {name: value for name, value in given.items() if value is not None}


def _show(terminal: Terminal, target: Path, written: Sequence[Path]) -> None:
    count = "one result" if len(written) == 1 else f"{len(written)} results"
    terminal.show(f"{count} in {target}", document={"output": str(target), "files": [str(path) for path in written]})
