"""Metrics of multi-label classification: those of the paper's tables 4 to 12, as functions of scores and labels.

Legend: N images, C classes, P positive labels, TP true positives. A label is positive, negative or unknown; what is
unknown enters no count, for its class alone. "Predicted" means predicted and known. All results lie in [0, 1], and what
is undefined (the average precision of a class without positives, say) is NaN, never 0.

Scores are an (N, C) tensor, or a list of row blocks (n_i, C) in the order of the images: predictions as they came from
the batches of a data loader, which no function here copies as a whole. Classes are worked on a few at a time, so memory
beyond the scores stays below about 0.3 GB at any number of classes.

    mAP = average_precision(rank_positives(scores, targets)).nanmean()
    table_8 = precision_recall_f1(counts_at_threshold(scores, targets, 0.8))
    top_3 = precision_recall_f1(counts_of_predictions(top_classes(scores, 3), targets))
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .score_curves import ClassScores

Scores = Tensor | Sequence[Tensor]
Indices = Tensor | tuple[Tensor, Tensor]

# Classes are taken together up to so many scores.
BLOCK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class SparseLabels:
    """Labels of N images over C classes, as sorted keys ``class * N + image``; :meth:`from_indices` builds them.

    Attributes:
        positive: (P,) int64 keys.
        unknown: int64 keys of the unknown labels of images that are not partial.
        partial: (N,) bool, images of which only what is listed is known.
        known: int64 keys of the known labels, positive and negative, of partial images.
    """

    num_images: int
    num_classes: int
    positive: np.ndarray
    unknown: np.ndarray
    partial: np.ndarray
    known: np.ndarray

    @classmethod
    def from_indices(
        cls,
        num_images: int,
        num_classes: int,
        positive: Indices,
        negative: Indices | None = None,
        unknown: Indices | None = None,
        partial: Tensor | None = None,
    ) -> 'SparseLabels':
        """
        Args:
            positive, negative, unknown: images and classes, a pair of int tensors of one length. Where they overlap,
                positive wins over unknown and unknown over negative; repetitions count once.
            partial: (N,) bool. Labels in none of the lists are unknown in these images, and negative in all others.

        Raises:
            ValueError: an image or a class is out of range, there is none, or ``partial`` has another length.
        """
        if num_images < 1 or num_classes < 1:
            raise ValueError(f'num_images={num_images}, num_classes={num_classes}: there is nothing to measure')
        keys = {}
        for name, indices in dict(positive=positive, negative=negative, unknown=unknown).items():
            if indices is None:
                indices = torch.empty(2, 0, dtype=torch.int64)
            image, label = (index.to('cpu', torch.int64).numpy() for index in indices)
            for index, what, limit in ((image, 'image', num_images), (label, 'class', num_classes)):
                if index.size and not 0 <= index.min() <= index.max() < limit:
                    wrong = index[(index < 0) | (index >= limit)][0]
                    raise ValueError(f'{name} holds {what} {wrong}, but there are {limit}, numbered from 0')
            keys[name] = np.unique(label * num_images + image)
        if partial is not None and partial.shape != (num_images,):
            raise ValueError(f'partial has the shape {tuple(partial.shape)}, but there are num_images={num_images}')
        unknown = np.setdiff1d(keys['unknown'], keys['positive'], assume_unique=True)
        if partial is None or not partial.any():
            partial, known = np.zeros(num_images, dtype=bool), unknown[:0]
        else:
            partial = partial.bool().cpu().numpy()
            known = np.union1d(keys['positive'], np.setdiff1d(keys['negative'], unknown, assume_unique=True))
            known = known[partial[known % num_images]]
            unknown = unknown[~partial[unknown % num_images]]
        return cls(num_images, num_classes, keys['positive'], unknown, partial, known)

    @classmethod
    def from_dense(cls, targets: Tensor) -> 'SparseLabels':
        """
        Args:
            targets: (N, C) of 1, 0 and -1 (unknown), any dtype that numpy has.

        Raises:
            ValueError: another shape or other values.
        """
        if targets.ndim != 2:
            raise ValueError(
                f'targets have the shape {tuple(targets.shape)}, but one row an image and one column a '
                'class are expected'
            )
        dense = targets.cpu().numpy().reshape(-1)
        listed = np.flatnonzero(dense != 0)
        values = dense[listed]
        wrong = values[(values != 1) & (values != -1)]
        if len(wrong):
            raise ValueError(f'targets hold {wrong[0]}, but only 1, 0 and -1 (unknown) are labels')
        indices = torch.from_numpy(np.stack(np.divmod(listed, targets.shape[1])))
        num_images, num_classes = targets.shape
        return cls.from_indices(
            num_images, num_classes, positive=indices[:, values == 1], unknown=indices[:, values == -1]
        )

    @property
    def num_positive(self) -> Tensor:
        """(C,) int64."""
        return torch.from_numpy(np.diff(self.starts(self.positive)))

    @property
    def num_known(self) -> Tensor:
        """(C,) int64, positive and negative labels."""
        complete = self.num_images - np.count_nonzero(self.partial)
        return torch.from_numpy(complete - np.diff(self.starts(self.unknown)) + np.diff(self.starts(self.known)))

    def is_positive(self, keys: np.ndarray) -> np.ndarray:
        return _contains(self.positive, keys)

    def is_known(self, keys: np.ndarray) -> np.ndarray:
        partial = self.partial[keys % self.num_images]
        return np.where(partial, _contains(self.known, keys), ~_contains(self.unknown, keys))

    def starts(self, keys: np.ndarray) -> np.ndarray:
        """(C + 1,) int64: the keys of class c are those from element c to before element c + 1."""
        return np.searchsorted(keys, np.arange(self.num_classes + 1) * self.num_images)


Targets = Tensor | SparseLabels


class Ranking(NamedTuple):
    """How far down the list one has to go for each positive label, in G groups: the classes, or all of them as one.

    Attributes:
        num_groups: G.
        group: (P,) int64, ascending.
        score: (P,) of the positives, ascending in their group.
        true_positives: (P,) int64, positives of the group that score as much or more.
        predicted: (P,) int64, known labels of the group that score as much or more.
    """

    num_groups: int
    group: np.ndarray
    score: np.ndarray
    true_positives: np.ndarray
    predicted: np.ndarray


class Counts(NamedTuple):
    """True positives, predicted labels and positive labels of each class: (C,) int64."""

    true_positives: Tensor
    predicted: Tensor
    positives: Tensor


def rank_positives(scores: Scores, targets: Targets, micro: bool = False) -> Ranking:
    """What average precision and the best F1 are computed from.

    Equal scores fall on the same side of any threshold, so they share the rank of the last of them, as in scikit-learn.

    Args:
        scores: (N, C) finite numbers, or their row blocks.
        targets: (N, C) of 1, 0 and -1 (unknown), or :class:`SparseLabels`.
        micro: rank all pairs of image and class in one list, instead of a list for each class.

    Raises:
        ValueError: shapes differ, or a score is not finite.
    """
    blocks, labels = _checked(scores, targets)
    score = _scores_at(blocks, labels.positive, labels.num_images)
    true_positives, predicted = np.zeros((2, len(score)), dtype=np.int64)
    if micro:
        score.sort()
        for ascending in _sorted_scores(blocks, labels, together=True):
            predicted += len(ascending) - np.searchsorted(ascending, score)
        true_positives += len(score) - np.searchsorted(score, score)
        return Ranking(1, np.zeros_like(predicted), score, true_positives, predicted)
    starts = labels.starts(labels.positive)
    for i, ascending in enumerate(_sorted_scores(blocks, labels, together=False)):
        members = slice(starts[i], starts[i + 1])
        score[members].sort()
        predicted[members] = len(ascending) - np.searchsorted(ascending, score[members])
        true_positives[members] = len(score[members]) - np.searchsorted(score[members], score[members])
    return Ranking(labels.num_classes, labels.positive // labels.num_images, score, true_positives, predicted)


def class_scores(scores: Scores, targets: Targets) -> Iterator[ClassScores]:
    """The known scores of each class, and which of them are of positives, one class after the other.

    Args:
        scores, targets: as for :func:`rank_positives`; scores are 0 or more.
    """
    blocks, labels = _checked(scores, targets)
    positive = _scores_at(blocks, labels.positive, labels.num_images)
    starts = labels.starts(labels.positive)
    for i, ascending in enumerate(_sorted_scores(blocks, labels, together=False)):
        right = np.sort(positive[starts[i] : starts[i + 1]])
        yield ClassScores(ascending[np.searchsorted(ascending, 0) :], right, len(right))


def positive_scores(scores: Scores, targets: Targets) -> np.ndarray:
    """(P,) scores of the positive labels, class after class."""
    blocks, labels = _checked(scores, targets)
    return _scores_at(blocks, labels.positive, labels.num_images)


def brier_scores(scores: Scores, targets: Targets) -> Tensor:
    """(N,) float64: the sum over an image's known labels of (p - y)^2, y being 1 or 0 (Brier, 1950)."""
    blocks, labels = _checked(scores, targets)
    total = np.concatenate([np.einsum('ij,ij->i', block, block, dtype=np.float64) for block in blocks])
    total[labels.partial] = 0
    for keys, change in (
        (labels.known, lambda p: p * p),
        (labels.unknown, lambda p: -p * p),
        (labels.positive, lambda p: 1 - 2 * p),
    ):
        p = _scores_at(blocks, keys, labels.num_images).astype(np.float64)
        total += np.bincount(keys % labels.num_images, change(p), minlength=labels.num_images)
    return torch.from_numpy(total)


