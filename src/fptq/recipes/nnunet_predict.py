"""nnU-Net's own predictor whose network is an engine, from the folder that `quantize_nnunet` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq.config import Recipe
from fptq.engines import CompileOptions
from fptq.errors import ConfigError, DataError, FptqError, OutputError
from fptq.feeds.nnunet import ImageCase, find_image_cases
from fptq.feeds.scans import unreadable
from fptq.graph.nnunet import DATASET, PLANS, new_predictor, quiet, read_json
from fptq.recipes.compiled import CompiledFolds, compiled_folds, network_path
from fptq.recipes.nnunet import FACTS_FILE, FORMAT
from fptq.recipes.problem import threads_of
from fptq.recipes.targets import check_targets
from fptq.types import Progress, silent

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def is_nnunet_folder(folder: str | Path) -> bool:
    """Whether `quantize_nnunet` wrote it."""
    return (Path(folder) / FACTS_FILE).is_file()


def nnunet_predictor(
    folder: str | Path,
    *,
    tile_step_size: float = 0.5,
    use_gaussian: bool = True,
    use_mirroring: bool = True,
    threads: int | None = None,
    float_precision: str = "default",
) -> nnUNetPredictor:
    """An `nnUNetPredictor` whose network is the quantized one on its engine: everything around it stays nnU-Net's.

    No checkpoint is read, so nothing is executed that was pickled.

    Args:
        folder: What `quantize_nnunet` wrote.
        tile_step_size: nnU-Net's own: step of the sliding window, as a share of the patch.
        use_gaussian: nnU-Net's own: patches count less at their border.
        use_mirroring: nnU-Net's own: the mean over mirrored patches, along the axes of the training.
        threads: CPU threads of the engine; None: one for each core.
        float_precision: What the unquantized remainder runs in: "f32", or the engine's own choice.

    Raises:
        ConfigError: It did not write the folder, or files are missing in it.
        MissingExtra: nnunetv2 or the engine is not installed.
    """
    folder = Path(folder)
    facts = _facts(folder)
    paths = [network_path(folder / f"fold_{fold}") for fold in facts["folds"]]
    options = CompileOptions(threads=threads_of(Recipe(threads=threads)), float_precision=float_precision)
    predictor = new_predictor(tile_step_size=tile_step_size, use_gaussian=use_gaussian, use_mirroring=use_mirroring)
    return put_in(predictor, compiled_folds(paths, options), folder=folder, facts=facts)


def put_in(
    predictor: nnUNetPredictor, compiled: CompiledFolds, *, folder: Path, facts: Mapping[str, Any]
) -> nnUNetPredictor:
    """Give a predictor the compiled networks, and the plans and the dataset of a folder.

    Args:
        predictor: Of nnU-Net, empty.
        compiled: The networks.
        folder: It holds `plans.json` and `dataset.json`.
        facts: What `nnunet.json` says.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from fptq.engines.folds import EngineFolds

    axes = facts["mirroring_axes"]
    module = EngineFolds(compiled.runners, input_name=compiled.input_name, output_name=compiled.output_name)
    with quiet():
        plans = PlansManager(read_json(folder / PLANS))
        predictor.manual_initialization(
            module,
            plans,
            plans.get_configuration(facts["configuration"]),
            module.parameters_of_folds,
            read_json(folder / DATASET),
            facts["trainer"],
            None if axes is None else tuple(axes),
        )
    predictor.network = module  # with nnUNet_compile set, nnU-Net wraps it in torch.compile
    return predictor


def predict_nnunet(
    predictor: nnUNetPredictor,
    images: str | Path,
    *,
    output: str | Path,
    overwrite: bool = False,
    save_probabilities: bool = False,
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Label maps of a folder of images, by nnU-Net's own `predict_from_files_sequential`.

    Args:
        predictor: What `nnunet_predictor` gave.
        images: The folder, named as for `nnUNetv2_predict`.
        output: The folder to write; nnU-Net adds `plans.json`, `dataset.json` and its arguments.
        overwrite: Whether results that are there already are replaced.
        save_probabilities: nnU-Net's own: `.npz` files beside the label maps.
        progress: Told after each case.

    Returns:
        The label maps, in the order of the cases.

    Raises:
        DataError: An image is missing, unreadable or not finite.
        OutputError: A result is there already, or cannot be written.
    """
    output = Path(output)
    cases = find_image_cases(images, predictor.dataset_json)
    ending = str(predictor.dataset_json["file_ending"])
    targets = tuple(output / f"{case.name}{ending}" for case in cases)
    read = [path for case in cases for path in case.files]
    check_targets(targets, images=read, overwrite=overwrite)
    with _case_by_case(predictor, cases, progress), quiet():
        output.mkdir(parents=True, exist_ok=True)
        predictor.predict_from_files_sequential(
            [[str(path) for path in case.files] for case in cases],
            [str(output / case.name) for case in cases],
            save_probabilities=save_probabilities,
        )
    return targets


@contextmanager
def _case_by_case(predictor: nnUNetPredictor, cases: Sequence[ImageCase], progress: Progress) -> Iterator[None]:
    """Say which case the predictor is at, which takes one after another: to the progress, and in errors."""
    predict, done = predictor.predict_logits_from_preprocessed_data, 0

    def counted(data: Any) -> Any:
        nonlocal done
        found = predict(data)
        done += 1
        progress(done, len(cases), "prediction")
        return found

    progress(0, len(cases), "prediction")
    predictor.predict_logits_from_preprocessed_data = counted
    try:
        yield
    except DataError as error:
        raise DataError(f"case {cases[done].name}: {error.what}", rule=error.rule, remedy=error.remedy) from error
    except FptqError:
        raise
    except OSError as error:
        raise OutputError(f"results could not be written: {error}", remedy="Check the free space") from error
    except Exception as error:  # SimpleITK, nibabel and nnU-Net's assertions have no common base class
        at = cases[min(done, len(cases) - 1)]
        raise unreadable(at.files[0], error) from error
    finally:
        predictor.predict_logits_from_preprocessed_data = predict


def _facts(folder: Path) -> dict[str, Any]:
    if not is_nnunet_folder(folder):
        raise ConfigError(
            f"{folder} has no {FACTS_FILE}",
            rule="a quantized nnU-Net is a folder with it and fold_*",
            remedy="Give the folder that fptq quantize nnunet:... wrote",
        )
    facts = read_json(folder / FACTS_FILE)
    if facts.get("format") != FORMAT:
        raise ConfigError(f"{folder / FACTS_FILE} has format {facts.get('format')}", rule=f"this fptq reads {FORMAT}")
    return facts
