"""Cases by hand, scikit-learn, and counting one by one, against the metric functions."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, precision_recall_fscore_support

from asl_mmdet.evaluation import (
    Counts,
    SparseLabels,
    average_precision,
    best_f1,
    class_f1,
    class_precision_recall,
    counts_at_threshold,
    counts_of_predictions,
    multi_label,
    official_mean_average_precision,
    precision_recall_f1,
    rank_positives,
    top_classes,
)

NAN = float('nan')


@pytest.fixture(autouse=True)
def classes_one_and_two_at_a_time(monkeypatch):
    # Small enough for several blocks of classes in every test, also where one class is more than a block.
    monkeypatch.setattr(multi_label, 'BLOCK_ELEMENTS', 40)


@st.composite
def evaluations(draw, unknown=False):
    """Scores (N, C) on a grid of 2 to 1001 values, so with many ties or few; targets (N, C) of 1, 0 and perhaps -1."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_images, num_classes = draw(st.integers(1, 40)), draw(st.integers(1, 7))
    steps = draw(st.sampled_from((1, 3, 10, 1000)))
    scores = torch.randint(0, steps + 1, (num_images, num_classes), generator=generator) / steps
    shares = torch.rand(2, num_images, num_classes, generator=generator)
    targets = (shares[0] < draw(st.sampled_from((0.05, 0.3, 0.9)))).long()
    if unknown:
        targets[shares[1] < draw(st.sampled_from((0.1, 0.6)))] = -1
    return scores, targets


