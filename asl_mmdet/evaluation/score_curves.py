"""What a threshold on scores finds, misses and gets wrong: the curves of a report, for classifiers and detectors alike.

A candidate is whatever has a score: a known label of an image, or a detected box. It is right where the label is
positive, or where the box is matched to an object; what was to be found without being a candidate (an object under no
box) is missed at every threshold. "Predicted" are the candidates that score the threshold or more, compared in the
scores' own precision as in :func:`asl_mmdet.evaluation.counts_at_threshold`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BIN_EDGES = np.array([i / 20 for i in range(21)])
_NEAR_0 = (0, 0.001, 0.002, 0.005)
_NEAR_1 = (0.995, 0.998, 0.999)
FINE = np.array([*_NEAR_0, *(i / 100 for i in range(1, 100)), *_NEAR_1])
COARSE = np.array([*_NEAR_0, 0.01, 0.02, *(i / 20 for i in range(1, 20)), 0.98, 0.99, *_NEAR_1])
# Classes up to which each has curves on all thresholds; of more, on the coarse ones and with fewer points.
MAX_FINE_CLASSES = 200
POINTS, FEW_POINTS = 100, 20


class ClassScores(NamedTuple):
    """Candidates of one class.

    Attributes:
        candidates: (M,) scores in [0, 1], ascending.
        right: (R,) those of them that are right, ascending.
        positives: what was to be found, R or more.
    """

    candidates: np.ndarray
    right: np.ndarray
    positives: int


class PrecisionRecall(NamedTuple):
    """Points of a precision-recall curve, (K,) each, in the order of falling thresholds."""

    recall: np.ndarray
    precision: np.ndarray
    threshold: np.ndarray


@dataclass(frozen=True)
class ScoreCurves:
    """Curves of C classes and of all their candidates together.

    Attributes:
        thresholds: (T,) ascending.
        true_positives, false_positives: (C, T) int64, predicted at each threshold and right, or wrong.
        positives: (C,) int64, what was to be found.
        precision_recall: of each class; no points without positives, thinned to ``POINTS`` or ``FEW_POINTS``.
        overall: the same for all candidates in one list.
        average_precision: (C,) in [0, 1], mean over the positives of the precision at the score of each, 0 for one that
            is no candidate; NaN without positives.
        best_f1, best_threshold: (C,) highest F1 = 2 TP / (predicted + positives) and the score that it is reached at;
            NaN without positives, a threshold of NaN where nothing is right.
        probabilities: (C + 1, 2) p_t+ and p_t- of eq. 9, the means of p over right candidates and of 1 - p over wrong
            ones, last of all classes together; NaN without such candidates. Their difference is the gap of eq. 10.
        histograms: (C, 2, 20) int64, right and wrong candidates with scores between ``BIN_EDGES``; an edge belongs to
            the bin above it, 1 to the last.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    positives: np.ndarray
    precision_recall: list[PrecisionRecall]
    overall: PrecisionRecall
    average_precision: np.ndarray
    best_f1: np.ndarray
    best_threshold: np.ndarray
    probabilities: np.ndarray
    histograms: np.ndarray


def score_curves(classes: Iterable[ClassScores], num_classes: int, right: np.ndarray) -> ScoreCurves:
    """
    Args:
        classes: C of them, taken one at a time.
        right: scores of the right candidates of all classes, in any order: the overall curve has its points at some.
    """
    thresholds, points = (FINE, POINTS) if num_classes <= MAX_FINE_CLASSES else (COARSE, FEW_POINTS)
    overall_thresholds = np.unique(np.sort(right)[evenly_spread(len(right), 2 * POINTS)])[::-1]
    counts = np.zeros((num_classes, 2, len(thresholds)), dtype=np.int64)
    overall_counts = np.zeros((2, len(overall_thresholds)), dtype=np.int64)
    positives = np.zeros(num_classes, dtype=np.int64)
    curves = []
    average_precision, best_f1, best_threshold = np.full((3, num_classes), np.nan)
    sums = np.zeros((num_classes, 2, 2))
    histograms = np.zeros((num_classes, 2, len(BIN_EDGES) - 1), dtype=np.int64)
    for i, one in enumerate(classes):
        wrong_sum = (1 - one.candidates).sum(dtype=np.float64) - (1 - one.right).sum(dtype=np.float64)
        sums[i] = (one.right.sum(dtype=np.float64), len(one.right)), (wrong_sum, len(one.candidates) - len(one.right))
        histograms[i] = _histogram(one.right), _histogram(one.candidates) - _histogram(one.right)
        counts[i] = _reached(one, thresholds)
        overall_counts += _reached(one, overall_thresholds)
        positives[i] = one.positives
        falling = one.right[::-1]
        true_positives, predicted = _reached(one, falling)
        precision = true_positives / predicted
        if one.positives:
            average_precision[i] = precision.sum() / one.positives
            best_f1[i] = 0
        if len(falling):
            f1 = 2 * true_positives / (predicted + one.positives)
            best_f1[i], best_threshold[i] = f1.max(), falling[f1.argmax()]
        kept = evenly_spread(len(falling), points)
        curves.append(PrecisionRecall(true_positives[kept] / max(one.positives, 1), precision[kept], falling[kept]))
    true_positives, predicted = overall_counts
    sums = np.concatenate([sums, sums.sum(0, keepdims=True)])
    return ScoreCurves(
        thresholds=thresholds,
        true_positives=counts[:, 0],
        false_positives=counts[:, 1] - counts[:, 0],
        positives=positives,
        precision_recall=curves,
        overall=PrecisionRecall(
            true_positives / max(positives.sum(), 1), true_positives / predicted, overall_thresholds
        ),
        average_precision=average_precision,
        best_f1=best_f1,
        best_threshold=best_threshold,
        probabilities=np.divide(
            sums[..., 0], sums[..., 1], out=np.full(sums.shape[:2], np.nan), where=sums[..., 1] > 0
        ),
        histograms=histograms,
    )


def _reached(one: ClassScores, thresholds: np.ndarray) -> np.ndarray:
    """(2, T): right candidates, and all candidates, that score the threshold or more."""
    return np.stack(
        [
            len(scores) - np.searchsorted(scores, thresholds.astype(one.candidates.dtype))
            for scores in (one.right, one.candidates)
        ]
    )


def _histogram(scores: np.ndarray) -> np.ndarray:
    inner = np.searchsorted(scores, BIN_EDGES[1:-1].astype(scores.dtype))
    return np.diff(inner, prepend=0, append=len(scores))


def evenly_spread(length: int, number: int) -> np.ndarray:
    """Up to so many indices, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, number)).astype(np.int64))
