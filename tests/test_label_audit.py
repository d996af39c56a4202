"""The ranking of suspected labels against values derived by hand."""

import numpy as np
import pytest

from asl_mmdet.gradient_analysis import mislabelled_point
from asl_mmdet.label_audit import doubtful_positives, missing_positives

# Without focusing dL/dz of a negative is p (1 - p) / (1 + m - p) above the margin. Its derivative is zero where
# p^2 - 2 (1 + m) p + 1 + m = 0, that is at p* = 1 + m - sqrt(m (1 + m)). For m = 1/3: p* = 2/3, where it is 1/3.
MARGIN = 1 / 3


def gradient(p):
    return p * (1 - p) / (1 + MARGIN - p)


def test_missing_positives():
    # Mean over two epochs: 5/6 (a positive), 1/2 (below p*); 5/6, 0.9; 11/12, 0.9 (unknown).
    probabilities = np.array([[[5 / 6, 0.6], [4 / 6, 0.8], [1.0, 0.9]], [[5 / 6, 0.4], [1.0, 1.0], [5 / 6, 0.9]]])
    targets = np.array([[1, 0], [0, 0], [0, -1]])
    found = missing_positives(probabilities, targets, gamma_neg=0, clip=MARGIN)
    assert list(zip(found.images, found.classes)) == [(2, 0), (1, 1), (1, 0)]
    np.testing.assert_allclose(found.p_mean, [11 / 12, 0.9, 5 / 6])
    np.testing.assert_allclose(found.p_std, [1 / 12, 0.1, 1 / 6])
    np.testing.assert_allclose(found.limit, 2 / 3)
    # 5/6: the gradient is (5/36) / (1/2) = 5/18 of at most 6/18.
    assert found.suspicion[2] == pytest.approx(1 / 6)
    np.testing.assert_allclose(found.suspicion, [1 - 3 * gradient(11 / 12), 1 - 3 * gradient(0.9), 1 / 6])


def test_a_certain_negative_is_discarded_and_one_at_the_point_is_not_suspected():
    found = missing_positives(np.array([[[1.0, 2 / 3 - 1e-6, 0.0]]]), np.zeros((1, 3)), gamma_neg=0, clip=MARGIN)
    assert (found.images.tolist(), found.classes.tolist()) == ([0], [0])
    assert found.suspicion[0] == pytest.approx(1, abs=1e-6)
    assert found.p_std[0] == 0


def test_saturated_probabilities_of_float32_stay_in_the_order_of_the_probabilities():
    p = np.array([[[1.0], [1 - 2**-24], [1 - 2**-20], [0.999]]], dtype=np.float32)
    found = missing_positives(p, np.zeros((4, 1)), gamma_neg=4, clip=0.05)
    assert found.images.tolist() == [0, 1, 2, 3]
    assert np.all(np.diff(found.suspicion) <= 0)


def test_a_gamma_for_each_class():
    p = np.full((1, 1, 3), 0.88)
    points = [mislabelled_point(gamma, 0.05) for gamma in (0, 4)]
    assert points[0] < 0.88 < points[1]
    found = missing_positives(p, np.zeros((1, 3)), gamma_neg=np.array([0.0, 4.0, 0.0]), clip=0.05)
    assert found.classes.tolist() == [0, 2]
    np.testing.assert_allclose(found.limit, points[0])


@pytest.mark.parametrize('at_least, found', [(0, [3]), (1, [3]), (2, [3, 1]), (3, [3, 1, 0]), (9, [3, 1, 0])])
def test_as_many_as_are_asked_for(at_least, found):
    """The next below p*, of which none is suspected; neither positives nor unknown labels take part."""
    p, targets = np.array([[[0.2, 0.5, 0.99, 0.9, 0.95]]]), np.array([[0, 0, 1, 0, -1]])
    suspects = missing_positives(p, targets, gamma_neg=0, clip=MARGIN, at_least=at_least)
    assert suspects.classes.tolist() == found
    assert suspects.suspicion[0] > 0 and suspects.suspicion[1:].tolist() == [0] * (len(found) - 1)


def test_none_is_added_of_a_class_without_a_point():
    p = np.array([[[0.9, 0.8, 0.1]]])
    found = missing_positives(p, np.zeros((1, 3)), np.array([4.0, 0.0, 4.0]), 0.0, at_least=3)
    assert found.classes.tolist() == [0, 2]


@pytest.mark.parametrize('detach_focusing, gamma_neg', [(False, 0), (True, 4)])
def test_a_loss_that_suspects_nothing_is_refused(detach_focusing, gamma_neg):
    with pytest.raises(ValueError, match=f'gamma_neg={gamma_neg}, clip=0 .* suspects no label. Train with gamma_neg=4'):
        missing_positives(np.full((1, 1, 1), 0.99), np.zeros((1, 1)), gamma_neg, 0.0, detach_focusing)


def test_doubtful_positives():
    # Class 0, means over the negatives (images 3 and 4): 0.3 and 0.5. Image 0 lies below both, image 1 only below the
    # second, image 2 below neither. Class 1 has no negative, so that nothing is below it.
    first = np.array([[0.2, 0.1], [0.35, 0.1], [0.9, 0.1], [0.2, 0.1], [0.4, 0.1]])
    second = np.array([[0.1, 0.1], [0.1, 0.1], [0.8, 0.1], [0.4, 0.1], [0.6, 0.1]])
    targets = np.array([[1, 1], [1, 1], [1, 1], [0, 1], [0, -1]])
    found = doubtful_positives(np.stack([first, second]), targets)
    assert list(zip(found.images, found.classes)) == [(0, 0)]
    np.testing.assert_allclose(found.p_mean, [0.15])
    np.testing.assert_allclose(found.p_std, [0.05])
    np.testing.assert_allclose(found.limit, [0.4])  # (0.3 + 0.5) / 2
    np.testing.assert_allclose(found.suspicion, [1 - 0.15 / 0.4])


def test_the_lowest_positive_in_shares_of_its_class_comes_first():
    probabilities = np.array([[[0.1, 0.1], [0.4, 0.2]]])
    found = doubtful_positives(np.tile(probabilities, (1, 2, 1)), np.array([[1, 1], [0, 0], [1, 1], [0, 0]]))
    assert found.classes.tolist() == [0, 0, 1, 1]  # 1 - 0.1 / 0.4 before 1 - 0.1 / 0.2
    np.testing.assert_allclose(found.suspicion, [0.75, 0.75, 0.5, 0.5])
    assert len(found) == 4


@pytest.mark.parametrize('shape', [(5, 2), (0, 5, 2), (1, 4, 2), (1, 5, 3)])
def test_shapes_that_do_not_fit_are_refused(shape):
    for rank in (lambda p, y: missing_positives(p, y, 4, 0.05), doubtful_positives):
        with pytest.raises(ValueError, match=r'probabilities \(.*\) must be \(epochs, images, classes\)'):
            rank(np.zeros(shape), np.zeros((5, 2)))
