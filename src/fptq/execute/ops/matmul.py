"""Matrix products and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fptq.errors import ModelError
from fptq.execute.ops.call import Call, Op, Result, dtype_of


def matmul(call: Call, a: Tensor, b: Tensor) -> Result:
    """The product of the last two axes, the others broadcast."""
    return torch.matmul(a, b)


def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Result:
    """`alpha * a @ b + beta * c` of matrices, either of them transposed first; `c` broadcasts."""
    alpha, beta = call.float("alpha", 1.0), call.float("beta", 1.0)
    left = a.T if call.int("transA") else a
    right = b.T if call.int("transB") else b
    if c is not None and a.dtype.is_floating_point:
        return torch.addmm(c, left, right, alpha=alpha, beta=beta)
    product = left @ right
    product = product if alpha == 1 else (alpha * product).to(a.dtype)
    return product if c is None else product + (c if beta == 1 else (beta * c).to(c.dtype))


def einsum(call: Call, *inputs: Tensor) -> Result:
    """Einstein's sum over the axes that `equation` names."""
    total: Tensor = torch.einsum(call.string("equation").replace(" ", ""), *inputs)
    return total


@dataclass(frozen=True)
class _Heads:
    """Queries, keys and values as (N, heads, length, size), keys and values repeated to as many heads as queries.

    Attributes:
        q: Queries.
        k: Keys, those of the past first.
        v: Values, those of the past first.
        present: Keys and values before they are repeated, as the node hands them on.
        past: How many keys precede the first query.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    present: tuple[Tensor, Tensor]
    past: int


def attention(call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *rest: Tensor | None) -> Result:
    """Scaled dot-product attention; (N, heads, length, size) or (N, length, heads * size).

    `rest` is the past keys and values. On request also the present ones and the scores.

    Raises:
        ModelError: The node has a sliding window or a cache that is padded.
    """
    _refuse_caches(call, rest)
    heads = _heads(call, (q, k, v), rest)
    scale = call.float("scale") if call.has("scale") else 1 / math.sqrt(heads.q.shape[-1])
    bias = _bias(call, heads, mask)
    softcap = call.float("softcap")
    if softcap or call.outputs > 3 or call.has("softmax_precision"):
        y, scores = _spelled_out(call, heads, bias, scale)
    else:
        y = functional.scaled_dot_product_attention(heads.q, heads.k, heads.v, attn_mask=bias, scale=scale)
        scores = y  # not asked for
    if q.dim() == 3:
        y = y.transpose(1, 2).flatten(2)
    return (y, *heads.present, scores)[: call.outputs] if call.outputs > 1 else y


def rotary_embedding(call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Result:
    """Pairs of features turned by an angle per position; `x` is (N, heads, length, size) or (N, length, features)."""
    heads_first = x.dim() == 4
    wide = x.transpose(1, 2) if heads_first else _split(x, call.int("num_heads", 1))
    if positions is not None:
        places = positions.to(cos.device)
        cos, sin = cos[places], sin[places]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turning = call.int("rotary_embedding_dim") or wide.shape[-1]
    part, rest = wide[..., :turning], wide[..., turning:]
    pairs = bool(call.int("interleaved"))
    one, two = (part[..., 0::2], part[..., 1::2]) if pairs else part.chunk(2, dim=-1)
    turned = (cos * one - sin * two, sin * one + cos * two)
    part = torch.stack(turned, dim=-1).flatten(-2) if pairs else torch.cat(turned, dim=-1)
    y = torch.cat((part, rest), dim=-1)
    return y.transpose(1, 2) if heads_first else y.flatten(2)


def _split(x: Tensor, heads: int) -> Tensor:
    """(N, length, heads * size) as (N, length, heads, size)."""
    return x.reshape(*x.shape[:2], heads, -1)


def _refuse_caches(call: Call, rest: tuple[Tensor | None, ...]) -> None:
    windowed = [name for name in ("left_window_size", "right_window_size") if call.int(name, -1) >= 0]
    padded = ["nonpad_kv_seqlen"] if len(rest) > 2 and rest[2] is not None else []
    if windowed or padded:
        raise ModelError(
            f"Attention {call.node.name!r} has {', '.join(windowed + padded)}",
            rule="sliding windows and padded caches are not supported",
            remedy="Export attention as matrix products, or say the same with attn_mask",
        )


def _heads(call: Call, qkv: tuple[Tensor, Tensor, Tensor], rest: tuple[Tensor | None, ...]) -> _Heads:
    q, k, v = qkv
    if q.dim() == 3:
        counts = (call.int("q_num_heads"), *(call.int("kv_num_heads"),) * 2)
        q, k, v = (_split(each, count).transpose(1, 2) for each, count in zip(qkv, counts, strict=True))
    past = 0
    if len(rest) > 1 and rest[0] is not None and rest[1] is not None:
        past = rest[0].shape[2]
        k, v = torch.cat((rest[0], k), dim=2), torch.cat((rest[1], v), dim=2)
    present, repeats = (k, v), q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    return _Heads(q, k, v, present, past)


def _bias(call: Call, heads: _Heads, mask: Tensor | None) -> Tensor | None:
    """What is added to the scores: the mask and the causal triangle; None where there is neither."""
    queries, keys = heads.q.shape[2], heads.k.shape[2]
    bias = None
    if mask is not None:
        bias = _additive(mask, heads.q)
        bias = functional.pad(bias, (0, keys - bias.shape[-1]), value=-math.inf)
    if call.int("is_causal"):
        seen = torch.ones(queries, keys, dtype=torch.bool, device=heads.q.device).tril(heads.past)
        triangle = _additive(seen, heads.q)
        bias = triangle if bias is None else bias + triangle
    return bias


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    mask = mask.to(like.device)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(~mask, -math.inf)


def _spelled_out(call: Call, heads: _Heads, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention step by step, with the scores after the step that `qk_matmul_output_mode` names."""
    # Half of the scale on either side keeps half precision in range, as ONNX has it.
    root, softcap = math.sqrt(scale), call.float("softcap")
    raw = (heads.q * root) @ (heads.k * root).transpose(2, 3)
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    scores = capped if bias is None else capped + bias
    wide = dtype_of(call.int("softmax_precision")) if call.has("softmax_precision") else scores.dtype
    weights = _softmax(scores.to(wide)).to(heads.q.dtype)
    steps = (raw, capped, scores, weights)
    return weights @ heads.v, steps[call.int("qk_matmul_output_mode")]


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis; zeros in a row that is masked altogether."""
    masked = (scores == -math.inf).all(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(masked, 0), dim=-1).masked_fill(masked, 0)


OPS: Mapping[str, Op] = {
    "Attention": attention,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
    "RotaryEmbedding": rotary_embedding,
}
"""Functions by ONNX operation."""
