"""The `[preprocess]` table of a recipe."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

TAGS: Final = ("function", "table")
IMAGE_KEYS: Final = ("image_size", "image_resize", "mean", "std", "scale")
"""The keys of the `[preprocess]` table that are for image files."""


class Options(BaseModel):
    """Options that refuse unknown keys and cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Pixels = Annotated[int, Field(ge=1)]


def _square(value: object) -> object:
    return (value, value) if isinstance(value, int) else value


class PreprocessTable(Options):
    """The `[preprocess]` table: what a raw scan or an image file becomes before the network.

    Attributes:
        orientation: Axis codes of the network's grid, such as "RAS" or "LPS".
        spacing: Voxel size of the network's grid [mm]; without it the scan's own.
        window: Raw intensities that become 0 and 1; values outside are clipped.
        percentiles: The same, with the intensities given as percentiles of the volume (0 to 100).
        zscore: Zero mean and unit standard deviation over the "volume" or its "nonzero" voxels.
        size: Crop or pad around the centre to exactly this many voxels.
        multiple_of: Pad each axis up to a multiple of this, where `size` is not given.
        pad_value: What padding is filled with, after normalisation.
        image_size: Of images: height and width of the central crop, or one number [pixels]; without it the network's.
        image_resize: What the short side is resized to before; without it the crop * 256 / 224.
        mean: Of each channel after the division by `scale`, or one for all; without it ImageNet's.
        std: Likewise.
        scale: What pixels of 0 to 255 are divided by; without it 255. Given alone, there is no other normalisation.
    """

    orientation: str = "RAS"
    spacing: tuple[float, float, float] | None = None
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    zscore: Literal["none", "volume", "nonzero"] = "none"
    size: tuple[int, int, int] | None = None
    multiple_of: int = Field(default=1, ge=1)
    pad_value: float = 0.0
    image_size: Annotated[tuple[_Pixels, _Pixels], BeforeValidator(_square)] | None = None
    image_resize: int | None = Field(default=None, ge=1)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = Field(default=None, gt=0)

    @property
    def for_images(self) -> bool:
        """Whether it describes image files, not volumes."""
        return any(getattr(self, name) is not None for name in IMAGE_KEYS)


def _kind(value: object) -> str:
    return "function" if isinstance(value, str) else "table"


Preprocess = Annotated[Annotated[str, Tag("function")] | Annotated[PreprocessTable, Tag("table")], Discriminator(_kind)]
