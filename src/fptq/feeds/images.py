"""Image files as samples: decoded one at a time, prepared as the network was trained.

What is done to an image, in this order (that of torchvision's `ImageFolder`, `Resize`, `CenterCrop`, `ToTensor` and
`Normalize`, number by number, but for the EXIF orientation, which these ignore):

    decode; turn upright; 8 bits; RGB or grey, alpha dropped
    resize    short side to `image_resize` pixels, bilinear with antialiasing (Pillow's triangle filter on 8-bit values)
    crop      the central `image_size` pixels
    x = (pixel / scale - mean) / std                                             in float32, division by division
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fptq.errors import ConfigError, DataError, MissingExtra
from fptq.feeds.optional import optional
from fptq.feeds.preprocess import Preprocess, PreprocessSpec, preprocessed
from fptq.feeds.scans import unreadable
from fptq.graph.model import TensorInfo
from fptq.types import Array

if TYPE_CHECKING:
    from pathlib import Path

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_DEFAULT_SIZE = 224
_BITS16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How images are prepared: the keys of the `[preprocess]` table that are for images.

    Attributes:
        image_size: Height and width of the central crop, or one number for both [pixels]; None: what the network
            takes, 224 where it takes any.
        image_resize: What the short side is resized to before the crop [pixels]; None: the crop's longer side
            * 256 / 224, rounded down.
        mean: Of each channel, or one for all, after the division by `scale`; None: ImageNet's, or 0 where `scale`
            is given.
        std: Likewise; None: ImageNet's, or 1.
        scale: What the pixels 0 to 255 are divided by; None: 255.
    """

    image_size: int | tuple[int, int] | None = None
    image_resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std are not both given", rule="pixels become (pixel / scale - mean) / std")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, 3):
                raise ConfigError(f"{name} has {len(values)} numbers", rule="one for each of 1 or 3 channels")
        if min(self.std or (1.0,)) <= 0 or (self.scale is not None and self.scale <= 0):
            raise ConfigError("std or scale is not positive", rule="pixels are divided by them")
        if min(*self._asked, self.image_resize or 1) < 1:
            raise ConfigError("image_size or image_resize is not positive", rule="they are numbers of pixels")
        if self.image_resize is not None and self.image_resize < max(self._asked):
            raise ConfigError(
                f"image_resize {self.image_resize} is smaller than image_size {self.image_size}",
                rule="the crop lies inside the resized image",
            )

    def __call__(self, volume: Array, affine: Array) -> Array:
        """Refuses what is no image file.

        Raises:
            DataError: Always.
        """
        raise DataError(
            f"an array of shape {list(volume.shape)}",
            rule=f"{', '.join(f.name for f in fields(self))} of the [preprocess] table are for image files",
            remedy="Prepare arrays yourself, or use --preprocess package.module:function",
        )

    @property
    def normalizes(self) -> bool:
        """Whether it says what pixels become."""
        return self.mean is not None or self.scale is not None

    @property
    def _asked(self) -> tuple[int, int]:
        size = self.image_size if self.image_size is not None else 1
        return size if isinstance(size, tuple) else (size, size)


