"""The recipe, and how it is read from a file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError

from fptq.config.checks import LIMITS, check_consistency
from fptq.config.preprocess import Options, Preprocess
from fptq.config.problems import config_error
from fptq.config.toml_text import key_text, toml_text
from fptq.errors import ConfigError

FILE_NAME: Final = "fptq.toml"

_SOURCES = ("calib", "val", "labels", "vocab")
_PATHS = ("plan", "cache")


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_Patterns = Annotated[tuple[str, ...], BeforeValidator(_listed)]
_FloatInputs = Annotated[tuple[Literal["layernorm", "softmax", "activation"], ...], BeforeValidator(_listed)]


class Recipe(Options):
    """Every option of `quantize`.

    Attributes:
        calib: Calibration data for the command line: folder, glob or `package.module:function`.
        val: Validation data, likewise.
        labels: Their labels: a folder or glob of masks; the names of the classes for a classification.
        vocab: Tokens of a protein language model: a file of one a line, or `package.module:function` that returns a
            tokenizer.
        task: What the scores mean.
        engine: What the int8 model is made for; "auto" measures the installed engines of the CPU and picks the fastest.
        recipe: How much is tried, each trial kept only where the output error on held-out samples falls: "fast"
            nothing, "auto" what is cheap, "best" what takes many runs too.
        observer: Estimator of activation ranges; "auto" is what fptq holds to be best.
        percentile: Of the "percentile" observer: share of values that is not clipped, in (50, 100].
        p: Exponent of the error that the "lp" observer minimises, in [1, 8].
        granularity: Scales of weights: one a "channel", or one a "tensor".
        weight_bits: Width of stored weights, 2 to 16.
        activation_bits: Width of activations, 2 to 16.
        symmetric: Whether activations have a fixed zero point; without it whatever is best on the engine.
        regions: Of the quantizers of activations: "auto" tries two where one loses most ("best" only), "one" never,
            "two" and "three" cut every activation that can be cut and gains by it.
        also_quantize: Inputs of operations that engines compute in float, quantized besides, without gain: for a
            study, or for hardware that has integers alone.
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
        method: How their rounding is found: "nearest", in closed form ("gptaq", "ridge", "correction"), or learned;
            "auto" is in
            closed form, or learned for activations below 4 bits and where iterations are given.
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
        windows_per_call: Of a sliding window, where the network takes any batch; without it as many as have 2^20 voxels
            together.
        tolerance: How far apart two surfaces may be that count as one in the surface Dice [mm].
        plan: A `plan.json` to replay exactly instead of placing and measuring.
        seed: Of everything random.
        trust: Whether files that can execute code when they are read may be read.
        cache: Folder of the cache; without it the user's cache folder.
    """

    calib: str | None = None
    val: str | None = None
    labels: str | None = None
    vocab: str | None = None
    task: Literal["generic", "segmentation", "classification", "proteins"] = "generic"
    engine: Literal["auto", "onnxruntime", "openvino", "tensorrt"] = "auto"
    recipe: Literal["auto", "fast", "best"] = "auto"
    observer: Literal["auto", "minmax", "moving-average", "percentile", "entropy", "lp"] = "auto"
    percentile: float = Field(default=99.99, gt=50, le=100)
    p: float = Field(default=2.4, ge=1, le=8)
    granularity: Literal["channel", "tensor"] = "channel"
    weight_bits: int = Field(default=8, ge=2, le=16)
    activation_bits: int = Field(default=8, ge=2, le=16)
    symmetric: bool | None = None
    regions: Literal["auto", "one", "two", "three"] = "auto"
    also_quantize: _FloatInputs = ()
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
        "auto", "nearest", "correction", "gptaq", "ridge", "adaround", "brecq", "qdrop", "genie", "pd-quant", "ae-qdrop"
    ] = "auto"
    setting: Literal["qdrop", "brecq"] = "qdrop"
    iterations: int | None = Field(default=None, ge=1)
    memory: str = "4GB"
    threads: int | None = Field(default=None, ge=1)
    dynamic: str = Field(default="auto", min_length=1)
    samples: int | None = Field(default=None, ge=1)
    preprocess: Preprocess | None = None
    metric: str | None = None
    higher_is_better: bool = True
    patch: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    overlap: float = Field(default=0.5, ge=0, lt=1)
    windows_per_call: int | None = Field(default=None, ge=1)
    tolerance: float = Field(default=1.0, ge=0)
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
            raise config_error(error, source, cls) from error
        check_consistency(recipe, source)
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
        lines = [f"{name} = {toml_text(value)}" for name, value in values.items() if name not in tables]
        for name, table in tables.items():
            if table:
                lines += [
                    "",
                    f"[{name}]",
                    *(f"{key_text(k)} = {toml_text(v)}" for k, v in table.items() if v is not None),
                ]
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
