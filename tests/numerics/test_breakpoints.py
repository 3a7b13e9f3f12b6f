"""Breakpoints for known densities: the paper's formulas and numbers."""

import math

import numpy as np
import pytest

from fptq.numerics import GAUSSIAN, LAPLACE, bisected, closed_form, expected_error

DENSITIES = pytest.mark.parametrize("density", [GAUSSIAN, LAPLACE], ids=lambda density: density.name)


@DENSITIES
@pytest.mark.parametrize("m", [2.0, 3.0, 8.0, 30.0, 1000.0])
def test_bisection_solves_the_papers_condition(density, m):
    p = float(bisected(density, m))
    cdf, pdf = 1 - density.outside(np.float64(p)) / 2, density.height(np.float64(p)) / 2
    assert abs(p - 2 * m + 2 * m * cdf + m * (2 * p - m) * pdf) < 1e-9 * m**2


@DENSITIES
@pytest.mark.parametrize("m", [1.0, 2.0, 4.0, 20.0, 200.0])
def test_bisection_finds_what_an_exhaustive_search_finds(density, m):
    grid = np.linspace(0, m / 2, 20001)
    best = expected_error(density, m, grid, bits=4).min()
    assert expected_error(density, m, bisected(density, m), bits=4) <= best * (1 + 1e-9)


@pytest.mark.parametrize(
    ("m", "p"), [(3, 1.158), (4, 1.392), (6, 1.755), (8, 2.015), (20, 2.751), (50, 3.338), (100, 3.717)]
)
def test_known_breakpoints_of_a_gaussian(m, p):
    assert bisected(GAUSSIAN, m) == pytest.approx(p, abs=6e-4)


@DENSITIES
def test_closed_forms_are_as_accurate_as_they_say(density):
    m = np.linspace(2.5, 10, 100)
    np.testing.assert_allclose(closed_form(density, m), bisected(density, m), rtol=0.02)
    m = np.linspace(2.5, 20, 100)
    exact, fitted = (expected_error(density, m, solve(density, m), bits=8) for solve in (bisected, closed_form))
    assert (fitted <= exact * 1.03).all()


@DENSITIES
@pytest.mark.parametrize("solve", [bisected, closed_form])
def test_breakpoints_lie_in_the_lower_half(density, solve):
    m = np.array([0.0, 1e-3, 0.5, 1.0, 5.0, 1e4])
    p = solve(density, m)
    assert (p >= 0).all()
    assert (p <= m / 2).all()
    assert (p[1:] > 0).all()


@DENSITIES
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("m", [1.0, 3.0, 10.0])
def test_the_expected_error_is_at_most_9_16_of_uniform(density, bits, m):
    uniform = (2 * m / (2**bits - 1)) ** 2 / 12
    assert expected_error(density, m, bisected(density, m), bits=bits) <= uniform * 9 / 16 * (1 + 1e-12)


def test_9_16_is_the_ratio_of_the_middle_at_2_bits():
    uniform = (2 * 3.0 / 3) ** 2 / 12
    assert expected_error(GAUSSIAN, 3.0, 1.5, bits=2) == pytest.approx(uniform * 9 / 16)


def test_the_tail_of_a_laplacian_is_split_like_the_whole():
    np.testing.assert_allclose(bisected(LAPLACE, 10, 2), 2 + bisected(LAPLACE, 8), rtol=1e-12)
    np.testing.assert_allclose(closed_form(LAPLACE, 10, 2), 2 + closed_form(LAPLACE, 8), rtol=1e-12)


@pytest.mark.parametrize("start", [1.0, 3.0, 30.0])
def test_the_tail_of_a_gaussian_is_bisected_only(start):
    p = bisected(GAUSSIAN, start + 4, start)
    assert start < p <= start + 2
    with pytest.raises(ValueError, match="bisect"):
        closed_form(GAUSSIAN, start + 4, start)


@DENSITIES
def test_densities_are_densities_of_deviation_1(density):
    t = np.linspace(0, 40, 400_001)
    height = density.height(t)
    assert np.trapezoid(height, t) == pytest.approx(1, abs=1e-6)
    assert math.sqrt(np.trapezoid(height * t**2, t)) == pytest.approx(1, abs=1e-6)
    assert density.outside(np.float64(1.3)) == pytest.approx(np.trapezoid(height[13000:], t[13000:]), abs=1e-6)
