"""Arithmetic, comparisons and activations: every element by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fptq.errors import ModelError
from fptq.execute.ops.call import Call, Op, Result, dtype_of

_UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})
"""torch stores these but does no arithmetic in them."""


def together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on one device: the accelerator if one of them is there.

    Numbers (of rank 0) stay on the CPU, where torch takes them from without a copy.

    >>> together([torch.zeros(2), torch.zeros(2, device="meta")])[0].device
    device(type='meta')
    """
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    if device is None:
        return list(tensors)
    return [tensor if tensor.dim() == 0 else tensor.to(device) for tensor in tensors]


def signed(tensor: Tensor) -> Tensor:
    """The tensor in an integer type that torch computes in, if its own is not one.

    Sums and products are right modulo 2**64; the order of uint64 is right below 2**63.

    >>> signed(torch.tensor([65535], dtype=torch.uint16))
    tensor([65535])
    """
    return tensor.long() if tensor.dtype in _UNSIGNED else tensor


def _plain(function: Callable[..., Tensor]) -> Op:
    """An operation without attributes; its result keeps the type of its first input."""

    def op(_: Call, *inputs: Tensor) -> Tensor:
        own = inputs[0].dtype
        result = function(*map(signed, together(inputs)))
        return result.to(own) if own in _UNSIGNED and result.dtype == torch.int64 else result

    return op


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return _plain(lambda *inputs: functools.reduce(function, inputs))


def _mean(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs) / len(inputs)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    # ONNX leaves the rounding of integers open; ONNX Runtime does as C does.
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    if base.is_floating_point() or not exponent.is_floating_point():
        return torch.pow(base, exponent).to(base.dtype)
    return torch.pow(base.double(), exponent).to(base.dtype)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


def _mod(call: Call, a: Tensor, b: Tensor) -> Result:
    return _plain(torch.fmod if call.int("fmod") else torch.remainder)(call, a, b)


def _where(_: Call, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    mask, yes, no = together((condition, x, y))
    return torch.where(mask, yes, no)


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    y = signed(x)
    least, most = _limit(call, "min", low, y), _limit(call, "max", high, y)
    y = y if least is None else torch.clamp(y, min=least)
    y = y if most is None else torch.clamp(y, max=most)
    return y.to(x.dtype)


def _limit(call: Call, name: str, bound: Tensor | None, x: Tensor) -> Tensor | float | None:
    if bound is None:
        return call.float(name) if call.has(name) else None
    if bound.requires_grad or bound.device.type != "cpu":
        return bound.reshape(()).to(x.device)
    number: float = bound.item()  # a number costs no copy to the accelerator
    return number


def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.float("alpha", 0.01))


def _gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.string("approximate", "none"))


def _elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, call.float("alpha", 1.0))


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha = call.float("alpha", 1.67326319217681884765625)
    return functional.elu(x, alpha) * call.float("gamma", 1.05070102214813232421875)


def _celu(call: Call, x: Tensor) -> Tensor:
    return functional.celu(x, call.float("alpha", 1.0))


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(x * call.float("alpha", 0.2) + call.float("beta", 0.5), 0, 1)


def _softplus(_: Call, x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=40.0)  # torch's own threshold of 20 is wrong by 2e-9 in double precision


def _swish(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.float("alpha", 1.0) * x)


def _thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.float("alpha", 1.0), x, 0)


def _shrink(call: Call, x: Tensor) -> Tensor:
    bias, bound = call.float("bias"), call.float("lambd", 0.5)
    moved = torch.where(x > bound, x - bias, torch.where(x < -bound, x + bias, 0))
    return moved.to(x.dtype)


def _is_infinite(call: Call, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if call.int("detect_positive", 1):
        found |= torch.isposinf(x)
    if call.int("detect_negative", 1):
        found |= torch.isneginf(x)
    return found


def _cast(call: Call, x: Tensor) -> Tensor:
    return x.to(dtype_of(call.int("to")))


def _cast_like(_: Call, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def _dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Result:
    """Nothing is dropped in inference.

    Raises:
        ModelError: The node is in training mode.
    """
    if training is not None and bool(training) and (ratio is None or float(ratio) > 0):
        raise ModelError(
            f"Dropout {call.node.name!r} is in training mode",
            rule="a network is run as in inference",
            remedy="Export it in evaluation mode",
        )
    return x if call.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


OPS: Mapping[str, Op] = {
    "Abs": _plain(torch.abs),
    "Acos": _plain(torch.acos),
    "Acosh": _plain(torch.acosh),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "Asin": _plain(torch.asin),
    "Asinh": _plain(torch.asinh),
    "Atan": _plain(torch.atan),
    "Atanh": _plain(torch.atanh),
    "BitwiseAnd": _plain(torch.bitwise_and),
    "BitwiseNot": _plain(torch.bitwise_not),
    "BitwiseOr": _plain(torch.bitwise_or),
    "BitwiseXor": _plain(torch.bitwise_xor),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _plain(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _plain(torch.cos),
    "Cosh": _plain(torch.cosh),
    "Div": _plain(_divide),
    "Dropout": _dropout,
    "Elu": _elu,
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": _gelu,
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "IsInf": _is_infinite,
    "IsNaN": _plain(torch.isnan),
    "LeakyRelu": _leaky_relu,
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "Max": _variadic(torch.maximum),
    "Mean": _plain(_mean),
    "Min": _variadic(torch.minimum),
    "Mish": _plain(functional.mish),
    "Mod": _mod,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": _plain(_prelu),
    "Pow": _plain(_power),
    "Reciprocal": _plain(torch.reciprocal),
    "Relu": _plain(torch.relu),
    "Round": _plain(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Sinh": _plain(torch.sinh),
    "Softplus": _softplus,
    "Softsign": _plain(functional.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Sub": _plain(torch.sub),
    "Sum": _variadic(torch.add),
    "Swish": _swish,
    "Tan": _plain(torch.tan),
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
    "Xor": _plain(torch.logical_xor),
}
"""Functions by ONNX operation."""