@dataclass(frozen=True, kw_only=True)
class Image:
    """A decoded image.

    Attributes:
        picture: The Pillow image, upright, in the mode of its file.
        name: The file.
    """

    picture: Any
    name: str

    def converted(self, channels: int) -> Any:
        """The Pillow image in 8 bits: RGB for three channels, luma (ITU-R 601-2) for one; alpha is dropped."""
        picture = self.picture
        if picture.mode in _BITS16:
            pil = _pillow("PIL.Image")
            wide = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
            picture = pil.fromarray(((wide + 128) // 257).astype(np.uint8))  # 257 = 65535 / 255
        if picture.mode == "P":
            picture = picture.convert("RGBA")
        return picture.convert("RGB" if channels == 3 else "L")

    def pixels(self, channels: int) -> Array:
        """`u8[H, W, 3]`, or `u8[H, W]` for one channel."""
        return np.array(self.converted(channels))


def read_image(path: Path) -> Image:
    """An image file, decoded and turned upright as its EXIF orientation says.

    Raises:
        DataError: It cannot be read.
        MissingExtra: Pillow is not installed.
    """
    pil, operations = _pillow("PIL.Image"), _pillow("PIL.ImageOps")
    try:
        with pil.open(path) as opened:
            opened.load()
            return Image(picture=operations.exif_transpose(opened), name=str(path))
    except MissingExtra:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        raise unreadable(path, error) from error


def image_array(image: Image, inputs: tuple[TensorInfo, ...], *, preprocess: Preprocess | None) -> Array:
    """What the network takes of an image, without the batch axis: `[C, H, W]`, or `[H, W, C]` where C comes last.

    Args:
        image: The image.
        inputs: What the model takes.
        preprocess: An `ImageSpec`; None: its defaults; or a function, which is called with the pixels `u8[H, W, 3]`
            (`u8[H, W]` for one channel) of the whole image and the identity.

    Raises:
        DataError: The network takes no image.
        ConfigError: The settings contradict the network, or say nothing where there is no default.
    """
    layout = _Layout.of(inputs, image.name)
    spec = ImageSpec()
    match preprocess:
        case None:
            pass
        case ImageSpec():
            spec = preprocess
        case PreprocessSpec():
            if preprocess != PreprocessSpec():
                raise ConfigError(
                    f"{image.name} is an image",
                    rule="the [preprocess] table has keys for volumes",
                    remedy=f"Images have {', '.join(f.name for f in fields(ImageSpec))}",
                )
        case _:
            pixels = image.pixels(layout.channels or 3)
            return preprocessed(pixels, np.eye(4), preprocess=preprocess, name=image.name)
    return _prepared(image, layout, spec)


def _prepared(image: Image, layout: _Layout, spec: ImageSpec) -> Array:
    channels = layout.channels or 3
    size = layout.size(spec)
    short = spec.image_resize if spec.image_resize is not None else math.floor(max(size) * 256 / 224)
    pixels = np.array(_cropped(_resized(image.converted(channels), short), size)).reshape(*size, channels)
    values = _normalized(pixels, layout.info, spec)
    return values if layout.last else np.ascontiguousarray(values.transpose(2, 0, 1))


def _resized(picture: Any, short: int) -> Any:
    width, height = picture.size
    smaller = min(width, height)
    # The long side is rounded down, as in torchvision.
    size = tuple(short if side == smaller else short * side // smaller for side in (width, height))
    return picture if size == picture.size else picture.resize(size, _pillow("PIL.Image").Resampling.BILINEAR)


def _cropped(picture: Any, size: tuple[int, int]) -> Any:
    width, height = picture.size
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return picture.crop((left, top, left + size[1], top + size[0]))


def _normalized(pixels: Array, info: TensorInfo, spec: ImageSpec) -> Array:
    """`[H, W, C]` in the range that the network takes."""
    if info.dtype.kind in "ui":  # the network normalises by itself
        if spec.normalizes:
            raise ConfigError(f"mean, std or scale for {info}", rule="a network of whole numbers takes the pixels")
        return pixels.astype(info.dtype)
    channels = pixels.shape[-1]
    if not spec.normalizes and channels != 3:
        raise ConfigError(
            f"images for {info}",
            rule="ImageNet's mean and std are for three channels, and grey images have no usual ones",
            remedy="Give mean and std in the [preprocess] table of a recipe file, such as mean = [0.5] and std = [0.5]",
        )
    mean, std = (spec.mean or (0.0,), spec.std or (1.0,)) if spec.normalizes else (IMAGENET_MEAN, IMAGENET_STD)
    if len(mean) not in (1, channels) or len(std) not in (1, channels):
        raise ConfigError(f"mean {list(mean)} and std {list(std)}", rule=f"the network takes {info}")
    values = pixels.astype(np.float32) / np.float32(spec.scale if spec.scale is not None else 255)
    return np.asarray((values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32))


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How a network takes an image.

    Attributes:
        info: Its input.
        channels: 1 or 3; None where any number is taken, which gives RGB.
        last: Whether the channels are the last axis.
    """

    info: TensorInfo
    channels: int | None
    last: bool

    @classmethod
    def of(cls, inputs: tuple[TensorInfo, ...], name: str) -> _Layout:
        """The layout of a network's one input.

        Raises:
            DataError: The network takes no image.
        """
        shape = inputs[0].shape or ()
        takes = "; ".join(map(str, inputs))
        remedy = "Give arrays, or package.module:function that yields what the network takes"
        if len(inputs) != 1 or len(shape) != 4:
            rule = f"an image is one input [N, C, H, W] or [N, H, W, C], and the model takes {takes}"
            raise DataError(f"{name} is an image", rule=rule, remedy=remedy)
        if shape[1] in (1, 3) or not (shape[3] in (1, 3) or isinstance(shape[1], int)):
            first = shape[1]
            return cls(info=inputs[0], channels=first if isinstance(first, int) else None, last=False)
        if shape[3] in (1, 3):
            return cls(info=inputs[0], channels=3 if shape[3] == 3 else 1, last=True)
        raise DataError(
            f"{name} is an image", rule=f"an image has 1 or 3 channels, and the model takes {takes}", remedy=remedy
        )

    def size(self, spec: ImageSpec) -> tuple[int, int]:
        """Height and width of what the network sees.

        Raises:
            ConfigError: The settings ask for another size than the network's.
        """
        shape = self.info.shape or ()
        fixed = [side if isinstance(side, int) else None for side in (shape[1:3] if self.last else shape[2:])]
        asked = spec.image_size
        wanted = asked if isinstance(asked, tuple) else (asked, asked)
        if any(have is not None and want not in (None, have) for have, want in zip(fixed, wanted, strict=True)):
            raise ConfigError(f"image_size {asked}", rule=f"the network takes {self.info}", remedy="Leave it out")
        other = next((side for side in fixed if side is not None), _DEFAULT_SIZE)
        height, width = (have or want or other for have, want in zip(fixed, wanted, strict=True))
        if spec.image_resize is not None and spec.image_resize < max(height, width):
            raise ConfigError(
                f"image_resize {spec.image_resize}",
                rule=f"the crop of {height} x {width} lies inside the resized image",
            )
        return height, width


def _pillow(module: str) -> Any:
    return optional(module, extra="images", purpose="reading images")
