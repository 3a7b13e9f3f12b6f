"""What moves, selects, repeats or makes elements, without arithmetic on them.

Shapes and other integers that describe tensors are made on the CPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fptq.errors import ModelError
from fptq.execute.ops.call import Call, Op, Result, dtype_of
from fptq.execute.ops.elementwise import signed, together


def _integers(call: Call, tensor: Tensor | None, name: str) -> list[int] | None:
    """Integers from an input; in older graphs from an attribute."""
    if tensor is not None:
        values: list[int] = tensor.reshape(-1).tolist()
        return values
    given = call.ints(name)
    return None if given is None else list(given)


def _integer(call: Call, tensor: Tensor | None, name: str, default: int = 0) -> int:
    return call.int(name, default) if tensor is None else int(tensor)


def _positions(indices: Tensor, size: int, data: Tensor) -> Tensor:
    """Indices into an axis, counted from its front, on the device of the data."""
    indices = indices.to(data.device, torch.int64)
    return torch.where(indices < 0, indices + size, indices)


# Shapes


def _reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    sizes = _integers(call, shape, "shape") or []
    if not call.int("allowzero"):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.int("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.ints("perm") or tuple(reversed(range(x.dim()))))


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _integers(call, axes, "axes")
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _integers(call, axes, "axes") or []
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _expand(_: Call, x: Tensor, shape: Tensor) -> Tensor:
    asked: list[int] = shape.tolist()
    rank = max(x.dim(), len(asked))
    own = [1] * (rank - x.dim()) + list(x.shape)
    asked = [1] * (rank - len(asked)) + asked
    return x.expand([size if wanted == 1 else wanted for size, wanted in zip(own, asked, strict=True)])


def _tile(_: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


def _shape(call: Call, x: Tensor) -> Tensor:
    end = call.int("end") if call.has("end") else None
    return torch.tensor(x.shape[call.int("start") : end], dtype=torch.int64)


def _size(_: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    block, rank = call.int("blocksize"), x.dim() - 2
    batch, channels, *sizes = x.shape
    blocks = [number for size in sizes for number in (size // block, block)]
    places, within = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    order = (*within, 1) if call.string("mode", "DCR") == "DCR" else (1, *within)
    y = x.reshape(batch, channels, *blocks).permute(0, *order, *places)
    return y.reshape(batch, channels * block**rank, *(size // block for size in sizes))


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    block, rank = call.int("blocksize"), x.dim() - 2
    batch, depth, *sizes = x.shape
    channels = depth // block**rank
    if call.string("mode", "DCR") == "DCR":
        y = x.reshape(batch, *[block] * rank, channels, *sizes)
        own, within = 1 + rank, range(1, 1 + rank)
    else:
        y = x.reshape(batch, channels, *[block] * rank, *sizes)
        own, within = 1, range(2, 2 + rank)
    pairs = zip(range(2 + rank, 2 + 2 * rank), within, strict=True)
    y = y.permute(0, own, *(axis for pair in pairs for axis in pair))
    return y.reshape(batch, channels, *(size * block for size in sizes))


# Parts


def _concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(together(inputs), call.int("axis"))


def _split(call: Call, x: Tensor, lengths: Tensor | None = None) -> Result:
    axis = call.int("axis")
    sizes = _integers(call, lengths, "split")
    if sizes is None:
        count = call.int("num_outputs", call.outputs)
        total = x.shape[axis]
        most = -(-total // count)
        sizes = [max(0, min(most, total - most * index)) for index in range(count)]
    return torch.split(x, sizes, axis)


def _slice(call: Call, x: Tensor, *inputs: Tensor | None) -> Tensor:
    given = itertools.zip_longest(inputs, ("starts", "ends", "axes", "steps"))
    starts, ends, axes, steps = (_integers(call, tensor, name) or [] for tensor, name in given)
    along, by = axes or range(len(starts)), steps or [1] * len(starts)
    for axis, *bounds in zip(along, starts, ends, by, strict=True):
        x = _slice_axis(x, axis, slice(*bounds))
    return x


def _slice_axis(x: Tensor, axis: int, part: slice) -> Tensor:
    size = x.shape[axis]
    start, stop, step = part.indices(size)
    if step < 0:  # torch steps forward only
        x, start, stop, step = x.flip(axis), size - 1 - start, size - 1 - stop, -step
    return x.movedim(axis, 0)[start : max(start, stop) : step].movedim(0, axis)


def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if call.int("upper", 1) else x.tril(diagonal)


def _pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Padding of any axis; a negative amount crops.

    Raises:
        ModelError: The mode is unknown.
    """
    amounts = _integers(call, pads, "pads") or []
    half = len(amounts) // 2
    along = [axis % x.dim() for axis in _integers(call, axes, "axes") or range(half)]
    before, after = dict(zip(along, amounts[:half], strict=True)), dict(zip(along, amounts[half:], strict=True))
    mode = call.string("mode", "constant")
    if mode == "constant":
        filler = call.float("value") if value is None else value.item()
        flat = [amount.get(axis, 0) for axis in reversed(range(x.dim())) for amount in (before, after)]
        return functional.pad(x, flat, value=filler)
    for axis in along:
        if before[axis] or after[axis]:
            x = x.index_select(axis, _sources(mode, x.shape[axis], before[axis], after[axis]).to(x.device))
    return x