def average_precision(ranking: Ranking) -> Tensor:
    """Mean over the positives of the precision at the score of each: the area under the precision-recall steps.

    The mAP of tables 4 to 11, and the macro mAP of table 7, is the mean of this over the classes that have a positive.
    The micro mAP of table 7 is its only element for a micro ranking. Ties are treated as in scikit-learn's
    ``average_precision_score``.

    Returns:
        (G,) float64, NaN for a group without positives.
    """
    precision = ranking.true_positives / ranking.predicted
    sums = np.bincount(ranking.group, precision, minlength=ranking.num_groups)
    positives = np.bincount(ranking.group, minlength=ranking.num_groups)
    return torch.from_numpy(np.divide(sums, positives, out=np.full(len(sums), np.nan), where=positives > 0))


def official_mean_average_precision(ranking: Ranking) -> float:
    """mAP as the official code defines it: over all classes, a class without positives counting 0.

    Its AP divides by P + 1e-8, and ranks equal scores in whichever order its sort leaves them; here they are ranked as
    in :func:`rank_positives`. Where every class has a positive it equals mAP to within 1e-8.
    """
    positives = torch.from_numpy(np.bincount(ranking.group, minlength=ranking.num_groups)).double()
    return (average_precision(ranking).nan_to_num() * positives / (positives + 1e-8)).mean().item()


