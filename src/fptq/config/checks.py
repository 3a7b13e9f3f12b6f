"""Options that contradict each other."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Final

from fptq.config.preprocess import IMAGE_KEYS, PreprocessTable
from fptq.errors import ConfigError

LIMITS: Final = ("max_size", "max_latency", "max_bops", "max_drop")
"""What a search must keep."""

if TYPE_CHECKING:
    from fptq.config.recipe import Recipe


def check_consistency(recipe: Recipe, source: str) -> None:
    """Refuse a recipe whose options contradict each other.

    Args:
        recipe: The recipe.
        source: Where it comes from, for the messages.

    Raises:
        ConfigError: Two do.
    """
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
    _check_placement(recipe, source)
    _check_images(recipe.preprocess, source)
    if recipe.patch == ():
        raise ConfigError(f"{source}: patch is empty", rule="a window has a size on every spatial axis")
    if recipe.labels is not None and recipe.val is None:
        raise ConfigError(f"{source}: labels without val", rule="labels belong to volumes", remedy="Give --val too")
    if recipe.vocab is not None and recipe.task != "proteins":
        raise ConfigError(
            f"{source}: vocab with task = {recipe.task!r}",
            rule="a vocabulary is for protein language models",
            remedy="Give --task proteins",
        )
    if recipe.labels is not None and recipe.task in ("generic", "proteins"):
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
    if recipe.bits is None and (named := next((n for n in changed if getattr(recipe, n) != _default(recipe, n)), None)):
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


def _check_placement(recipe: Recipe, source: str) -> None:
    """What is asked for beside the engine's own placement, where something else decides about placements."""
    asked = {"also_quantize": bool(recipe.also_quantize), "regions": recipe.regions not in ("auto", "one")}
    name = next((name for name, given in asked.items() if given), None)
    other = [*(["bits"] if recipe.bits is not None else []), *recipe.limits]
    if name is not None and other:
        raise ConfigError(
            f"{source}: {name} = {getattr(recipe, name)!r} and {other[0]}",
            rule="it is for a network that is quantized as a whole, without a search or a format for all layers",
            remedy="Drop one of them",
        )
    if recipe.also_quantize and recipe.plan is not None:
        raise ConfigError(
            f"{source}: also_quantize = {recipe.also_quantize!r} and a plan",
            rule="a plan says where quantizers stand",
            remedy="Drop also_quantize: a plan that was made with it has it",
        )


def _default(recipe: Recipe, name: str) -> object:
    return type(recipe).model_fields[name].default


def _is_name(pattern: str) -> bool:
    return not any(mark in pattern for mark in "*?[")
