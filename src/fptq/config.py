"""`Recipe`: every option of a quantization in one validated record, and its file `fptq.toml`.

The file, the command line and the Python call all make one: what a file says is overridden by the options given
beside it. Field names are the option names with underscores.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from fptq.errors import ConfigError

FILE_NAME: Final = "fptq.toml"

_SOURCES = ("calib", "val", "labels")
_PATHS = ("plan", "cache")
_TAGS = ("function", "table")
LIMITS: Final = ("max_size", "max_latency", "max_bops", "max_drop")
"""What a search must keep."""
IMAGE_KEYS: Final = ("image_size", "image_resize", "mean", "std", "scale")
"""The keys of the `[preprocess]` table that are for image files."""


class _Options(BaseModel):
    """Options that refuse unknown keys and cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Pixels = Annotated[int, Field(ge=1)]


def _square(value: object) -> object:
    return (value, value) if isinstance(value, int) else value


class PreprocessTable(_Options):
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


_Preprocess = Annotated[
    Annotated[str, Tag("function")] | Annotated[PreprocessTable, Tag("table")], Discriminator(_kind)
]


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_Patterns = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Recipe(_Options):
    """Every option of `quantize`.

    Attributes:
        calib: Calibration data for the command line: folder, glob or `package.module:function`.
        val: Validation data, likewise.
        labels: Their labels: a folder or glob of masks; the names of the classes for a classification.
        task: What the scores mean.
        engine: What the int8 model is made for; "auto" measures the installed engines and picks the fastest.
        recipe: How much is tried, each trial kept only where the output error on held-out samples falls: "fast"
            nothing, "auto" what is cheap, "best" what takes many runs too.
        observer: Estimator of activation ranges; "auto" is what fptq holds to be best.
        percentile: Of the "percentile" observer: share of values that is not clipped, in (50, 100].
        p: Exponent of the error that the "lp" observer minimises, in [1, 8].
        granularity: Scales of weights: one a "channel", or one a "tensor".
        weight_bits: Width of stored weights, 2 to 16.
        activation_bits: Width of activations, 2 to 16.
        symmetric: Whether activations have a fixed zero point; without it whatever is best on the engine.
        keep_float: Globs over ONNX names and PyTorch module paths of what stays float.
        precision: Globs likewise, each with what it is quantized to.
        bias_correction: Whether the mean error of a channel goes into its bias, where that lowers the error.
        gate: Whether quantizers that do not pay on the engine are measured and taken back.
        gate_seconds: Time limit of these measurements [s].
        max_size: Most stored bytes, such as "0.3x" of the float network or "3.5MB"; with any of these limits a search
            chooses the precision of every layer.
        max_latency: Longest run, such as "0.5x" or "40ms".
        max_bops: Most bit operations of a run, such as "0.1x" or "120GBOPs".
        max_drop: Largest loss of the metric against the float network, in its unit.
        time_budget: How long the search may take, such as "10m"; the best so far is kept.
        bits: One format for all layers but the ends, such as "w4a4"; codes narrower than 8 bits are emulated in 8.
        method: How their rounding is found: "nearest", in closed form ("gptaq", "ridge"), or learned.
        setting: What keeps 8 bits at the ends: "qdrop" the weights of the first and last layer and the input of the
            last, "brecq" the output of the first one too.
        iterations: Of a learned method for each block; without it the method's own.
        memory: What learned methods may keep in RAM, such as "4GB"; beyond, on disk.
        formats: What a layer may become in a search, beside float: "w4a8" is weights of 4 bits, activations of 8.
        threads: CPU threads for one run; without it one for each core.
        dynamic: Which axes are dynamic: "auto", "none", or `input:axis=name,...`.
        samples: Most calibration samples to use; without it all.
        preprocess: `package.module:function`, or a table of settings.
        metric: `package.module:function`; called with a function that runs the model, returns a number or a dict.
        higher_is_better: Which way is good, for the metric.
        patch: Spatial size of a sliding window, for networks that take any size.
        overlap: Share of a window that its neighbour covers too, in [0, 1).
        plan: A `plan.json` to replay exactly instead of placing and measuring.
        seed: Of everything random.
        trust: Whether files that can execute code when they are read may be read.
        cache: Folder of the cache; without it the user's cache folder.
    """

    calib: str | None = None
    val: str | None = None
    labels: str | None = None
    task: Literal["generic", "segmentation", "classification"] = "generic"
    engine: Literal["auto", "onnxruntime", "openvino"] = "auto"
    recipe: Literal["auto", "fast", "best"] = "auto"
    observer: Literal["auto", "minmax", "moving-average", "percentile", "entropy", "lp"] = "auto"
    percentile: float = Field(default=99.99, gt=50, le=100)
    p: float = Field(default=2.4, ge=1, le=8)
    granularity: Literal["channel", "tensor"] = "channel"
    weight_bits: int = Field(default=8, ge=2, le=16)
    activation_bits: int = Field(default=8, ge=2, le=16)
    symmetric: bool | None = None
    keep_float: _Patterns = ()
    precision: Mapping[str, Literal["int8", "float"]] = {}
    bias_correction: Literal["auto", "off"] = "auto"
    gate: Literal["measured", "off"] = "measured"
    gate_seconds: float = Field(default=120.0, gt=0)
    max_size: str | None = None
    max_latency: str | None = None
    max_bops: str | None = None
    max_drop: float | None = Field(default=None, ge=0)
    time_budget: str | float | None = None
    formats: _Patterns = ("w8a8",)
    bits: str | None = None
    method: Literal[
        "auto", "nearest", "gptaq", "ridge", "adaround", "brecq", "qdrop", "genie", "pd-quant", "ae-qdrop"
    ] = "auto"
    setting: Literal["qdrop", "brecq"] = "qdrop"
    iterations: int | None = Field(default=None, ge=1)
    memory: str = "4GB"
    threads: int | None = Field(default=None, ge=1)
    dynamic: str = Field(default="auto", min_length=1)
    samples: int | None = Field(default=None, ge=1)
    preprocess: _Preprocess | None = None
    metric: str | None = None
    higher_is_better: bool = True
    patch: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    overlap: float = Field(default=0.5, ge=0, lt=1)
    plan: Path | None = None
    seed: int = Field(default=0, ge=0)
    trust: bool = False
    cache: Path | None = None

    @property
    def limits(self) -> dict[str, str | float]:
        """The limits of a search that were given, by name; none: the network is quantized as a whole."""
        given = {name: getattr(self, name) for name in LIMITS}
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def of(cls, options: Mapping[str, object], *, source: str = "recipe") -> Self:
        """A recipe from plain data.

        Args:
            options: Values by field name.
            source: Where they come from, for the error messages.

        Raises:
            ConfigError: A key is unknown, a value is of the wrong type or out of range, or two contradict each other.
        """
        try:
            recipe = cls.model_validate(dict(options))
        except ValidationError as error:
            raise _config_error(error, source) from error
        _check_consistency(recipe, source)
        return recipe

    @classmethod
    def named(cls, given: Self | str | None) -> Self:
        """The recipe that a call was given: a record, the name of one, or none."""
        match given:
            case None:
                return cls()
            case str():
                return cls.of({"recipe": given})
        return given

    def merged(self, **options: object) -> Self:
        """This recipe with some options replaced; a list or table that is given replaces the whole one.

        Raises:
            ConfigError: As for `of`.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).of({**given, **options}, source="options")

    def to_toml(self) -> str:
        """The text of a recipe file with every option in it, defaults included: defaults may change, a file not."""
        values = {name: value for name, value in self.model_dump().items() if value is not None}
        values |= {name: str(Path(values[name]).resolve()) for name in _PATHS if name in values}
        values |= {name: _absolute(values[name], Path.cwd()) for name in _SOURCES if name in values}
        tables = {name: value for name, value in values.items() if isinstance(value, dict)}
        lines = [f"{name} = {_toml(value)}" for name, value in values.items() if name not in tables]
        for name, table in tables.items():
            if table:
                lines += ["", f"[{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in table.items() if v is not None)]
        return "\n".join(lines) + "\n"


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; its relative paths are relative to the file.

    Args:
        path: The `fptq.toml`, or the folder that holds it.

    Raises:
        ConfigError: There is no such file, it is not TOML, or it holds what `Recipe.of` refuses.
    """
    path = path / FILE_NAME if path.is_dir() else path
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"no recipe at {path}: {error.strerror}", remedy="Check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", remedy="Strings need quotes, lists [ ]") from error
    folder = path.parent.resolve()
    for name in _PATHS:
        if isinstance(values.get(name), str):
            values[name] = folder / values[name]
    for name in _SOURCES:
        if isinstance(values.get(name), str):
            values[name] = _absolute(values[name], folder)
    return Recipe.of(values, source=str(path))


