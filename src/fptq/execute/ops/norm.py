"""Normalizations, as they run at inference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from fptq.errors import ModelError
from fptq.execute.ops.call import Call, Op, Result, dtype_of


def batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Result:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias` with stored statistics, one of each per channel.

    Raises:
        ModelError: The node is in training mode.
    """
    if call.int("training_mode") or call.outputs > 1:
        raise ModelError(
            f"BatchNormalization {call.node.name!r} is in training mode",
            rule="statistics of a batch are not those of the network",
            remedy="Export the network in evaluation mode",
        )
    epsilon = call.float("epsilon", 1e-5)
    if not (mean.requires_grad or var.requires_grad):
        return functional.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)
    # Torch's own has no gradient for the statistics.
    factor, shape = scale * (var + epsilon).rsqrt(), (-1, *(1,) * (x.dim() - 2))
    return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Result:
    """Every channel of every sample to mean zero and variance one, then scaled; scale and bias are (C,)."""
    # Groups of one channel: unlike `instance_norm`, this takes an image of one element as well.
    return torch.group_norm(x, x.shape[1], scale, bias, call.float("epsilon", 1e-5))


def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Result:
    """Every group of channels to mean zero and variance one; scale and bias per group (opset 18) or per channel."""
    groups, channels = call.int("num_groups", 1), x.shape[1]
    if scale.numel() != channels:
        scale, bias = (each.repeat_interleave(channels // groups) for each in (scale, bias))
    wide = _stashed(call, x)
    y = torch.group_norm(wide, groups, scale.to(wide.dtype), bias.to(wide.dtype), call.float("epsilon", 1e-5))
    return y.to(x.dtype)


def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Result:
    """The axes from `axis` on to mean zero and variance one, then scaled.

    On request also the mean and the inverse standard deviation, with axes of size one in place of those normalized.
    """
    axes, epsilon, wide = _trailing(call, x), call.float("epsilon", 1e-5), _stashed(call, x)
    scale, bias = scale.to(wide.dtype), None if bias is None else bias.to(wide.dtype)
    shape = x.shape[axes[0] :]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        y = functional.layer_norm(wide, shape, scale, bias, epsilon)
    else:
        y = functional.layer_norm(wide, shape, eps=epsilon) * scale
        y = y if bias is None else y + bias
    if call.outputs == 1:
        return y.to(x.dtype)
    mean, stash = wide.mean(axes, keepdim=True), dtype_of(call.int("stash_type", 1))
    spread = (wide - mean).square().mean(axes, keepdim=True)
    return (y.to(x.dtype), mean.to(stash), (spread + epsilon).rsqrt().to(stash))[: call.outputs]


def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Result:
    """The axes from `axis` on to a mean square of one, then scaled."""
    wide = _stashed(call, x)
    power = wide.square().mean(_trailing(call, x), keepdim=True)
    return (wide * (power + call.float("epsilon", 1e-5)).rsqrt()).to(x.dtype) * scale


def lp_normalization(call: Call, x: Tensor) -> Result:
    """`x` over its p-norm along `axis`; zero where the norm is."""
    norm = torch.linalg.vector_norm(x, call.int("p", 2), call.int("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, 1, norm)


def lrn(call: Call, x: Tensor) -> Result:
    """Every element over the power of its neighbours in `size` channels; `x` is (N, C, *spatial)."""
    size, (batch, channels) = call.int("size", 1), x.shape[:2]
    squares = x.square().reshape(batch, 1, channels, -1)
    means = functional.avg_pool2d(functional.pad(squares, (0, 0, (size - 1) // 2, size // 2)), (size, 1), stride=1)
    base = call.float("bias", 1.0) + call.float("alpha", 1e-4) * means.reshape(x.shape)
    return x / base.pow(call.float("beta", 0.75))


def mean_variance_normalization(call: Call, x: Tensor) -> Result:
    """`axes` (all but the channels) to mean zero and variance one."""
    axes: tuple[int, ...] = call.ints("axes") or (0, 2, 3)
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def _trailing(call: Call, x: Tensor) -> tuple[int, ...]:
    return tuple(range(call.int("axis", -1) % x.dim(), x.dim()))


def _stashed(call: Call, x: Tensor) -> Tensor:
    """`x` at the precision that `stash_type` asks for; what is wider already stays."""
    return x.to(torch.promote_types(x.dtype, dtype_of(call.int("stash_type", 1))))


OPS: Mapping[str, Op] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
"""Functions by ONNX operation."""
