"""From one sample as the user has it to the runs that the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fptq.errors import DataError
from fptq.graph.model import TensorInfo
from fptq.types import Array

Inputs = tuple[TensorInfo, ...]


def conform(sample: object, inputs: Inputs, *, name: str) -> list[dict[str, Array]]:
    """The runs of one sample: arrays by input name, of the model's dtypes and ranks.

    A missing batch axis is added (and a channel axis of one). A batch that is a multiple of the model's fixed
    batch becomes several runs.

    Args:
        sample: A tensor or array; a tuple or list in the order of the inputs (what is left over, such as
            targets, is ignored); a mapping by input name; or a recorded call `(args, kwargs)`.
        inputs: What the model takes.
        name: What the sample is called in errors.

    Raises:
        DataError: A name, dtype, shape or value is not what the model takes.
    """
    bound = bind(sample, inputs, name=name)
    fitted = {info.name: _fit(bound[info.name], info, name) for info in inputs}
    _check_symbols(fitted, inputs, name)
    return split_batch(fitted, inputs, name=name)


def bind(sample: object, inputs: Inputs, *, name: str) -> dict[str, Array]:
    """A sample's arrays by input name, values and shapes as they are.

    Raises:
        DataError: An input is missing.
    """
    named: dict[str, object] = {}
    positional: tuple[object, ...] = ()
    match sample:
        case Mapping():
            named = dict(sample)
        case (tuple() as args, Mapping() as kwargs):
            named, positional = dict(kwargs), args
        case tuple() | list() if as_array(sample) is None:
            positional = tuple(sample)
        case _:
            positional = (sample,)
    arrays = {key: array for key, value in named.items() if (array := as_array(value)) is not None}
    unnamed = [info.name for info in inputs if info.name not in arrays]
    arrays |= dict(zip(unnamed, _leaves(positional), strict=False))
    missing = [info.name for info in inputs if info.name not in arrays]
    if missing:
        has = f"arrays named {', '.join(map(repr, named))}" if named else f"{len(_leaves(positional))} arrays"
        raise DataError(
            f"{name} has no input {', '.join(map(repr, missing))} (it has {has})",
            rule=f"the model takes {'; '.join(map(str, inputs))}",
            remedy="Name the arrays as the model's inputs, or give a tuple in their order",
        )
    return arrays


def as_array(value: object) -> Array | None:
    """A tensor of any framework, or nested numbers, as a numpy array; None for anything else."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if callable(getattr(value, "detach", None)):
        return _from_torch(value)
    if hasattr(value, "__array__"):
        return np.asarray(value)
    if isinstance(value, list) and _is_number(value):
        try:
            return np.asarray(value)
        except ValueError:  # rows of different lengths
            return None
    return None


def _is_number(value: object) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, int | float)


