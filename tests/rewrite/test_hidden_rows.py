"""Rows of attention that a mask hides altogether."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fptq.engines import DEPLOYABLE, CompileOptions, engine_named
from fptq.graph.load import load
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.rewrite import hidden_rows_by_mask
from fptq.types import Feeds

N, HEADS, T, WIDTH = 3, 2, 6, 8
HIDDEN = -np.inf


def attention(net: Callable, *masks: np.ndarray | None, axis: int = -1, instead: float = 0.0) -> Model:
    """A chain of attentions, each with its stored mask or none, guarded as PyTorch's exporter does."""
    n = net((N, HEADS, T, WIDTH))
    zero, stored = n.stored(), {}
    zero.const_value = ir.tensor(np.array(instead, np.float32), name=zero.name)
    for mask in masks:
        x = n.scores()
        if mask is not None:
            if id(mask) not in stored:
                stored[id(mask)] = n.stored(*mask.shape)
                stored[id(mask)].const_value = ir.tensor(mask, name=stored[id(mask)].name)
            n("Add", stored[id(mask)])
        softmax = n("Softmax", axis=axis)
        is_nan = n("IsNaN")
        is_nan.dtype = ir.DataType.BOOL
        n.last = is_nan
        n("Where", zero, softmax)
        n("MatMul", x)
        n("Mul", n.stored(1))
    return n.model()


def padding() -> np.ndarray:
    """Of three sequences: a whole one, one with two padded ends, one that is nothing but padding."""
    mask = np.zeros((N, 1, 1, T), np.float32)
    mask[1, ..., 4:] = HIDDEN
    mask[2] = HIDDEN
    return mask


def some_queries() -> np.ndarray:
    """Causal, but for a query that sees nothing."""
    mask = np.where(np.tril(np.ones((T, T), bool)), 0, HIDDEN).astype(np.float32)
    mask[2] = HIDDEN
    return mask


def run(model: Model, feeds: Feeds, folder: Path, engine: str = "simulation") -> np.ndarray:
    save(model, folder / "m.onnx")
    found = engine_named(engine).compile(folder / "m.onnx", CompileOptions(threads=1))(feeds)
    return next(iter(found.values()))


def ops(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("mask", [padding(), some_queries(), None], ids=["padding", "queries", "none"])
@pytest.mark.parametrize("engine", ["simulation", pytest.param("openvino", marks=pytest.mark.engine("openvino"))])
def test_the_result_is_the_same_and_no_score_is_looked_at(mask, engine: str, net, tmp_path) -> None:
    model = attention(net, mask)
    made = hidden_rows_by_mask(model)
    assert "IsNaN" in ops(model)
    assert "IsNaN" not in ops(made)
    feeds = {"x": np.random.default_rng(0).standard_normal((N, HEADS, T, WIDTH)).astype(np.float32)}
    before, after = run(model, feeds, tmp_path, engine), run(made, feeds, tmp_path, engine)
    assert np.isfinite(before).all()
    if mask is not None:
        assert (before == 0).any(), "a row is hidden"
    np.testing.assert_allclose(after, before, rtol=0, atol=0 if engine == "simulation" else 1e-6)


def test_layers_with_one_mask_look_at_it_once(net) -> None:
    mask = padding()
    made = hidden_rows_by_mask(attention(net, mask, mask, mask))
    assert ops(made)["ReduceMax"] == 1
    assert ops(made)["Where"] == 1 + 3


def test_without_a_mask_nothing_is_left_of_the_guard(net) -> None:
    assert not {"IsNaN", "Where", "ReduceMax"} & ops(hidden_rows_by_mask(attention(net, None))).keys()


@pytest.mark.parametrize("other", [{"axis": 1}, {"instead": 1.0}], ids=["another axis", "no zeros"])
def test_what_is_no_guard_of_attention_stays(other, net) -> None:
    model = attention(net, padding(), **other)
    assert hidden_rows_by_mask(model) is model


def test_a_mask_that_is_a_product_itself_stays(net) -> None:
    n = net((N, HEADS, T, T))
    x = n.last
    n("MatMul", x)
    scores = n.last
    n.last = x
    n("MatMul", x)
    n("Add", scores)
    softmax = n("Softmax", axis=-1)
    n("IsNaN").dtype = ir.DataType.BOOL
    n("Where", n.stored(scale=0.0), softmax)
    n("MatMul", x)
    n("Relu")
    model = n.model()
    assert hidden_rows_by_mask(model) is model


class Attention(torch.nn.Module):
    """With a mask of booleans, which the exporter makes finite numbers of."""

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=keep)
        return found.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("engine", [pytest.param(name, marks=pytest.mark.engine(name)) for name in DEPLOYABLE])
def test_what_pytorch_exports_is_rewritten(engine: str, tmp_path) -> None:
    x, keep = torch.randn(N, HEADS, T, WIDTH), torch.isfinite(torch.from_numpy(padding()))
    model = load(Attention().eval(), example=(x[:2], keep[:2]))
    made = hidden_rows_by_mask(model)
    assert ops(model)["IsNaN"] == 1
    assert ops(made)["IsNaN"] == 0
    assert ops(made)["Where"] == 1
    feeds = dict(zip((info.name for info in model.inputs), (x.numpy(), keep.numpy()), strict=True))
    before, after = run(model, feeds, tmp_path, engine), run(made, feeds, tmp_path, engine)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)


def test_new_nodes_have_the_names_of_what_they_replace(net) -> None:
    model = attention(net, padding())
    named = replace(model, origin={"Where_5": ("layers.0.attention",)})
    made = hidden_rows_by_mask(named)
    new = {str(node.name) for node in made.graph} - {str(node.name) for node in model.graph}
    assert new
    assert all(made.origin[name] == ("layers.0.attention",) for name in new)
    assert "Where_5" not in made.origin