def best_f1(ranking: Ranking) -> tuple[Tensor, Tensor]:
    """The highest F1 = 2 TP / (predicted + P) that one threshold can reach in each group, and that threshold.

    The threshold is the score of a positive label, the highest one where several do as well. What scores as much or
    more is predicted.

    Returns:
        F1 and threshold, (G,) float64 both, NaN for a group without positives.
    """
    starts = np.searchsorted(ranking.group, np.arange(ranking.num_groups + 1))
    positives = np.diff(starts)
    f1 = 2 * ranking.true_positives / (ranking.predicted + positives[ranking.group])
    best, threshold = np.full((2, ranking.num_groups), np.nan)
    for group in positives.nonzero()[0]:
        last = starts[group + 1] - 1
        index = last - f1[starts[group] : starts[group + 1]][::-1].argmax()
        best[group], threshold[group] = f1[index], ranking.score[index]
    return torch.from_numpy(best), torch.from_numpy(threshold)


def counts_at_threshold(scores: Scores, targets: Targets, thr: float | Tensor) -> Counts:
    """Counts when every class that scores ``thr`` or more is predicted.

    Args:
        scores, targets: as for :func:`rank_positives`.
        thr: one threshold, or (C,), one a class, such as those of :func:`best_f1`. It is rounded to the scores' dtype.

    Raises:
        ValueError: as of :func:`rank_positives`, or ``thr`` has another number of elements.
    """
    blocks, labels = _checked(scores, targets)
    dtype = blocks[0].dtype
    thr = torch.as_tensor(thr, dtype=torch.float64).cpu().numpy().astype(dtype)
    if thr.ndim and thr.shape != (labels.num_classes,):
        raise ValueError(
            f'thr has the shape {thr.shape}, but a single number or one for each of {labels.num_classes} '
            'classes is expected'
        )
    thr = np.broadcast_to(thr, labels.num_classes)
    predicted = np.zeros(labels.num_classes, dtype=np.int64)
    for image, block in _numbered(blocks):
        partial = labels.partial[image : image + len(block)]
        predicted += np.count_nonzero((block[~partial] if partial.any() else block) >= thr, axis=0)

    def count(keys: np.ndarray) -> np.ndarray:
        label = keys // labels.num_images
        reached = _scores_at(blocks, keys, labels.num_images) >= thr[label]
        return np.bincount(label[reached], minlength=labels.num_classes)

    predicted += count(labels.known) - count(labels.unknown)
    return Counts(torch.from_numpy(count(labels.positive)), torch.from_numpy(predicted), labels.num_positive)