def _from_torch(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    try:
        return np.asarray(tensor.numpy())
    except TypeError:
        # numpy has no bfloat16; every bfloat16 value is a float32 value.
        return np.asarray(tensor.float().numpy())


def _leaves(values: Sequence[object]) -> list[Array]:
    """The tensors of nested arguments, in order; flags and None are no inputs of an exported graph."""
    found: list[Array] = []
    for value in values:
        array = as_array(value)
        if array is not None:
            found.append(array)
        elif isinstance(value, Mapping):
            found += _leaves(list(value.values()))
        elif isinstance(value, list | tuple):
            found += _leaves(value)
    return found


def _fit(array: Array, info: TensorInfo, name: str) -> Array:
    array = _with_axes(array, info)
    _check_shape(array, info, name)
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    if not finite:
        count = int((~np.isfinite(array)).sum())
        raise DataError(
            f"{name}: input {info.name!r} has {count} NaN or Inf values",
            rule="calibration and validation data are finite",
            remedy="Mend or drop this sample",
        )
    return np.ascontiguousarray(_cast(array, info, name))


def _cast(array: Array, info: TensorInfo, name: str) -> Array:
    """Conversion within one kind of number; anything else could hide a wrong range."""
    if array.dtype == info.dtype:
        return array
    same_kind = _kind(array.dtype) == _kind(info.dtype)
    if same_kind:
        with np.errstate(over="ignore"):
            cast = array.astype(info.dtype)
        if _kind(info.dtype) == "integer" and np.array_equal(cast, array):
            return cast
        if _kind(info.dtype) == "float" and np.isfinite(cast.astype(np.float32)).all():
            return cast
    raise DataError(
        f"{name}: input {info.name!r} is {array.dtype}",
        rule=f"the model takes {info}" + (", and the values do not fit" if same_kind else ""),
        remedy=f"Convert it (with the scaling used in training) to {info.dtype}",
    )


def _kind(dtype: np.dtype[Any]) -> str:
    kinds = {"f": "float", "i": "integer", "u": "integer", "b": "bool"}
    # ml_dtypes registers bfloat16 and float8 under numpy's kind "V".
    return "float" if "float" in dtype.name else kinds.get(dtype.kind, dtype.name)


def _with_axes(array: Array, info: TensorInfo) -> Array:
    if info.shape is None:
        return array
    missing = len(info.shape) - array.ndim
    if missing == 2 and (info.shape[1] == 1 or not isinstance(info.shape[1], int)):
        return array[None, None]
    return array[None] if missing == 1 else array


def _check_shape(array: Array, info: TensorInfo, name: str) -> None:
    if info.shape is None:
        return
    fits = array.ndim == len(info.shape) and all(
        not isinstance(want, int) or (size == want if axis else size > 0 and size % max(want, 1) == 0)
        for axis, (size, want) in enumerate(zip(array.shape, info.shape, strict=True))
    )
    if not fits:
        raise DataError(
            f"{name}: input {info.name!r} has shape {list(array.shape)}",
            rule=f"the model takes {info}",
            remedy="Crop, pad or resample in a preprocess function (--preprocess), or export with dynamic axes",
        )


def _check_symbols(feeds: Mapping[str, Array], inputs: Inputs, name: str) -> None:
    """A dynamic axis has one size per run, whichever inputs it appears in."""
    sizes: dict[str, tuple[int, str]] = {}
    for info in inputs:
        for dim, size in zip(info.shape or (), feeds[info.name].shape, strict=False):
            if not isinstance(dim, str):
                continue
            first, where = sizes.setdefault(dim, (size, info.name))
            if first != size:
                raise DataError(
                    f"{name}: axis {dim!r} is {first} in input {where!r} and {size} in {info.name!r}",
                    rule="a named axis has one size",
                )


def split_batch(feeds: Mapping[str, Array], inputs: Inputs, *, name: str) -> list[dict[str, Array]]:
    """The runs of a batch that is a multiple of the model's fixed one; one run otherwise.

    Args:
        feeds: Arrays by input name.
        inputs: What the model takes.
        name: What the batch is called in errors.

    Raises:
        DataError: The inputs have different multiples.
    """
    fixed = {info.name: info.shape[0] for info in inputs if info.shape and isinstance(info.shape[0], int)}
    sizes = {key: (feeds[key].shape[0], max(batch, 1)) for key, batch in fixed.items()}
    runs = {key: size // batch if size % batch == 0 else 1 for key, (size, batch) in sizes.items()}
    counts = {count for count in runs.values() if count > 1}
    if not counts:
        return [dict(feeds)]
    if len(counts) > 1:
        raise DataError(
            f"{name}: inputs have batches of {', '.join(f'{feeds[k].shape[0]} ({k})' for k in runs)}",
            rule=f"the model takes {'; '.join(map(str, inputs))}",
        )
    count = counts.pop()
    # An input that fits one run already, such as a time step, goes into every run.
    parts = {key: np.split(a, count) if runs.get(key) == count else [a] * count for key, a in feeds.items()}
    return [{key: part[i] for key, part in parts.items()} for i in range(count)]