def row_blocks(scores):
    return list(scores.split((1, *[3] * ((len(scores) - 1) // 3), (len(scores) - 1) % 3)))


def known(scores, targets, column):
    mask = targets[:, column] != -1
    return targets[mask, column].numpy(), scores[mask, column].numpy()


# ---------------------------------------------------------------------------------------------------- average precision


def test_average_precision_by_hand():
    # Class 0: positives at ranks 1 and 3 of 4: (1 + 2/3) / 2. Class 1: ranks 2 and 4: (1/2 + 2/4) / 2. Class 2: none.
    scores = torch.tensor([[0.9, 0.9, 0.1], [0.8, 0.8, 0.2], [0.7, 0.7, 0.3], [0.6, 0.6, 0.4]])
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    ap = average_precision(rank_positives(scores, targets))
    assert ap.tolist() == pytest.approx([5 / 6, 1 / 2, NAN], nan_ok=True)
    # All pairs: .9 .9 | .8 .8 | .7 .7 | .6 .6 hold 1 positive each, with 1/2, 2/4, 3/6, 4/8.
    assert average_precision(rank_positives(scores, targets, micro=True)).tolist() == pytest.approx([0.5])


def test_equal_scores_share_the_last_rank():
    # The positive shares its score with two negatives, whatever their order: precision 1/3, not 1 or 1/2.
    for order in ([1, 0, 0], [0, 1, 0], [0, 0, 1]):
        ranking = rank_positives(torch.full((3, 1), 0.5), torch.tensor(order)[:, None])
        assert average_precision(ranking).tolist() == pytest.approx([1 / 3])


def test_unknown_labels_are_not_there():
    # Without the unknown .8 the positives lie at ranks 1 and 2 of 3; as a negative it would make (1 + 2/3) / 2.
    scores, targets = torch.tensor([[0.9], [0.8], [0.7], [0.1]]), torch.tensor([[1], [-1], [1], [0]])
    assert average_precision(rank_positives(scores, targets)).tolist() == [1.0]
    assert average_precision(rank_positives(scores, targets, micro=True)).tolist() == [1.0]


@settings(max_examples=60, deadline=None)
@given(evaluations(unknown=True))
def test_average_precision_is_that_of_scikit_learn(evaluation):
    scores, targets = evaluation
    ap = average_precision(rank_positives(row_blocks(scores), targets))
    for column in range(targets.shape[1]):
        truth, score = known(scores, targets, column)
        expected = average_precision_score(truth, score) if truth.any() else NAN
        assert ap[column].item() == pytest.approx(expected, nan_ok=True)
    mask = targets != -1
    expected = average_precision_score(targets[mask], scores[mask]) if (targets == 1).any() else NAN
    micro = average_precision(rank_positives(row_blocks(scores), targets, micro=True))
    assert micro.tolist() == pytest.approx([expected], nan_ok=True)


def test_official_definition():
    # The official code's sum over classes with P + 1e-8, here on scores without ties, one class without positives.
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 6, generator=generator, dtype=torch.float64)
    targets = (torch.rand(200, 6, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.02, 0.9, 0.0])).long()
    expected = 0.0
    for score, target in zip(scores.T, targets.T):
        hits = target[score.argsort(descending=True)]
        ranks = torch.arange(1, 201).double()
        expected += ((hits.cumsum(0) / ranks)[hits == 1].sum() / (hits.sum() + 1e-8)).item() / 6
    ranking = rank_positives(scores, targets)
    assert official_mean_average_precision(ranking) == pytest.approx(expected, rel=1e-9)
    mean = average_precision(ranking).nanmean().item()
    assert official_mean_average_precision(ranking) == pytest.approx(mean * 5 / 6)


def test_float64_scores_keep_their_order():
    scores = torch.tensor([[0.5], [0.5 + 1e-12]], dtype=torch.float64)
    assert average_precision(rank_positives(scores, torch.tensor([[0], [1]]))).tolist() == [1.0]
    with_float32 = [scores, torch.zeros(1, 1)]
    assert average_precision(rank_positives(with_float32, torch.tensor([[0], [1], [0]]))).tolist() == [1.0]


def test_finite_scores_whose_sum_is_not():
    scores = torch.tensor([[3e38], [2e38], [1e38]])
    assert average_precision(rank_positives(scores, torch.tensor([[0], [1], [0]]))).tolist() == [0.5]


# --------------------------------------------------------------------------------------------- precision, recall and F1


def test_class_and_overall_figures_by_hand():
    # Class 0: 2 predicted, 1 right, 1 positive. Class 1: 1 predicted, 1 right, 3 positives. Class 2: positive, never
    # predicted: precision 0. Class 3: no positive, 1 predicted: no part in CP, but in OP.
    counts = Counts(torch.tensor([1, 1, 0, 0]), torch.tensor([2, 1, 0, 1]), torch.tensor([1, 3, 1, 0]))
    results = precision_recall_f1(counts)
    assert results == pytest.approx(
        dict(
            CP=(1 / 2 + 1 + 0) / 3,
            CR=(1 + 1 / 3 + 0) / 3,
            CF1=2 * (1 / 2) * (4 / 9) / (1 / 2 + 4 / 9),
            OP=2 / 4,
            OR=2 / 5,
            OF1=2 * 0.5 * 0.4 / 0.9,
        )
    )
    results = precision_recall_f1(counts, torch.tensor([True, True, False, False]))
    assert (results['CP'], results['CR'], results['OP']) == pytest.approx((3 / 4, 2 / 3, 2 / 4))


def test_cf1_of_table_8_is_the_harmonic_mean_of_cp_and_cr():
    counts = Counts(torch.tensor([873 * 764]), torch.tensor([1000 * 764]), torch.tensor([1000 * 873]))
    assert precision_recall_f1(counts)['CF1'] == pytest.approx(0.815, abs=1e-3)
    # Two classes of F1 2/3 and 2/3 whose CP and CR are both 3/4: the mean of F1 would be 2/3.
    counts = Counts(torch.tensor([1, 1]), torch.tensor([1, 2]), torch.tensor([2, 1]))
    assert precision_recall_f1(counts)['CF1'] == pytest.approx(3 / 4)


def test_nothing_predicted_and_nothing_positive():
    nothing = precision_recall_f1(Counts(torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor([2, 1])))
    assert nothing == dict(CP=0, CR=0, CF1=0, OP=0, OR=0, OF1=0)
    empty = precision_recall_f1(Counts(torch.tensor([0]), torch.tensor([3]), torch.tensor([0])))
    assert empty == pytest.approx(dict(CP=NAN, CR=NAN, CF1=NAN, OP=0, OR=NAN, OF1=NAN), nan_ok=True)


def test_precision_and_recall_are_float64():
    shares = class_precision_recall(Counts(*torch.tensor([[1], [3], [7]])))
    assert [share.tolist() for share in shares] == [[1 / 3], [1 / 7]]


def test_threshold_belongs_to_the_predicted():
    scores, targets = torch.tensor([[0.3], [0.5], [0.7]]), torch.tensor([[1], [1], [0]])
    # 0.3 and 0.7 are no float32 numbers: the threshold is rounded as the scores are.
    predicted = [counts_at_threshold(scores, targets, thr).predicted.item() for thr in (0.3, 0.5, 0.50001, 0.7, 0.8)]
    assert predicted == [3, 2, 1, 1, 0]


@settings(max_examples=60, deadline=None)
@given(evaluations(unknown=True), st.sampled_from((0.25, 1 / 3, 0.5, 1.0)))
def test_counts_at_a_threshold_are_those_of_scikit_learn(evaluation, thr):
    scores, targets = evaluation
    counts = counts_at_threshold(row_blocks(scores), targets, thr)
    precision, recall = class_precision_recall(counts)
    for column in range(targets.shape[1]):
        truth, score = known(scores, targets, column)
        expected = (NAN, NAN)
        if truth.any():
            expected = precision_recall_fscore_support(
                truth, score >= np.float32(thr), average='binary', zero_division=0
            )[:2]
        assert (precision[column].item(), recall[column].item()) == pytest.approx(expected, nan_ok=True)
    mask = targets != -1
    if (targets == 1).any():
        expected = precision_recall_fscore_support(
            targets[mask], scores[mask] >= torch.tensor(thr), average='binary', zero_division=0
        )
        results = precision_recall_f1(counts)
        assert [results[name] for name in ('OP', 'OR', 'OF1')] == pytest.approx(expected[:3])


def test_top_classes_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.5, 0.5, 0.5, 0.5], [0.2, 0.8, 0.2, 0.2], [0.0, 0.0, 0.0, 1.0]])
    assert top_classes(scores, 2).tolist() == [[1, 3], [0, 1], [0, 1], [0, 3]]
    assert top_classes([scores[:1], scores[1:]], 9).tolist() == [[0, 1, 2, 3]] * 4
    # 0.7 is no float32 number: the threshold is rounded as the scores are.
    assert top_classes(scores, 2, 0.7).tolist() == [[1, 3], [-1, -1], [-1, 1], [-1, 3]]


