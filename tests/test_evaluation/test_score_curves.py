"""Curves of scores against hand-derived values, plain counting and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve

from asl_mmdet.evaluation import (
    ClassScores,
    SparseLabels,
    average_precision,
    best_f1,
    brier_scores,
    class_scores,
    counts_at_threshold,
    positive_scores,
    rank_positives,
    score_curves,
)
from asl_mmdet.evaluation.score_curves import BIN_EDGES, COARSE, FEW_POINTS, FINE, POINTS


def ascending(*scores):
    return np.array(sorted(scores))


def labelled(num_images=400, num_classes=5, seed=0):
    """Scores on a grid, so that many tie and some hit thresholds, and labels of 1, 0 and -1."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 101, (num_images, num_classes), generator=generator) / 100
    targets = torch.randint(-1, 2, (num_images, num_classes), generator=generator)
    return scores, targets


def curves_of(scores, targets):
    return score_curves(class_scores(scores, targets), scores.shape[1], positive_scores(scores, targets))


def test_a_detector_by_hand():
    # Three objects; boxes of .9 and .5 match two of them, those of .7 and .2 none; the third object has no box.
    curves = score_curves([ClassScores(ascending(0.9, 0.7, 0.5, 0.2), ascending(0.9, 0.5), 3)], 1, np.array([0.9, 0.5]))
    at = {round(threshold, 3): i for i, threshold in enumerate(curves.thresholds)}
    found = {
        t: (curves.true_positives[0, at[t]], curves.false_positives[0, at[t]])
        for t in (0, 0.2, 0.21, 0.5, 0.7, 0.71, 0.95)
    }
    assert found == {0: (2, 2), 0.2: (2, 2), 0.21: (2, 1), 0.5: (2, 1), 0.7: (1, 1), 0.71: (1, 0), 0.95: (0, 0)}
    assert curves.positives.tolist() == [3]
    curve = curves.precision_recall[0]
    assert curve.threshold.tolist() == [0.9, 0.5]
    assert curve.recall == pytest.approx([1 / 3, 2 / 3]) and curve.precision == pytest.approx([1, 2 / 3])
    assert curves.overall.recall == pytest.approx(curve.recall)
    assert curves.average_precision == pytest.approx([(1 + 2 / 3) / 3])
    assert curves.best_f1 == pytest.approx([2 * 2 / (3 + 3)]) and curves.best_threshold.tolist() == [0.5]
    assert curves.probabilities == pytest.approx(np.array([[0.7, 0.55], [0.7, 0.55]]))
    assert curves.histograms[0, 0].nonzero()[0].tolist() == [10, 18]
    assert curves.histograms[0, 1].nonzero()[0].tolist() == [4, 14]


def test_the_only_positive_is_all_there_is_to_find():
    curves = score_curves([ClassScores(ascending(0.5), ascending(0.5), 1)], 1, np.array([0.5]))
    assert [curve.recall.tolist() for curve in (*curves.precision_recall, curves.overall)] == [[1], [1]]


def test_one_wrong_candidate_among_many_right_ones_keeps_its_probability():
    right = np.full(100_000, 0.1, dtype=np.float32)
    curves = score_curves([ClassScores(np.append(right, np.float32(0.7)), right, len(right))], 1, right)
    assert curves.probabilities == pytest.approx(np.array([[0.1, 0.3]] * 2), rel=1e-6)