def top_classes(scores: Scores, k: int, thr: float | None = None) -> Tensor:
    """The ``k`` classes of the highest scores of each image; among equal scores those of the lower indices.

    Args:
        scores: as for :func:`rank_positives`.
        k: 1 or more; all classes are taken where there are fewer.
        thr: what scores less is not predicted. It is rounded to the scores' dtype.

    Returns:
        (N, min(k, C)) int64, ascending class indices, -1 in place of those below ``thr``.

    Raises:
        ValueError: a score is not finite, or ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f'k={k} of top_classes must be 1 or more')
    top = []
    for block in _row_blocks(scores):
        num_classes = block.shape[1]
        k = min(k, num_classes)
        size = max(1, BLOCK_ELEMENTS // max(num_classes, 1))
        for rows in (block[first : first + size] for first in range(0, len(block), size)):
            last = np.partition(rows, num_classes - k, axis=1)[:, num_classes - k, None]
            chosen = rows >= last
            tied = np.count_nonzero(chosen, axis=1) > k
            if tied.any():
                above, equal = rows[tied] > last[tied], rows[tied] == last[tied]
                vacant = k - np.count_nonzero(above, axis=1)[:, None]
                chosen[tied] = above | equal & (equal.cumsum(axis=1) <= vacant)
            classes = np.flatnonzero(chosen).reshape(-1, k) % num_classes
            if thr is not None:
                classes[np.take_along_axis(rows, classes, axis=1) < rows.dtype.type(thr)] = -1
            top.append(classes)
    return torch.from_numpy(np.concatenate(top))


def counts_of_predictions(classes: Tensor, targets: Targets) -> Counts:
    """Counts when the classes named for each image are predicted; for "top 3" those of :func:`top_classes`.

    The top 3 are chosen among all classes, as they would be in use; those of them that are unknown are not counted.

    Args:
        classes: (N, k) int, each row without repetitions but of -1, which is no class.
        targets: as for :func:`rank_positives`.
    """
    labels = targets if isinstance(targets, SparseLabels) else SparseLabels.from_dense(targets)
    if len(classes) != labels.num_images:
        raise ValueError(f'classes name predictions for {len(classes)} images, but targets have {labels.num_images}')
    image = np.arange(labels.num_images)[:, None]
    keys = classes.cpu().numpy().astype(np.int64) * labels.num_images + image
    keys = np.sort(keys[keys >= 0])
    true_positives, predicted = (
        torch.from_numpy(np.bincount(chosen // labels.num_images, minlength=labels.num_classes))
        for chosen in (keys[labels.is_positive(keys)], keys[labels.is_known(keys)])
    )
    return Counts(true_positives, predicted, labels.num_positive)


def class_precision_recall(counts: Counts) -> tuple[Tensor, Tensor]:
    """Precision TP / predicted and recall TP / P of each class, (C,) float64.

    The precision of a class that is never predicted is 0, as with ``zero_division=0`` in scikit-learn. Both are NaN for
    a class without positives, of which neither says anything.
    """
    positives = counts.positives.double()
    precision = counts.true_positives / counts.predicted.clamp(min=1).double()
    return precision.masked_fill(positives == 0, torch.nan), counts.true_positives / positives


def precision_recall_f1(counts: Counts, classes: Tensor | None = None) -> dict[str, float]:
    """CP, CR, CF1, OP, OR and OF1 of tables 8 to 11.

    CP and CR are means of :func:`class_precision_recall` over classes, and CF1 is their harmonic mean,
    2 CP CR / (CP + CR), which is not the mean of the classes' F1. OP = sum TP / sum predicted and OR = sum TP / sum P
    are taken over all classes, those without positives too, and OF1 is their harmonic mean; that of the 88.2 and 79.2
    of ASL in table 8 is 83.5, where the paper prints 81.8. OP is 0 when nothing is predicted, a harmonic mean is 0 when
    both its terms are, and without any positive all but OP are NaN.

    Args:
        classes: (C,) bool, the classes that CP and CR are the mean of. Those without positives never are.
    """
    precision, recall = class_precision_recall(counts)
    if classes is not None:
        precision, recall = precision[classes], recall[classes]
    true_positives, predicted, positives = (count.sum().double() for count in counts)
    results = {}
    for letter, p, r in (
        ('C', precision.nanmean(), recall.nanmean()),
        ('O', true_positives / predicted.clamp(min=1), true_positives / positives),
    ):
        p, r = p.item(), r.item()
        results.update({f'{letter}P': p, f'{letter}R': r, f'{letter}F1': 2 * p * r / (p + r) if p + r != 0 else 0.0})
    return results


def class_f1(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """F1 = 2 TP / (predicted + P) of each class when every image has one label and one prediction.

    The macro F1 of table 12 is the mean of this over the classes that occur among labels or predictions, as in
    scikit-learn's ``f1_score``.

    Args:
        predicted, target: (N,) int, in [0, C).

    Returns:
        (C,) float64, NaN for a class that occurs in neither.

    Raises:
        ValueError: lengths differ, or a class is out of range.
    """
    if len(predicted) != len(target):
        raise ValueError(f'predicted holds {len(predicted)} classes, but target {len(target)}; each image has one')
    for name, classes in dict(predicted=predicted, target=target).items():
        wrong = classes[(classes < 0) | (classes >= num_classes)]
        if len(wrong):
            raise ValueError(f'{name} holds class {wrong[0].item()}, but there are {num_classes}, numbered from 0')
    true_positives, predicted, positives = (
        classes.long().bincount(minlength=num_classes) for classes in (target[predicted == target], predicted, target)
    )
    return 2 * true_positives.double() / (predicted + positives)


def _row_blocks(scores: Scores) -> list[np.ndarray]:
    blocks = [scores] if isinstance(scores, Tensor) else list(scores)
    dtype = torch.float64 if any(block.dtype == torch.float64 for block in blocks) else torch.float32
    blocks = [block.detach().to('cpu', dtype).numpy() for block in blocks]
    if not blocks or any(block.ndim != 2 or block.shape[1] != blocks[0].shape[1] for block in blocks):
        raise ValueError(
            f'scores have the shapes {sorted({block.shape for block in blocks})}, but one row an image '
            'and one column a class are expected'
        )
    # A sum is several times as fast as isfinite, and finite only if all its terms are.
    if not all(np.isfinite(block.sum()) or np.isfinite(block).all() for block in blocks):
        raise ValueError('scores hold NaN or infinity')
    return blocks


def _checked(scores: Scores, targets: Targets) -> tuple[list[np.ndarray], SparseLabels]:
    labels = targets if isinstance(targets, SparseLabels) else SparseLabels.from_dense(targets)
    blocks = _row_blocks(scores)
    shape, expected = (sum(map(len, blocks)), blocks[0].shape[1]), (labels.num_images, labels.num_classes)
    if shape != expected:
        raise ValueError(f'scores have the shape {shape}, but targets have {expected}')
    return blocks, labels


def _contains(members: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which keys are among the members, which are sorted."""
    if not members.size:
        return np.zeros(len(keys), dtype=bool)
    return members.take(np.searchsorted(members, keys), mode='clip') == keys