@settings(max_examples=60, deadline=None)
@given(evaluations(), st.integers(1, 8))
def test_top_classes_are_the_first_of_a_stable_sort(evaluation, k):
    scores, _ = evaluation
    expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    assert top_classes(scores, k).equal(expected)


def test_a_missing_prediction_counts_nowhere():
    counts = counts_of_predictions(torch.tensor([[-1, 0], [-1, -1]]), torch.tensor([[1, 0], [1, 1]]))
    assert [count.tolist() for count in counts] == [[1, 0], [1, 0], [2, 1]]


def test_unknown_classes_of_the_top_are_neither_right_nor_wrong():
    counts = counts_of_predictions(torch.tensor([[0, 1], [1, 2]]), torch.tensor([[1, -1, 0], [0, 1, 0]]))
    assert [count.tolist() for count in counts] == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]


@settings(max_examples=60, deadline=None)
@given(evaluations(unknown=True), st.integers(1, 4), st.sampled_from((None, 0.25, 1 / 3, 0.5)))
def test_counts_of_the_top_are_those_of_scikit_learn(evaluation, k, thr):
    scores, targets = evaluation
    predicted = torch.zeros_like(targets).scatter(1, top_classes(scores, k), 1)
    predicted *= scores >= torch.tensor(thr or 0.0)
    counts = counts_of_predictions(top_classes(scores, k, thr), targets)
    precision, recall = class_precision_recall(counts)
    for column in range(targets.shape[1]):
        truth, predictions = known(predicted, targets, column)
        if truth.any():
            expected = precision_recall_fscore_support(truth, predictions, average='binary', zero_division=0)[:2]
            assert (precision[column].item(), recall[column].item()) == pytest.approx(expected)
        else:
            assert counts.predicted[column] == predictions.sum()


