"""Eqs. 4, 7 and 8 by hand, p* by other derivations, and table 1 of the paper against asl_mmdet.gradient_analysis."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asl_mmdet.gradient_analysis import (
    loss_properties,
    mislabelled_point,
    negative_curves,
    normalised_gradient,
    positive_curves,
)


def as_tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def eq_8(p, gamma, m):
    """As printed, with numpy, for p > m."""
    p_m = p - m
    return p_m**gamma * (1 / (1 - p_m) - gamma * np.log(1 - p_m) / p_m) * p * (1 - p)


def test_negatives_by_hand():
    p = as_tensor(0.1, 0.5, 0.9)
    loss, gradient = negative_curves(p, 0, 0)
    assert loss.tolist() == pytest.approx([0.105360516, 0.693147181, 2.302585093], rel=1e-8)
    assert gradient.tolist() == pytest.approx([0.1, 0.5, 0.9], rel=1e-12)
    # p^3 - 2 p^2 (1 - p) ln(1 - p) at p = 0.5: 0.125 + 0.25 ln 2
    loss, gradient = negative_curves(as_tensor(0.5), 2, 0)
    assert loss.item() == pytest.approx(0.25 * 0.693147181, rel=1e-8)
    assert gradient.item() == pytest.approx(0.125 + 0.25 * 0.693147181, rel=1e-8)
    # p_m = 0.4: 0.16 (1 / 0.6 + 2 * 0.510825624 / 0.4) 0.24
    loss, gradient = negative_curves(as_tensor(0.6, 0.1999), 2, 0.2)
    assert loss.tolist() == [pytest.approx(0.16 * 0.510825624, rel=1e-8), 0]
    assert gradient.tolist() == [pytest.approx(0.0384 * (1 / 0.6 + 2 * 0.510825624 / 0.4), rel=1e-8), 0]
    # the factor p_m^2 held constant: 0.16 / 0.6 * 0.24
    assert negative_curves(as_tensor(0.6), 2, 0.2, detach_focusing=True)[1].item() == pytest.approx(0.064, rel=1e-8)


def test_positives_by_hand():
    loss, gradient = positive_curves(as_tensor(0.25, 0.5), 0)
    assert loss.tolist() == pytest.approx([1.386294361, 0.693147181], rel=1e-8)
    assert gradient.tolist() == pytest.approx([-0.75, -0.5], rel=1e-12)
    # gamma 1 at p = 0.5: 0.5 ln 2, and 0.5 (0.5 ln 0.5 - 0.5)
    loss, gradient = positive_curves(as_tensor(0.5), 1)
    assert loss.item() == pytest.approx(0.346573590, rel=1e-8)
    assert gradient.item() == pytest.approx(-0.423286795, rel=1e-8)
    assert positive_curves(as_tensor(0.5), 1, detach_focusing=True)[1].item() == pytest.approx(-0.25, rel=1e-8)


def test_curves_are_float64_and_keep_their_shape():
    for curve in (*negative_curves(torch.full((2, 3), 0.7), 4, 0.05), *positive_curves(torch.full((2, 3), 0.7), 1)):
        assert curve.shape == (2, 3) and curve.dtype == torch.float64


@pytest.mark.parametrize('m', [1e-6, 0.05, 0.2, 0.6])
def test_p_star_of_shifted_cross_entropy_is_the_root_of_its_quadratic(m):
    # p (1 - p) / (1 + m - p) has the derivative 0 where p^2 - 2 (1 + m) p + 1 + m = 0
    assert mislabelled_point(0, m) == pytest.approx(1 + m - math.sqrt(m * (1 + m)), abs=1e-11)


def test_p_star_of_asymmetric_focusing_solves_its_equation():
    # gamma 1: d/dp (p^2 - p (1 - p) ln(1 - p)) = 3 p - (1 - 2 p) ln(1 - p)
    p = mislabelled_point(1, 0)
    assert 0.95 < p < 0.96
    assert 3 * p - (1 - 2 * p) * math.log(1 - p) == pytest.approx(0, abs=1e-10)
    # small gammas: (gamma + 1) + gamma (ln(1 - p) + 1) = 0 next to p = 1
    assert 1 - mislabelled_point(0.05, 0) == pytest.approx(math.exp(-22), rel=1e-3)


@pytest.mark.parametrize('gamma, m', [(2, 0), (4, 0), (2, 0.2), (4, 0.05), (7, 0.05), (0.5, 0.3), (1, 0.9)])
def test_p_star_is_where_eq_8_is_largest_on_a_dense_grid(gamma, m):
    grid = np.linspace(m, 1, 1_000_001)[1:-1]
    assert mislabelled_point(gamma, m) == pytest.approx(grid[eq_8(grid, gamma, m).argmax()], abs=2e-6)


def test_p_star_does_not_exist_where_the_gradient_only_rises_or_only_falls():
    assert mislabelled_point(0, 0) is None
    assert mislabelled_point(4, 0, detach_focusing=True) is None
    # m (1 + m) = 1 at m = 0.61803
    assert mislabelled_point(0, 0.618) is not None
    assert mislabelled_point(0, 0.6181) is None


@given(st.floats(0.05, 10), st.floats(0, 0.95), st.booleans())
def test_the_gradient_rises_up_to_p_star_and_falls_beyond_it(gamma, m, detach):
    p_star = mislabelled_point(gamma, m, detach)
    if p_star is None:
        assert detach and m < 1e-9
        return
    assert m < p_star < 1
    # as distances from m and from 1, which float64 resolves
    below = m + (p_star - m) * torch.linspace(0.01, 1, 200, dtype=torch.float64)
    beyond = 1 - (1 - p_star) * torch.linspace(1, 0.01, 200, dtype=torch.float64)
    # 1e-12: where p* is next to 1 and m is 0, the gradient falls by less than it is rounded
    assert (negative_curves(below, gamma, m, detach)[1].diff() >= -1e-12).all()
    assert (negative_curves(beyond[beyond < 1], gamma, m, detach)[1].diff() <= 1e-12).all()


def test_normalised_gradients_have_a_maximum_of_1_and_keep_their_shape():
    p = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    for gamma, m in ((0, 0), (0, 0.2), (2, 0), (2, 0.2), (4, 0.05), (0, 0.7)):
        normalised = normalised_gradient(p, gamma, m)
        assert 0.999 < normalised.max() <= 1
        _, gradient = negative_curves(p, gamma, m)
        assert torch.allclose(normalised * gradient[800], gradient * normalised[800], rtol=1e-12)
    assert torch.allclose(normalised_gradient(p, 0, 0), p, rtol=1e-12)
    # a margin so small that p* rounds to 1 leaves cross-entropy as it is
    assert torch.allclose(normalised_gradient(p, 0, 1e-40), p, rtol=1e-12)
    # shifted cross-entropy above m = 0.618 is largest at its jump, m (1 - m)
    assert normalised_gradient(as_tensor(0.8), 0, 0.7).item() == pytest.approx(0.16 / 0.9 / 0.21, rel=1e-9)


TABLE_1 = {
    'CE': (0, 0, '- - - +'),
    'AF': (2, 0, '- + - +'),
    'AF of 4': (4, 0, '- + - +'),
    'CE+PS': (0, 0.2, '+ - + -'),
    'CE+PS of 0.05': (0, 0.05, '+ - + -'),
    'ASL': (2, 0.2, '+ + + +'),
    'ASL of 4 and 0.05': (4, 0.05, '+ + + +'),
    'ASL with gamma below 1': (0.1, 0.05, '+ + + +'),
}


@pytest.mark.parametrize('detach', [False, True])
@pytest.mark.parametrize('gamma, m, cells', TABLE_1.values(), ids=TABLE_1)
def test_table_1_follows_from_the_gradients(gamma, m, cells, detach):
    found = loss_properties(gamma, m, detach)
    columns = (found.hard_threshold, found.soft_threshold, found.discards_mislabelled, found.continuous_gradients)
    assert ' '.join('-+'[column] for column in columns) == cells


def test_asymmetric_focusing_has_a_p_star_although_table_1_denies_that_it_discards():
    found = loss_properties(2, 0)
    assert found.p_star == pytest.approx(0.94215, abs=1e-5) and not found.discards_mislabelled
    # it comes down to 1 / 1.129 of its maximum and not to 0
    at_1 = as_tensor(1 - 1e-12)
    assert normalised_gradient(at_1, 2, 0).item() == pytest.approx(0.88575, abs=1e-5)
    assert normalised_gradient(at_1, 4, 0).item() == pytest.approx(0.79205, abs=1e-5)
    # with the focusing factor held constant the gradient is p^3, and the cell holds in both senses
    assert loss_properties(2, 0, detach_focusing=True).p_star is None
    assert normalised_gradient(as_tensor(0.5), 2, 0, detach_focusing=True).item() == pytest.approx(0.125, rel=1e-9)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match='gamma_neg=-1 must be'):
        negative_curves(as_tensor(0.5), -1, 0)
    with pytest.raises(ValueError, match='gamma_pos=inf must be'):
        positive_curves(as_tensor(0.5), math.inf)
    with pytest.raises(ValueError, match='clip=1 is a probability margin'):
        mislabelled_point(0, 1)
    with pytest.raises(ValueError, match='gamma_neg=nan'):
        loss_properties(math.nan, 0)
    for p in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=f'p holds {p}'):
            normalised_gradient(as_tensor(0.5, p), 0, 0)