def _numbered(blocks: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Row blocks with the number of the first image of each."""
    image = 0
    for block in blocks:
        yield image, block
        image += len(block)


def _scores_at(blocks: Sequence[np.ndarray], keys: np.ndarray, num_images: int) -> np.ndarray:
    """Scores of ``class * N + image``, in the order of the keys."""
    score = np.empty(len(keys), dtype=blocks[0].dtype)
    if not keys.size:
        return score
    label, image = np.divmod(keys, num_images)
    if len(blocks) == 1:
        return blocks[0][image, label]
    order = image.argsort(kind='stable')
    label, image = label[order], image[order]
    bounds = np.searchsorted(image, np.cumsum([0] + [len(block) for block in blocks]))
    for (first, block), start, end in zip(_numbered(blocks), bounds, bounds[1:]):
        score[order[start:end]] = block[image[start:end] - first, label[start:end]]
    return score


def _sorted_scores(blocks: Sequence[np.ndarray], labels: SparseLabels, together: bool) -> Iterator[np.ndarray]:
    """Scores in ascending order, of one class after the other, or of as many together as memory allows.

    What is unknown is left out, or is -inf.
    """
    complete = ~labels.partial
    position = complete.cumsum() - 1
    unknown_starts, known_starts = labels.starts(labels.unknown), labels.starts(labels.known)
    known = _scores_at(blocks, labels.known, labels.num_images)
    size = max(1, BLOCK_ELEMENTS // labels.num_images)
    for first in range(0, labels.num_classes, size):
        last = min(first + size, labels.num_classes)
        values = np.empty((last - first, np.count_nonzero(complete)), dtype=blocks[0].dtype)  # (B, images)
        end = 0
        for image, block in _numbered(blocks):
            rows = block[:, first:last]
            if labels.partial.any():
                rows = rows[complete[image : image + len(block)]]
            values[:, end : end + len(rows)] = rows.T
            end += len(rows)
        label, image = np.divmod(labels.unknown[unknown_starts[first] : unknown_starts[last]], labels.num_images)
        values[label - first, position[image]] = -np.inf
        for start, stop in [(first, last)] if together else [(i, i + 1) for i in range(first, last)]:
            group = values[start - first : stop - first].reshape(-1)
            if known.size:
                group = np.concatenate((group, known[known_starts[start] : known_starts[stop]]))
            group.sort()
            yield group