@settings(max_examples=60, deadline=None)
@given(evaluations(unknown=True))
def test_no_threshold_gives_a_higher_f1(evaluation):
    scores, targets = evaluation
    for micro in (False, True):
        f1, thr = best_f1(rank_positives(row_blocks(scores), targets, micro))
        groups = (
            [(targets[targets != -1].numpy(), scores[targets != -1].numpy())]
            if micro
            else [known(scores, targets, column) for column in range(targets.shape[1])]
        )
        for (truth, score), best, threshold in zip(groups, f1.tolist(), thr.tolist()):
            if not truth.any():
                assert np.isnan(best) and np.isnan(threshold)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                precision, recall, thresholds = precision_recall_curve(truth, score)
            every_f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            assert best == pytest.approx(every_f1.max())
            assert f1_score(truth, score >= np.float32(threshold)) == pytest.approx(best)
    counts = counts_at_threshold(scores, targets, best_f1(rank_positives(scores, targets))[1])
    f1 = 2 * counts.true_positives.double() / (counts.predicted + counts.positives)
    assert f1.tolist() == pytest.approx(best_f1(rank_positives(scores, targets))[0].tolist(), nan_ok=True)


def test_best_threshold_is_the_highest_of_equals():
    # At .9: TP 1 of 1 predicted, F1 2/3. At .6: TP 2 of 4 predicted, F1 2/3.
    scores, targets = torch.tensor([[0.9], [0.8], [0.7], [0.6]]), torch.tensor([[1], [0], [0], [1]])
    f1, thr = best_f1(rank_positives(scores, targets))
    assert (f1.item(), thr.item()) == pytest.approx((2 / 3, 0.9))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 9))
def test_macro_f1_of_single_labels_is_that_of_scikit_learn(seed, num_images, num_classes):
    predicted, target = torch.randint(0, num_classes, (2, num_images), generator=torch.Generator().manual_seed(seed))
    expected = f1_score(target, predicted, average='macro', zero_division=0)
    # Two classes more, of which nothing is known, do not lower the mean.
    assert class_f1(predicted, target, num_classes + 2).nanmean().item() == pytest.approx(expected)


# --------------------------------------------------------------------------------------------------------------- labels


@settings(max_examples=60, deadline=None)
@given(evaluations(unknown=True), st.integers(0, 2**31))
def test_listed_labels_give_what_dense_ones_give(evaluation, seed):
    scores, targets = evaluation
    partial = torch.rand(len(targets), generator=torch.Generator().manual_seed(seed)) < 0.5
    lists = [(targets == value).nonzero().T for value in (1, 0, -1)]
    labels = SparseLabels.from_indices(*targets.shape, *lists, partial=partial)
    assert labels.num_positive.equal((targets == 1).sum(dim=0))
    assert labels.num_known.equal((targets != -1).sum(dim=0))
    for micro in (False, True):
        expected, ranking = rank_positives(scores, targets, micro), rank_positives(row_blocks(scores), labels, micro)
        assert all(np.array_equal(a, b) for a, b in zip(expected, ranking))
    for expected, counts in (
        (counts_at_threshold(scores, targets, 0.5), counts_at_threshold(scores, labels, 0.5)),
        (counts_of_predictions(top_classes(scores, 2), targets), counts_of_predictions(top_classes(scores, 2), labels)),
    ):
        assert all(a.equal(b) for a, b in zip(expected, counts))