def test_classes_without_positives_or_candidates():
    none, empty = ascending(), ClassScores(ascending(), ascending(), 2)
    curves = score_curves([ClassScores(ascending(0.4), none, 0), empty], 2, none)
    assert np.isnan(curves.average_precision[0]) and curves.average_precision[1] == 0
    assert np.isnan(curves.best_f1[0]) and curves.best_f1[1] == 0 and np.isnan(curves.best_threshold).all()
    assert np.isnan(curves.probabilities[:, 0]).all() and curves.probabilities[0, 1] == pytest.approx(0.6)
    assert np.isnan(curves.probabilities[1, 1]) and len(curves.overall.recall) == 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_against_scikit_learn_and_plain_counting(dtype):
    scores, targets = labelled()
    scores = scores.to(dtype)
    curves = curves_of(scores, targets)
    for i in range(scores.shape[1]):
        known = targets[:, i] != -1
        score, truth = scores[known, i].numpy(), targets[known, i].numpy()
        assert curves.average_precision[i] == pytest.approx(average_precision_score(truth, score), abs=1e-12)
        precision, recall, thresholds = precision_recall_curve(truth, score)
        expected = {float(t): (p, r) for p, r, t in zip(precision, recall, thresholds)}
        curve = curves.precision_recall[i]
        assert len(curve.threshold) <= POINTS and curve.recall[-1] == 1
        for threshold, p, r in zip(curve.threshold, curve.precision, curve.recall):
            assert (p, r) == pytest.approx(expected[float(threshold)])
        every_f1 = [f1_score(truth, score >= threshold) for threshold in np.unique(score)]
        assert curves.best_f1[i] == pytest.approx(max(every_f1))
        assert f1_score(truth, score >= curves.best_threshold[i]) == pytest.approx(max(every_f1))
        p_t_pos, p_t_neg = score[truth == 1].mean(dtype=float), (1 - score[truth == 0]).mean(dtype=float)
        assert curves.probabilities[i] == pytest.approx([p_t_pos, p_t_neg], abs=1e-6)
        for row, value in enumerate((1, 0)):
            histogram, _ = np.histogram(score[truth == value], BIN_EDGES.astype(score.dtype))
            assert curves.histograms[i, row].tolist() == histogram.tolist()
    for index in (0, 10, 50, 100, len(FINE) - 1):
        counts = counts_at_threshold(scores, targets, FINE[index])
        assert curves.true_positives[:, index].tolist() == counts.true_positives.tolist()
        assert (curves.true_positives + curves.false_positives)[:, index].tolist() == counts.predicted.tolist()


def test_all_classes_together():
    scores, targets = labelled()
    curves = curves_of(scores, targets)
    known = (targets != -1).flatten()
    score, truth = scores.flatten()[known].numpy(), targets.flatten()[known].numpy()
    for recall, precision, threshold in zip(*curves.overall):
        predicted = score >= threshold
        assert recall == pytest.approx(truth[predicted].sum() / truth.sum())
        assert precision == pytest.approx(truth[predicted].mean())
    assert curves.overall.recall[-1] == 1 and len(curves.overall.recall) > 50
    assert curves.probabilities[-1] == pytest.approx(
        [score[truth == 1].mean(dtype=float), (1 - score[truth == 0]).mean(dtype=float)], abs=1e-6
    )


def test_agrees_with_the_metrics():
    scores, targets = labelled(seed=1)
    curves, ranking = curves_of(scores, targets), rank_positives(scores, targets)
    assert curves.average_precision == pytest.approx(average_precision(ranking).numpy())
    best, threshold = best_f1(ranking)
    assert curves.best_f1 == pytest.approx(best.numpy())
    assert curves.best_threshold == pytest.approx(threshold.numpy())


def test_many_classes_have_fewer_points():
    one = ClassScores(np.linspace(0, 1, 500), np.linspace(0, 1, 250), 250)
    curves = score_curves([one] * 201, 201, one.right)
    assert curves.thresholds.tolist() == COARSE.tolist() and curves.true_positives.shape == (201, len(COARSE))
    assert {len(curve.recall) for curve in curves.precision_recall} == {FEW_POINTS}
    assert curves.precision_recall[0].threshold[[0, -1]].tolist() == [1, 0]


@pytest.mark.parametrize('thresholds', [FINE, COARSE])
def test_thresholds(thresholds):
    assert thresholds[0] == 0 and thresholds[-1] == 0.999 and (np.diff(thresholds) > 0).all() and 0.5 in thresholds


def test_scores_of_partly_labelled_images():
    # Image 1 says of class 0 that it is there and of class 2 that it is not; image 0 does not know class 1.
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.6, 0.7, 0.2]])
    labels = SparseLabels.from_indices(
        2,
        3,
        positive=(torch.tensor([1, 0]), torch.tensor([0, 2])),
        negative=(torch.tensor([1]), torch.tensor([2])),
        unknown=(torch.tensor([0]), torch.tensor([1])),
        partial=torch.tensor([False, True]),
    )
    for blocks in (scores, list(scores.split(1))):
        known = [(one.candidates.tolist(), one.right.tolist(), one.positives) for one in class_scores(blocks, labels)]
        assert known == [
            (pytest.approx([0.6, 0.9]), pytest.approx([0.6]), 1),
            ([], [], 0),
            (pytest.approx([0.1, 0.2]), pytest.approx([0.1]), 1),
        ]
        assert positive_scores(blocks, labels) == pytest.approx([0.6, 0.1])
        assert brier_scores(blocks, labels).tolist() == pytest.approx([0.9**2 + 0.9**2, 0.4**2 + 0.2**2])