def _absolute(source: str, folder: Path) -> str:
    """Data named relative to a folder; `package.module:function` is no path."""
    module, colon, name = source.partition(":")
    if colon and module.replace(".", "").isidentifier() and name.replace(".", "").isidentifier():
        return source
    return str(folder / source)


def _check_consistency(recipe: Recipe, source: str) -> None:
    for pattern in recipe.keep_float:
        for asked, precision in recipe.precision.items():
            # A name that a keep-float glob covers; a wider glob beside a narrower one is the usual way to except.
            if precision == "int8" and (asked == pattern or (_is_name(asked) and fnmatch.fnmatchcase(asked, pattern))):
                raise ConfigError(
                    f"{source}: keep_float has {pattern!r} and precision asks for {asked!r} in int8",
                    rule="a layer is either kept in float or quantized",
                    remedy="Remove one of the two",
                )
    _check_search(recipe, source)
    _check_low_bits(recipe, source)
    _check_images(recipe.preprocess, source)
    if recipe.patch == ():
        raise ConfigError(f"{source}: patch is empty", rule="a window has a size on every spatial axis")
    if recipe.labels is not None and recipe.val is None:
        raise ConfigError(f"{source}: labels without val", rule="labels belong to volumes", remedy="Give --val too")
    if recipe.labels is not None and recipe.task == "generic":
        raise ConfigError(
            f"{source}: labels with task = {recipe.task!r}",
            rule="labels are masks for a segmentation, or class names for a classification",
            remedy="Give --task segmentation or --task classification, or --metric package.module:function "
            "for scores of your own",
        )