def _sources(mode: str, size: int, before: int, after: int) -> Tensor:
    """Where each element of a padded axis is read from.

    >>> _sources("reflect", 4, 2, 1).tolist()
    [2, 1, 0, 1, 2, 3, 2]
    >>> _sources("wrap", 4, 2, 1).tolist()
    [2, 3, 0, 1, 2, 3, 0]
    """
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        phase = places.remainder(period)
        return torch.minimum(phase, period - phase) if size > 1 else torch.zeros_like(places)
    raise ModelError(
        f"Pad has the mode {mode!r}",
        rule="ONNX knows constant, reflect, edge and wrap",
        remedy="Export the network again with one of them",
    )


# By index


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.int("axis") % x.dim()
    chosen = _positions(indices, x.shape[axis], x)
    picked = x.index_select(axis, chosen.reshape(-1))
    return picked.reshape((*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]))


def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.int("axis")
    return x.gather(axis, _positions(indices, x.shape[axis], x))


def _gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    batch_dims, depth = call.int("batch_dims"), indices.shape[-1]
    batch, inner = x.shape[:batch_dims], x.shape[batch_dims + depth :]
    samples, rows = math.prod(batch), math.prod(x.shape[batch_dims : batch_dims + depth])
    chosen = _rows(indices, x.shape[batch_dims : batch_dims + depth], x).reshape(samples, -1)
    chosen = chosen + torch.arange(samples, device=x.device)[:, None] * rows
    table = x.reshape(samples * rows, math.prod(inner))
    return table.index_select(0, chosen.reshape(-1)).reshape((*indices.shape[:-1], *inner))


def _rows(indices: Tensor, sizes: Sequence[int], data: Tensor) -> Tensor:
    """Which row of the flattened leading axes each index tuple, of shape (..., len(sizes)), names."""
    row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device)
    for place, size in enumerate(sizes):
        row = row * size + _positions(indices[..., place], size, data)
    return row


_REDUCTIONS: Mapping[str, str] = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""torch's names of what to do where several updates meet."""


def _scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = call.int("axis")
    return _scatter(call, x, axis, _positions(indices, x.shape[axis], x), updates)


def _scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    depth = indices.shape[-1]
    inner = math.prod(x.shape[depth:])
    chosen = _rows(indices, x.shape[:depth], x).reshape(-1, 1).expand(-1, inner)
    table = x.reshape(math.prod(x.shape[:depth]), inner)
    return _scatter(call, table, 0, chosen, updates.reshape(chosen.shape)).reshape(x.shape)


def _scatter(call: Call, x: Tensor, axis: int, index: Tensor, updates: Tensor) -> Tensor:
    updates = updates.to(x.device)
    reduction = call.string("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


def _one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count, device = int(depth), indices.device
    hit = _positions(indices, count, indices).unsqueeze(-1) == torch.arange(count, device=device)
    off, on = values.to(device).unbind()
    return torch.where(hit, on, off).movedim(-1, call.int("axis", -1))


def _non_zero(_: Call, x: Tensor) -> Tensor:
    return x.nonzero().T


# Along an axis


def _cumulative_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    along, backward = int(axis), bool(call.int("reverse"))
    y = (x.flip(along) if backward else x).cumsum(along, dtype=x.dtype)
    if call.int("exclusive"):
        y = torch.cat([torch.zeros_like(y.narrow(along, 0, 1)), y.narrow(along, 0, y.shape[along] - 1)], along)
    return y.flip(along) if backward else y


def _top_k(call: Call, x: Tensor, k: Tensor | None = None) -> Result:
    axis, count = call.int("axis", -1), _integer(call, k, "k")
    # Of equal values the first wins, which torch.topk does not promise.
    values, indices = signed(x).sort(stable=True, dim=axis, descending=bool(call.int("largest", 1)))
    return values.narrow(axis, 0, count).to(x.dtype), indices.narrow(axis, 0, count)


# New tensors


def _constant(call: Call) -> Tensor:
    """The tensor of a node without inputs.

    Raises:
        ModelError: It holds text, or is sparse.
    """
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        if call.has(name):
            return torch.tensor(call.float(name) if dtype.is_floating_point else call.int(name), dtype=dtype)
    if call.has("value_floats"):
        return torch.tensor(call.node.attributes.get_floats("value_floats"), dtype=torch.float32)
    if call.has("value_ints"):
        return torch.tensor(call.ints("value_ints"), dtype=torch.int64)
    value = call.tensor("value")
    if value is None:
        raise ModelError(
            f"Constant {call.node.name!r} has {', '.join(call.node.attributes) or 'no attribute'}",
            rule="a constant is a dense tensor of numbers",
            remedy="Remove it from the network",
        )
    return value


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.tensor("value")
    return (torch.zeros(1) if value is None else value).reshape(()).repeat(shape.tolist())


def _range(_: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    return start.reshape(()) + delta.reshape(()) * torch.arange(count, dtype=start.dtype, device=start.device)


def _eye_like(call: Call, x: Tensor) -> Tensor:
    dtype = dtype_of(call.int("dtype")) if call.has("dtype") else x.dtype
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    return (rows[:, None] + call.int("k") == columns).to(dtype)


OPS: Mapping[str, Op] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumulative_sum,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
"""Functions by ONNX operation."""
