from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fptq.errors import ModelError
from fptq.types import Array

Check = Callable[..., None]
Normal = Callable[..., Array]


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (3, 4, 5)), ((4,), (4, 5)), ((2, 3, 4), (4,)), ((4,), (4,))],
)
def test_products_broadcast_as_in_onnx_runtime(
    parity: Check, normal: Normal, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    parity("MatMul", [normal(*left), normal(*right)])


@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("c", [None, (), (5,), (1, 5), (3, 1), (3, 5)])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.5, -2.0)])
def test_a_gemm_is_that_of_onnx_runtime(
    parity: Check, normal: Normal, transposed: tuple[int, int], c: tuple[int, ...] | None, factors: tuple[float, float]
) -> None:
    a = normal(4, 3) if transposed[0] else normal(3, 4)
    b = normal(5, 4) if transposed[1] else normal(4, 5)
    how = dict(zip(("transA", "transB", "alpha", "beta"), (*transposed, *factors), strict=True))
    parity("Gemm", [a, b, None if c is None else np.asarray(normal(*c))], **how)


def test_a_gemm_of_integers_stays_one(one_node: Callable[..., Any]) -> None:
    a = np.arange(6, dtype=np.int32).reshape(2, 3)
    (y,) = one_node("Gemm", [a, a.T.copy(), np.ones(2, np.int32)])
    np.testing.assert_array_equal(y.numpy(), a @ a.T + 1)
    assert y.numpy().dtype == np.int32


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij, bjk -> bik", [(2, 3, 4), (2, 4, 5)]),
        ("...ij->...ji", [(2, 3, 4)]),
        ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
        ("ij,jk", [(3, 4), (4, 2)]),
        ("ii->i", [(3, 3)]),
    ],
)
def test_sums_over_named_axes_are_those_of_onnx_runtime(
    parity: Check, normal: Normal, equation: str, shapes: list[tuple[int, ...]]
) -> None:
    parity("Einsum", [normal(*shape) for shape in shapes], equation=equation)


def masks(queries: int, keys: int) -> dict[str, Array | None]:
    rng = np.random.default_rng(1)
    return {
        "none": None,
        "added": rng.standard_normal((queries, keys)).astype(np.float32),
        "boolean": np.tril(np.ones((queries, keys), bool), 1),
    }


@pytest.mark.parametrize("mask", ["none", "added", "boolean"])
@pytest.mark.parametrize(
    "how", [{}, {"is_causal": 1}, {"scale": 0.3}, {"softcap": 0.7}], ids=["plain", "causal", "scale", "softcap"]
)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_that_of_onnx_runtime(
    parity: Check, normal: Normal, mask: str, how: dict[str, Any], kv_heads: int
) -> None:
    inputs = [normal(2, 4, 3, 8), normal(2, kv_heads, 5, 8), normal(2, kv_heads, 5, 6), masks(3, 5)[mask]]
    parity("Attention", inputs, opset=23, **how)


def test_attention_of_three_axes_splits_heads(parity: Check, normal: Normal) -> None:
    inputs = [normal(2, 3, 32), normal(2, 5, 16), normal(2, 5, 12)]
    parity("Attention", inputs, opset=23, q_num_heads=4, kv_num_heads=2)


def test_attention_remembers_the_past(parity: Check, normal: Normal) -> None:
    past = [normal(1, 2, 3, 4), normal(1, 2, 3, 4)]
    inputs = [normal(1, 2, 2, 4), normal(1, 2, 2, 4), normal(1, 2, 2, 4), masks(2, 5)["added"], *past]
    parity("Attention", inputs, opset=23, outputs=3)


@pytest.mark.parametrize("mode", [0, 3])
def test_attention_hands_out_scores(parity: Check, normal: Normal, mode: int) -> None:
    inputs = [normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4), None, None, None]
    parity("Attention", inputs, opset=23, outputs=4, qk_matmul_output_mode=mode)


def test_a_query_that_sees_nothing_yields_zeros(one_node: Callable[..., Any], normal: Normal) -> None:
    mask = np.array([[True, True], [False, False]])
    for how in ({}, {"softcap": 5.0}):
        (y,) = one_node("Attention", [normal(1, 1, 2, 4)] * 3 + [mask], opset=23, **how)
        assert not y[0, 0, 1].any()
        assert y[0, 0, 0].any()


def test_sliding_windows_are_refused(one_node: Callable[..., Any], normal: Normal) -> None:
    with pytest.raises(ModelError, match="left_window_size"):
        one_node("Attention", [normal(1, 1, 2, 4)] * 3, opset=25, left_window_size=1)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turning", [0, 4])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("positions", [True, False])
def test_rotations_are_those_of_onnx_runtime(
    parity: Check, normal: Normal, interleaved: int, turning: int, split: bool, positions: bool
) -> None:
    half, how = (turning or 8) // 2, {"interleaved": interleaved, "rotary_embedding_dim": turning, "num_heads": 3}
    x = normal(2, 3, 5, 8) if split else normal(2, 5, 24)
    tables = [normal(9, half), normal(9, half)] if positions else [normal(2, 5, half), normal(2, 5, half)]
    places = [np.array([[0, 3, 1, 8, 2], [4, 4, 5, 6, 7]])] if positions else []
    parity("RotaryEmbedding", [x, *tables, *places], opset=23, **how)


@pytest.mark.parametrize(
    ("op", "shapes", "how"),
    [
        ("MatMul", [(2, 3, 4), (4, 2)], {}),
        ("Gemm", [(4, 3), (2, 4), (2,)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("Einsum", [(2, 3), (3, 2)], {"equation": "ij,jk->ik"}),
        ("Attention", [(1, 1, 2, 3), (1, 1, 3, 3), (1, 1, 3, 3)], {}),
        ("Attention", [(1, 1, 2, 3), (1, 1, 3, 3), (1, 1, 3, 3)], {"softcap": 1.0, "is_causal": 1}),
        ("RotaryEmbedding", [(1, 1, 2, 4), (1, 2, 2), (1, 2, 2)], {"interleaved": 1}),
    ],
)
def test_gradients_pass(
    gradients: Check, normal: Normal, op: str, shapes: list[tuple[int, ...]], how: dict[str, Any]
) -> None:
    gradients(op, [normal(*shape, dtype="float64") for shape in shapes], opset=23, **how)
