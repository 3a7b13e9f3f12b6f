"""Signal to noise of sums and of arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fptq.numerics import sqnr, sqnr_of


def test_a_tenth_of_the_amplitude_is_20_decibels() -> None:
    exact = np.float32([3, -4])
    assert sqnr(exact, exact * np.float32(1.1)) == pytest.approx(20, abs=1e-5)
    assert sqnr_of(25.0, 0.25) == pytest.approx(20)


def test_no_noise_is_infinite_and_no_signal_is_far_below() -> None:
    exact = np.float32([3, -4])
    assert sqnr(exact, exact) == math.inf
    assert sqnr(np.zeros(2, np.float32), exact) < -2000


def test_sums_have_more_digits_than_the_array() -> None:
    exact = np.full(1 << 16, 1e20, np.float32)
    assert sqnr(exact, np.zeros_like(exact)) == 0.0