def test_only_what_is_listed_is_known_of_partial_images():
    labels = SparseLabels.from_indices(
        2,
        4,
        positive=torch.tensor([[0, 1], [0, 0]]),
        negative=torch.tensor([[0, 0, 1], [1, 2, 3]]),
        unknown=torch.tensor([[0, 1], [2, 1]]),
        partial=torch.tensor([True, False]),
    )
    # Image 0: 1 positive, 1 negative, 2 contested, 3 untagged. Image 1: only class 1 is unknown.
    assert labels.num_known.tolist() == [2, 1, 1, 1]
    counts = counts_at_threshold(torch.ones(2, 4), labels, 0.5)
    assert [count.tolist() for count in counts] == [[2, 0, 0, 0], [2, 1, 1, 1], [2, 0, 0, 0]]


def test_positive_wins_over_unknown_and_repetitions_count_once():
    labels = SparseLabels.from_indices(
        1, 3, torch.tensor([[0, 0], [1, 1]]), negative=torch.tensor([[0], [1]]), unknown=torch.tensor([[0], [1]])
    )
    assert labels.num_positive.tolist() == [0, 1, 0] and labels.num_known.tolist() == [1, 1, 1]


# ---------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: SparseLabels.from_dense(torch.tensor([[0, 2]])), 'targets hold 2'),
        (lambda: SparseLabels.from_dense(torch.tensor([[0.5]])), 'targets hold 0.5'),
        (lambda: SparseLabels.from_dense(torch.tensor([[NAN]])), 'targets hold nan'),
        (lambda: SparseLabels.from_dense(torch.tensor([0, 1])), r'shape \(2,\)'),
        (lambda: SparseLabels.from_dense(torch.empty(0, 3)), 'nothing to measure'),
        (
            lambda: SparseLabels.from_indices(2, 3, torch.tensor([[0, 1], [2, 3]])),
            'positive holds class 3, but there are 3',
        ),
        (
            lambda: SparseLabels.from_indices(2, 3, torch.tensor([[1, 2], [0, 0]])),
            'positive holds image 2, but there are 2',
        ),
        (lambda: SparseLabels.from_indices(2, 3, torch.tensor([[1, -1], [0, 0]])), 'positive holds image -1'),
        (
            lambda: SparseLabels.from_indices(2, 3, torch.tensor([[0], [0]]), partial=torch.tensor([True])),
            r'partial has the shape \(1,\), but there are num_images=2',
        ),
        (lambda: rank_positives(torch.rand(4, 3), torch.zeros(4, 2)), r'scores have the shape \(4, 3\)'),
        (lambda: rank_positives([torch.rand(2, 3), torch.rand(1, 3)], torch.zeros(4, 3)), r'the shape \(3, 3\)'),
        (lambda: rank_positives([torch.rand(2, 3), torch.rand(2, 2)], torch.zeros(4, 3)), 'scores have the shapes'),
        (lambda: rank_positives([], torch.zeros(4, 3)), 'scores have the shapes'),
        (lambda: rank_positives(torch.tensor([[NAN]]), torch.ones(1, 1)), 'NaN'),
        (lambda: rank_positives([torch.ones(2, 1), torch.tensor([[NAN]])], torch.ones(3, 1)), 'NaN'),
        (lambda: counts_at_threshold(torch.tensor([[float('inf')]]), torch.ones(1, 1), 0.5), 'infinity'),
        (lambda: counts_at_threshold(torch.rand(4, 3), torch.zeros(4, 3), torch.rand(2)), r'thr has the shape \(2,\)'),
        (lambda: top_classes(torch.rand(4, 3), 0), 'k=0'),
        (lambda: top_classes(torch.tensor([[NAN, 1.0]]), 1), 'NaN'),
        (lambda: counts_of_predictions(torch.zeros(3, 1), torch.zeros(4, 3)), '3 images, but targets have 4'),
        (lambda: class_f1(torch.tensor([0, 3]), torch.tensor([0, 1]), 3), 'predicted holds class 3'),
        (lambda: class_f1(torch.tensor([0, 1]), torch.tensor([-1, 1]), 3), 'target holds class -1'),
        (lambda: class_f1(torch.tensor([0]), torch.tensor([0, 1]), 3), 'predicted holds 1 classes, but target 2'),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