def _check_images(preprocess: object, source: str) -> None:
    """A table describes volumes or images."""
    if not isinstance(preprocess, PreprocessTable) or not preprocess.for_images:
        return
    given = preprocess.model_fields_set
    volumes = sorted(name for name in given if name not in IMAGE_KEYS and _differs(preprocess, name))
    if volumes:
        images = next(name for name in IMAGE_KEYS if getattr(preprocess, name) is not None)
        raise ConfigError(
            f"{source}: preprocess has {images}, which is for images, and {volumes[0]}, which is for volumes",
            rule="samples are of one kind",
            remedy="Remove one of the two",
        )


def _differs(preprocess: PreprocessTable, name: str) -> bool:
    # A saved recipe holds the defaults too.
    return bool(getattr(preprocess, name) != PreprocessTable.model_fields[name].default)


def _check_search(recipe: Recipe, source: str) -> None:
    """A search decides what a plan or a width for all layers would decide, too."""
    limits = recipe.limits
    if recipe.time_budget is not None and not limits:
        raise ConfigError(
            f"{source}: time_budget = {recipe.time_budget!r} without a limit",
            rule="a time budget is for a search, and a search keeps a limit",
            remedy=f"Give one of {', '.join(LIMITS)}",
        )
    if not limits:
        return
    name, value = next(iter(limits.items()))
    if recipe.plan is not None:
        raise ConfigError(
            f"{source}: {name} = {value!r} and a plan",
            rule="a plan is replayed, not searched",
            remedy="Drop one of them",
        )
    if not recipe.formats:
        raise ConfigError(f"{source}: formats is empty", rule="a search needs a format beside float, such as w8a8")
    weights, activations = recipe.weight_bits, recipe.activation_bits
    if activations != 8 or weights < 7:  # 7 is what some processors need in place of 8
        raise ConfigError(
            f"{source}: {name} = {value!r}, weight_bits = {weights} and activation_bits = {activations}",
            rule="in a search the formats say how wide a layer may be",
            remedy=f"Use --format w{weights}a{activations}",
        )


def _check_low_bits(recipe: Recipe, source: str) -> None:
    """A format for all layers leaves nothing to a search or a plan, and what belongs to it needs it."""
    changed = {"method", "setting", "iterations", "memory"} & recipe.model_fields_set
    if recipe.bits is None and (named := next((n for n in changed if getattr(recipe, n) != _default(n)), None)):
        raise ConfigError(
            f"{source}: {named} = {getattr(recipe, named)!r} without bits",
            rule="it says how a network of few bits is made",
            remedy="Give --bits, such as w4a8",
        )
    other = [*recipe.limits, *(["plan"] if recipe.plan is not None else [])]
    if recipe.bits is not None and other:
        raise ConfigError(
            f"{source}: bits = {recipe.bits!r} and {other[0]}",
            rule="bits are one format for all layers, a search or a plan decides for each of them",
            remedy="Drop one of them",
        )


def _default(name: str) -> object:
    return Recipe.model_fields[name].default


def _is_name(pattern: str) -> bool:
    return not any(mark in pattern for mark in "*?[")


def _config_error(error: ValidationError, source: str) -> ConfigError:
    """One line for each problem."""
    problems = [_problem(entry) for entry in error.errors(include_url=False, include_context=False)]
    if len(problems) == 1:
        return ConfigError(f"{source}: {problems[0]}")
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{source} has {len(problems)} problems:\n{lines}")


def _problem(entry: Any) -> str:
    location = entry["loc"]
    if location[0] == "preprocess":  # the tag of the union is no part of the file
        location = [part for part in location if part not in _TAGS]
    name = ".".join(str(part) for part in location)
    if entry["type"] == "extra_forbidden":
        table = PreprocessTable if location[0] == "preprocess" else Recipe
        return f"unknown key {name!r}; {_nearest(str(location[-1]), table.model_fields)}"
    if entry["type"] == "missing":
        return f"{name} is missing"
    message = entry["msg"].removeprefix("Input should be ").replace("tuple", "list")
    message = message.removesuffix(" or instance of PreprocessTable").replace("dictionary", "table")
    return f"{name} = {entry['input']!r} should be {message}"


def _nearest(key: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(key.replace("-", "_").lower(), names, n=1, cutoff=0.5)
    return f"the nearest one is {close[0]!r}" if close else f"the keys are {', '.join(names)}"


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str() | Path():
            return _quoted(str(value))
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
    raise TypeError(f"{type(value).__name__} has no TOML form here")


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, but for one control character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(text: str) -> str:
    plain = text.isascii() and text.replace("_", "").replace("-", "").isalnum()
    return text if plain else _quoted(text)
