"""The commands: options in, one call of `fptq.recipes`, one table out."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fptq.cli import options
from fptq.errors import DataError

if TYPE_CHECKING:
    from fptq.cli.terminal import Terminal
    from fptq.config import Recipe
    from fptq.recipes import Result


def quantize(
    ctx: typer.Context,
    model: options.Model,
    calib: options.Calib = None,
    val: options.Val = None,
    labels: options.Labels = None,
    task: options.Task = None,
    vocab: options.Vocab = None,
    engine: options.Engine = None,
    preprocess: options.Preprocess = None,
    metric: options.Metric = None,
    higher_is_better: options.HigherIsBetter = None,
    keep_float: options.KeepFloat = None,
    precision: options.Precision = None,
    regions: options.Regions = None,
    also_quantize: options.AlsoQuantize = None,
    dynamic: options.Dynamic = None,
    threads: options.Threads = None,
    samples: options.Samples = None,
    observer: options.Observer = None,
    recipe: options.Effort = None,
    max_size: options.MaxSize = None,
    max_latency: options.MaxLatency = None,
    max_bops: options.MaxBops = None,
    max_drop: options.MaxDrop = None,
    time_budget: options.TimeBudget = None,
    formats: options.Formats = None,
    bits: options.Bits = None,
    method: options.Method = None,
    setting: options.Setting = None,
    iterations: options.Iterations = None,
    memory: options.Memory = None,
    plan: options.Plan = None,
    config: options.Config = None,
    trust: options.Trust = False,
    seed: options.Seed = None,
    output: options.Output = Path("out"),
) -> None:
    """Quantize a network; measure what it costs and what it brings."""
    given = {name: value for name, value in locals().items() if name not in ("ctx", "model", "config", "output")}
    chosen = options.recipe(config, given)
    calibration = _calibration(chosen)
    folder = options.writable(output)
    from fptq import recipes
    from fptq.cli import nnunet
    from fptq.graph.nnunet import names_nnunet

    terminal: Terminal = ctx.obj
    if names_nnunet(model):
        nnunet.quantize_folds(terminal, model, chosen, output=folder, command=command_line())
        return
    with terminal.progress() as progress:
        result = recipes.quantize(
            model,
            calibration=calibration,
            recipe=chosen,
            validation=chosen.val,
            labels=chosen.labels,
            progress=progress,
            command=command_line(),
        )
        result.save(folder)
    _show_result(terminal, result, folder)


def _calibration(recipe: Recipe) -> str:
    if recipe.calib is None:
        raise DataError(
            "there is no calibration data",
            rule="the ranges of activations are found from samples",
            remedy="Give --calib a folder, a glob or package.module:function; one sample is enough to start",
        )
    return recipe.calib


def predict(
    ctx: typer.Context,
    folder: options.Folder,
    data: options.Data,
    output: options.Output,
    task: Annotated[
        str | None,
        typer.Option(metavar="generic|segmentation", help="Arrays, or label maps of scans; default: as quantized."),
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(metavar="package.module:function", help="In place of the saved one.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(metavar="0.5", help="Share of a window that the next one covers again.")
    ] = None,
    windows_per_call: Annotated[
        int | None, typer.Option(metavar="N", help="Where the network takes any batch; default: by memory.")
    ] = None,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    step_size: Annotated[
        float | None, typer.Option(metavar="0.5", min=0.01, max=1.0, help="nnU-Net: step of the sliding window.")
    ] = None,
    mirroring: Annotated[
        bool | None, typer.Option("--mirroring/--no-mirroring", help="nnU-Net: the mean over mirrored patches.")
    ] = None,
    gaussian: Annotated[
        bool | None, typer.Option("--gaussian/--no-gaussian", help="nnU-Net: patches count less at their border.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--save-probabilities", help="nnU-Net: .npz files too.")] = False,
    trust: options.Trust = False,
) -> None:
    """Run a quantized network on new data; interrupted, it goes on."""
    given: dict[str, object] = {
        "task": task,
        "preprocess": preprocess,
        "overlap": overlap,
        "windows_per_call": windows_per_call,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    target = options.writable(output)
    from fptq import recipes
    from fptq.cli import nnunet

    terminal: Terminal = ctx.obj
    wanted = nnunet.Prediction(
        threads=threads,
        overwrite=overwrite,
        tile_step_size=step_size,
        use_mirroring=mirroring,
        use_gaussian=gaussian,
        save_probabilities=probabilities,
    )
    if recipes.is_nnunet_folder(folder):
        nnunet.refuse(chosen, rule=f"{folder} holds a network of nnU-Net, which prepares images and labels them itself")
        written = wanted.run(terminal, folder, data, output=target)
    elif recipes.is_bundle_folder(folder):
        nnunet.refuse(chosen | wanted.of_nnunet, rule=f"{folder} holds a bundle of MONAI, which says it itself")
        predictor = recipes.bundle_predictor(folder, threads=threads, trust=trust)
        with terminal.progress() as progress:
            written = recipes.predict_bundle(predictor, data, output=target, overwrite=overwrite, progress=progress)
    else:
        nnunet.refuse(wanted.of_nnunet, rule=f"{folder} holds no network of nnU-Net, whose options these are")
        if threads is not None:
            chosen["threads"] = threads
        with terminal.progress() as progress:
            written = recipes.predict(folder, data, output=target, overwrite=overwrite, progress=progress, **chosen)
    count = "one result" if len(written) == 1 else f"{len(written)} results"
    terminal.show(f"{count} in {target}", document={"output": str(target), "files": [str(path) for path in written]})


def inspect(
    ctx: typer.Context,
    model: options.Model,
    engine: options.Engine = None,
    keep_float: options.KeepFloat = None,
    precision: options.Precision = None,
    dynamic: options.Dynamic = None,
    config: options.Config = None,
    trust: options.Trust = False,
) -> None:
    """Show what would be quantized, what not, and why."""
    given = {name: value for name, value in locals().items() if name not in ("ctx", "model", "config")}
    recipe = options.recipe(config, given)
    from fptq import recipes
    from fptq.cli import tables

    found = recipes.inspect(model, recipe=recipe)
    ctx.obj.show(*tables.inspection(found), document=asdict(found))


def sensitivity(
    ctx: typer.Context,
    model: options.Model,
    calib: options.Calib = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="w4a8", help="Bits of weights and activations; may be repeated."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="One partial run for each layer and format.")] = False,
    engine: options.Engine = None,
    preprocess: options.Preprocess = None,
    keep_float: options.KeepFloat = None,
    dynamic: options.Dynamic = None,
    threads: options.Threads = None,
    samples: options.Samples = None,
    observer: options.Observer = None,
    config: options.Config = None,
    trust: options.Trust = False,
    seed: options.Seed = None,
) -> None:
    """Show which layers hurt most in low precision."""
    other = ("ctx", "model", "config", "formats", "exact")
    given = {name: value for name, value in locals().items() if name not in (*other, "other")}
    recipe = options.recipe(config, given)
    calibration = _calibration(recipe)
    from fptq import recipes
    from fptq.cli import tables

    terminal: Terminal = ctx.obj
    method = "leave-one-in" if exact else "fisher"
    with terminal.progress() as progress:
        found = recipes.sensitivity(
            model,
            calibration=calibration,
            formats=formats or recipes.FORMATS,
            method=method,
            recipe=recipe,
            progress=progress,
        )
    terminal.show(*tables.sensitivity(found), document=asdict(found))


def search(
    ctx: typer.Context,
    model: options.Model,
    calib: options.Calib = None,
    val: options.Val = None,
    labels: options.Labels = None,
    task: options.Task = None,
    vocab: options.Vocab = None,
    max_size: options.MaxSize = None,
    max_latency: options.MaxLatency = None,
    max_bops: options.MaxBops = None,
    max_drop: options.MaxDrop = None,
    time_budget: options.TimeBudget = None,
    formats: options.Formats = None,
    engine: options.Engine = None,
    preprocess: options.Preprocess = None,
    metric: options.Metric = None,
    higher_is_better: options.HigherIsBetter = None,
    keep_float: options.KeepFloat = None,
    dynamic: options.Dynamic = None,
    threads: options.Threads = None,
    samples: options.Samples = None,
    observer: options.Observer = None,
    recipe: options.Effort = None,
    config: options.Config = None,
    trust: options.Trust = False,
    seed: options.Seed = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The plan.")] = Path("plan.json"),
) -> None:
    """Find the best precision of each layer within limits."""
    given = {name: value for name, value in locals().items() if name not in ("ctx", "model", "config", "output")}
    chosen = options.recipe(config, given)
    calibration = _calibration(chosen)
    from fptq import recipes
    from fptq.cli import tables

    terminal: Terminal = ctx.obj
    with terminal.progress() as progress:
        found = recipes.search(
            model,
            calibration=calibration,
            validation=chosen.val,
            labels=chosen.labels,
            recipe=chosen,
            progress=progress,
        )
        found.save(output)
    terminal.show(*tables.search(found, output), document=found.summary() | {"output": str(output)})


def bench(
    ctx: typer.Context,
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="ONNX files that take the same input.")],
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="onnxruntime|openvino|tensorrt", help="May be repeated; default: the CPU's installed ones."
        ),
    ] = None,
    threads: options.Threads = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=3, help="Timed rounds.")] = 15,
) -> None:
    """Compare files on engines: latency, memory, size, load time."""
    from fptq import recipes
    from fptq.cli import tables
    from fptq.engines import DEPLOYABLE, ENGINES

    terminal: Terminal = ctx.obj
    engines = engine or [name for name in DEPLOYABLE if ENGINES[name].version() is not None]
    with terminal.progress() as progress:
        rows = recipes.bench(models, engines=engines, threads=threads, rounds=rounds, progress=progress)
    terminal.show(*tables.bench(rows), document={"rows": [asdict(row) for row in rows]})


def report(
    ctx: typer.Context,
    folder: options.Folder,
) -> None:
    """Write report.html again from report.json, without any model."""
    from fptq.report.html import write_html
    from fptq.report.report import Report

    page = write_html(Report.load(folder), folder if folder.is_dir() else folder.parent)
    ctx.obj.show(f"report: {page}", document={"report": str(page)})


def doctor(ctx: typer.Context) -> None:
    """Show engines, processor abilities and what is missing."""
    from fptq.cli import tables
    from fptq.doctor import diagnose

    checks = diagnose()
    ctx.obj.show(*tables.checks(checks), document={"checks": [asdict(check) for check in checks]})


def brain(
    ctx: typer.Context,
    engine: options.Engine = None,
    threads: options.Threads = None,
    samples: options.Samples = None,
    seed: options.Seed = None,
    output: options.Output = Path("demo-out"),
) -> None:
    """Brain extraction in 3-D: deepbet's network on a real head MRI."""
    given = {"engine": engine, "threads": threads, "samples": samples, "seed": seed}
    recipe = options.recipe(None, given)
    folder = options.writable(output)
    from fptq import recipes

    terminal: Terminal = ctx.obj
    with terminal.progress() as progress:
        result = recipes.demo_brain(folder, recipe=recipe, progress=progress)
    _show_result(terminal, result, folder)


def command_line() -> str:
    """The command that is running, as it can be pasted into a shell."""
    return shlex.join(["fptq", *sys.argv[1:]])


def _show_result(terminal: Terminal, result: Result, folder: Path) -> None:
    from fptq.cli import tables

    record = result.report
    document = {"output": str(folder), "report": record.model_dump(mode="json")}
    terminal.show(*tables.result(record, folder), document=document)
