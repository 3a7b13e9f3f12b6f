"""Placements as keys: their order and their text."""

from __future__ import annotations

import itertools

import pytest

from fptq.graph.placement import Placement

IN_ORDER = [
    Placement("a"),
    Placement("a", "add", 0),
    Placement("a", "add", 1),
    Placement("a", "relu", 0),
    Placement("b"),
    Placement("b", "add", 1),
]


def test_the_order_is_total_where_a_reader_is_none() -> None:
    assert sorted(set(IN_ORDER)) == IN_ORDER
    for first, second in itertools.combinations(IN_ORDER, 2):
        assert first < second
        assert second > first
        assert first <= second
        assert not second <= first


def test_nothing_else_is_ordered_with_placements() -> None:
    with pytest.raises(TypeError):
        assert Placement("a") < "b"


@pytest.mark.parametrize("placement", IN_ORDER, ids=str)
def test_text_and_back(placement: Placement) -> None:
    assert Placement.parse(str(placement)) == placement
