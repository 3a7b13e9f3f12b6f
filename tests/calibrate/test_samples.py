from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fptq.calibrate.samples import ahead


def test_items_come_in_order_and_one_ahead() -> None:
    made: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for index in range(4):
            made.append(index)
            if index == 1:
                third.set()
            yield index

    found = []
    for item in ahead(items()):
        if item == 0:
            assert third.wait(5)  # the next one is made while this one is used
            assert made == [0, 1]
        found.append(item)
    assert found == [0, 1, 2, 3]


def test_an_error_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("second")

    walk = ahead(items())
    assert next(walk) == 1
    with pytest.raises(ValueError, match="second"):
        next(walk)


def test_no_item_is_no_error() -> None:
    assert list(ahead(iter(()))) == []
