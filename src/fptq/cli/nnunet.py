"""What `fptq quantize` and `fptq predict` do with networks of nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq.cli import tables
from fptq.errors import ConfigError
from fptq.recipes import nnunet_predictor, predict_nnunet, quantize_nnunet

if TYPE_CHECKING:
    from fptq.cli.terminal import Terminal
    from fptq.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was asked of a prediction; None: nnU-Net's default.

    Attributes:
        threads: Of the engine.
        overwrite: Whether results that are there already are replaced.
        tile_step_size: Of the sliding window, as a share of the patch.
        use_mirroring: The mean over mirrored patches.
        use_gaussian: Patches count less at their border.
        save_probabilities: `.npz` files too.
    """

    threads: int | None
    overwrite: bool
    tile_step_size: float | None
    use_mirroring: bool | None
    use_gaussian: bool | None
    save_probabilities: bool

    @property
    def tiling(self) -> dict[str, Any]:
        """What was given of what a predictor is made with."""
        options = {
            "tile_step_size": self.tile_step_size,
            "use_mirroring": self.use_mirroring,
            "use_gaussian": self.use_gaussian,
        }
        return {name: value for name, value in options.items() if value is not None}

    @property
    def of_nnunet(self) -> dict[str, Any]:
        """What was given and only nnU-Net knows."""
        return self.tiling | ({"save_probabilities": True} if self.save_probabilities else {})

    def run(self, terminal: Terminal, folder: Path, images: str, *, output: Path) -> tuple[Path, ...]:
        """Label maps by nnU-Net's own predictor."""
        predictor = nnunet_predictor(folder, threads=self.threads, **self.tiling)
        with terminal.progress() as progress:
            return predict_nnunet(
                predictor,
                images,
                output=output,
                overwrite=self.overwrite,
                save_probabilities=self.save_probabilities,
                progress=progress,
            )


def quantize_folds(terminal: Terminal, source: str, recipe: Recipe, *, output: Path, command: str) -> None:
    """Every fold, each with its own report."""
    with terminal.progress() as progress:
        found = quantize_nnunet(
            source, calibration=recipe.calib or "", recipe=recipe, progress=progress, command=command
        )
        found.save(output)
    folds = dict(zip(found.trained.folds, found.results, strict=True))
    reports = {fold: result.report.model_dump(mode="json") for fold, result in folds.items()}
    terminal.show(*tables.folds(folds, output), document={"output": str(output), "folds": reports})


def refuse(given: Mapping[str, object], *, rule: str) -> None:
    """Options that are not for this network.

    Raises:
        ConfigError: There are some.
    """
    if given:
        raise ConfigError(f"{', '.join(given)} cannot be chosen here", rule=rule, remedy="Leave it out")
