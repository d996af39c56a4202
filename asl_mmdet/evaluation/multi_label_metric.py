"""The metrics of the paper's tables 4 to 12 for mmengine's evaluation loops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmdet.registry import METRICS
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from terminaltables import AsciiTable
from torch import Tensor

from ..structures import GROUND_TRUTH, image_of, require_ground_truth
from .multi_label import (
    SparseLabels,
    average_precision,
    best_f1,
    class_f1,
    class_precision_recall,
    counts_at_threshold,
    counts_of_predictions,
    official_mean_average_precision,
    precision_recall_f1,
    rank_positives,
    top_classes,
)

DECISION_ITEMS = ('CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')
ITEMS = ('mAP', 'mAP_micro', *DECISION_ITEMS, 'macro_F1')


class NothingToMeasureError(ValueError):
    """The labels have no positive, or where negatives are required, no class with both."""


@dataclass
class _Batch:
    """n images: what was predicted and what is true, in arrays, which are pickled without what lies beside them."""

    num_classes: int
    scores: np.ndarray | None  # (n, C) float32
    top: np.ndarray | None  # (n, topk) int32, -1 for those that do not count
    best: np.ndarray | None  # (n,) int32
    labels: dict[str, np.ndarray]  # by the names of GROUND_TRUTH: int32 class indices, image after image
    lengths: dict[str, np.ndarray]  # by the same names: (n,) int32, how many of them belong to each image
    partial: np.ndarray  # (n,) bool
    paths: list[str] | None = None  # n of them, for a report

    def __len__(self) -> int:
        return len(self.partial)

    def head(self, n: int) -> '_Batch':
        arrays = {
            name: None if (array := getattr(self, name)) is None else array[:n]
            for name in ('scores', 'top', 'best', 'partial', 'paths')
        }
        labels = {name: array[: self.lengths[name][:n].sum()] for name, array in self.labels.items()}
        lengths = {name: array[:n] for name, array in self.lengths.items()}
        return _Batch(num_classes=self.num_classes, labels=labels, lengths=lengths, **arrays)


@METRICS.register_module()
class MultiLabelMetric(BaseMetric):
    """mAP, and precision, recall and F1 by class (CP, CR, CF1) and overall (OP, OR, OF1), all in percent.

    Reads ``pred_score`` and the ground truth of :class:`MultiLabelDataSample`. Classes in ``gt_unknown`` count neither
    for nor against an image, nor does any unlisted class of an image whose ``untagged_weight`` is below 1: Open Images
    is evaluated on verified labels only. Definitions, ties and zero divisions are those of
    :mod:`asl_mmdet.evaluation.multi_label`, in short:

    - ``mAP`` (macro): mean over the classes that have a positive. ``mAP_micro``: all image-class pairs as one class.
    - ``CP``, ``CR``: means over those classes, a class that is never predicted having precision 0. ``CF1``: their
      harmonic mean. ``OP``, ``OR``, ``OF1``: from the sums over all classes. Each again for the top 3, as ``CP_top3``.
    - ``macro_F1``: top-1, for images of exactly one label, over the classes that occur (table 12).

    Keys are ``multi-label/mAP``, ``multi-label/CF1_top3`` ... For ``save_best='multi-label/mAP'`` mmengine knows that
    greater is better; for the others add ``rule='greater'``.

    Args:
        items: what to report, of mAP, mAP_micro, CP, CR, CF1, OP, OR, OF1 and macro_F1.
        thr: a class that scores as much or more is predicted, in (0, 1). 0.5 is mmpretrain's default; the official code
            validates above 0.8. None leaves out what depends on it.
        topk: so many classes of each image are predicted for the second set of figures. None leaves them out.
        topk_above_thr: of these, those alone that reach ``thr``. Table 8 has it so: the OP and OR of its top 3 leave
            2.9 OR / OP = 2.1 predictions an image.
        require_negatives: average over the classes that have both a positive and a negative (Open Images).
        official_map: add ``mAP_official``, where a class without positives counts 0.
        best_threshold: add ``best_OF1`` and ``best_OF1_thr``, the highest OF1 that one threshold reaches and that
            threshold (a probability, not in percent), and ``best_F1``, the mean of the highest F1 of each class. They
            are chosen on the labels that they are measured on.
        per_class: log a table of all classes, and add ``AP_<class>``, with ``best_threshold`` also
            ``best_thr_<class>``, for the classes that are averaged over.
        collect_device, prefix, collect_dir: of mmengine's ``BaseMetric``.

    Raises:
        ValueError: an argument is out of its range. During evaluation: predictions or labels are missing, out of range
            or of another number of classes than the data set's.
    """

    default_prefix = 'multi-label'

    def __init__(
        self,
        items: Sequence[str] = ('mAP', *DECISION_ITEMS),
        thr: float | None = 0.5,
        topk: int | None = 3,
        topk_above_thr: bool = False,
        require_negatives: bool = False,
        official_map: bool = False,
        best_threshold: bool = False,
        per_class: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        items = (items,) if isinstance(items, str) else tuple(items)
        wrong = [item for item in items if item not in ITEMS]
        if wrong or not items:
            raise ValueError(f'items={items} of MultiLabelMetric must be some of {", ".join(ITEMS)}')
        if thr is not None and not 0 < thr < 1:
            raise ValueError(f'thr={thr} of MultiLabelMetric is a probability and must lie in (0, 1), or be None')
        if topk is not None and (topk < 1 or topk != int(topk)):
            raise ValueError(f'topk={topk} of MultiLabelMetric must be a whole number of 1 or more, or None')
        if topk_above_thr and (thr is None or topk is None):
            raise ValueError(
                f'topk_above_thr=True of MultiLabelMetric wants a threshold and a number: thr={thr}, topk={topk}'
            )
        self.items = items
        decides = any(item in DECISION_ITEMS for item in items)
        self.thr = thr if decides else None
        self.topk = topk if decides else None
        self.topk_above_thr = topk_above_thr
        self.require_negatives = require_negatives
        self.official_map = official_map
        self.best_threshold = best_threshold
        self.per_class = per_class

    @property
    def _ranks_classes(self) -> bool:
        return 'mAP' in self.items or self.official_map or self.best_threshold or self.per_class

    @property
    def _ranks_all(self) -> bool:
        return 'mAP_micro' in self.items or self.best_threshold

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Keep class indices, and of the scores no more than is asked for: all as float32, or the highest few."""
        if not data_samples:
            return
        scores = self._scores(data_samples)
        labels, lengths = self._labels(data_samples, scores.shape[1])
        thr_of_top = self.thr if self.topk_above_thr else None
        needs_scores = self._ranks_classes or self._ranks_all or self.thr is not None
        self.results.append(
            _Batch(
                num_classes=scores.shape[1],
                scores=scores.numpy() if needs_scores else None,
                top=top_classes(scores, self.topk, thr_of_top).to(torch.int32).numpy() if self.topk else None,
                best=top_classes(scores, 1)[:, 0].to(torch.int32).numpy() if 'macro_F1' in self.items else None,
                labels=labels,
                lengths=lengths,
                partial=np.array([sample.get('untagged_weight', 1.0) < 1 for sample in data_samples]),
            )
        )

    def evaluate(self, size: int) -> dict:
        """As mmengine's, but what is gathered is one result a process, all its batches, instead of one an image."""
        self.results = [(size, self.results)]
        try:
            return super().evaluate(get_world_size())
        finally:
            self.results = []

    def compute_metrics(self, results: list[tuple[int, list[_Batch]]]) -> dict[str, float]:
        batches = without_padding(results)
        if not batches:
            raise ValueError('MultiLabelMetric got no predictions: the data set is empty, or process was never called')
        num_classes = batches[0].num_classes
        scores = [torch.from_numpy(batch.scores) for batch in batches if batch.scores is not None]
        labels = sparse_labels(batches)
        averaged = labels.num_positive > 0
        if not averaged.any():
            raise NothingToMeasureError(
                f'gt_label is empty in all {labels.num_images} images: there is nothing to measure'
            )
        if self.require_negatives:
            averaged &= labels.num_known > labels.num_positive
            if not averaged.any():
                raise NothingToMeasureError(
                    'no class has both a positive and a negative label among its known ones; set '
                    'require_negatives=False to average over all that have a positive'
                )

        shares, thresholds = {}, {}
        class_shares, class_thresholds = {}, {}
        if self._ranks_classes:
            ranking = rank_positives(scores, labels)
            class_shares['AP'] = average_precision(ranking)
            if 'mAP' in self.items:
                shares['mAP'] = class_shares['AP'][averaged].mean()
            if self.official_map:
                shares['mAP_official'] = official_mean_average_precision(ranking)
        if self._ranks_all:
            micro_ranking = rank_positives(scores, labels, micro=True)
            if 'mAP_micro' in self.items:
                shares['mAP_micro'] = average_precision(micro_ranking)
        counts = {}
        if self.thr is not None:
            counts[''] = counts_at_threshold(scores, labels, self.thr)
            class_shares['precision'], class_shares['recall'] = class_precision_recall(counts[''])
        if self.topk is not None:
            top = torch.from_numpy(np.concatenate([batch.top for batch in batches]))
            counts[f'_top{self.topk}'] = counts_of_predictions(top, labels)
        for suffix, count in counts.items():
            values = precision_recall_f1(count, averaged)
            shares.update({item + suffix: values[item] for item in DECISION_ITEMS if item in self.items})
        if 'macro_F1' in self.items:
            predicted, target = (
                torch.from_numpy(np.concatenate(arrays))
                for arrays in zip(*((batch.best, batch.labels['gt_label']) for batch in batches))
            )
            class_shares['F1'] = class_f1(predicted, target, num_classes)
            shares['macro_F1'] = class_shares['F1'].nanmean()
        if self.best_threshold:
            shares['best_OF1'], thresholds['best_OF1_thr'] = best_f1(micro_ranking)
            class_shares['best F1'], class_thresholds['best thr'] = best_f1(ranking)
            shares['best_F1'] = class_shares['best F1'][averaged].mean()
        metrics = {name: 100 * float(share) for name, share in shares.items()}
        metrics.update({name: float(threshold) for name, threshold in thresholds.items()})
        if self.per_class:
            names = self._class_names or [str(i) for i in range(num_classes)]
            _log_table(names, labels.num_positive, class_shares, class_thresholds)
            for i in averaged.nonzero()[:, 0].tolist():
                metrics[f'AP_{names[i]}'] = 100 * float(class_shares['AP'][i])
                if self.best_threshold:
                    metrics[f'best_thr_{names[i]}'] = float(class_thresholds['best thr'][i])
        return metrics

    @property
    def _class_names(self) -> Sequence[str] | None:
        return (self.dataset_meta or {}).get('classes')

    def _scores(self, data_samples: Sequence[dict]) -> Tensor:
        """(n, C) float32, a copy on the CPU."""
        names = self._class_names
        expected = len(names) if names else self.results[0].num_classes if self.results else None
        for sample in data_samples:
            score = sample.get('pred_score')
            if score is None:
                raise ValueError(
                    f'{image_of(sample)} has no pred_score: in predict mode the model has to write the '
                    'probabilities of all classes there'
                )
            expected = expected or sample.get('num_classes', score.numel())
            for num_classes in (expected, sample.get('num_classes', expected)):
                if score.shape != (num_classes,):
                    raise ValueError(
                        f'pred_score of {image_of(sample)} has the shape {tuple(score.shape)}, but its data '
                        f'set has {num_classes} classes; set model.head.num_classes={num_classes}'
                    )
        scores = torch.stack([sample['pred_score'] for sample in data_samples]).detach().to('cpu', torch.float32)
        # A softmax may exceed 1 by its rounding error. NaN is in no range.
        if not (scores.numpy().min() >= 0 and scores.numpy().max() <= 1.001):
            row, column = (~((scores >= 0) & (scores <= 1.001))).nonzero()[0].tolist()
            raise ValueError(
                f'pred_score of {image_of(data_samples[row])} holds {scores[row, column].item()} for class '
                f'{column}, but probabilities lie in [0, 1]; NaN tells of a diverged model, other values '
                'of logits without a sigmoid'
            )
        return scores

    def _labels(
        self, data_samples: Sequence[dict], num_classes: int
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        labels, lengths = {}, {}
        for name in GROUND_TRUTH:
            listed = [sample.get(name) for sample in data_samples]
            lengths[name] = np.array([0 if classes is None else classes.numel() for classes in listed], dtype=np.int32)
            listed = [classes for classes, length in zip(listed, lengths[name]) if length]
            joined = torch.cat(listed).cpu() if listed else torch.empty(0, dtype=torch.int32)
            if not _are_classes(joined, num_classes):
                index = next(i for i, classes in enumerate(listed) if not _are_classes(classes, num_classes))
                sample = data_samples[lengths[name].nonzero()[0][index]]
                raise ValueError(
                    f'{name} of {image_of(sample)} is {listed[index]}, but must list class indices from 0 to '
                    f'{num_classes - 1}'
                )
            labels[name] = joined.to(torch.int32).numpy()
        for index in np.flatnonzero(sum(lengths.values()) == 0):
            require_ground_truth(data_samples[index])
        not_one = np.flatnonzero(lengths['gt_label'] != 1)
        if 'macro_F1' in self.items and len(not_one):
            raise ValueError(
                f'gt_label of {image_of(data_samples[not_one[0]])} has not exactly one class, as macro_F1 needs; take '
                'macro_F1 out of items for multi-label data'
            )
        return labels, lengths


def _are_classes(labels: Tensor, num_classes: int) -> bool:
    integers = not labels.is_floating_point() and labels.dtype != torch.bool
    return integers and not ((labels < 0) | (labels >= num_classes)).any()


def without_padding(shards: Sequence[tuple[int, list[_Batch]]]) -> list[_Batch]:
    """All batches, less the images that the sampler repeated to give every process the same number.

    Process r of W has the images r, r + W, r + 2 W ... of the data set; repeated ones have numbers beyond its size.
    """
    size = shards[0][0]
    padded = sum(len(batch) for _, batches in shards for batch in batches) > size
    kept = []
    for rank, (_, batches) in enumerate(shards):
        left = -((rank - size) // len(shards))
        for batch in batches:
            kept.append(batch.head(max(left, 0)) if padded else batch)
            left -= len(batch)
    return kept


def sparse_labels(batches: Sequence[_Batch]) -> SparseLabels:
    num_images = sum(len(batch) for batch in batches)
    indices = []
    for name in GROUND_TRUTH:  # positive, negative, unknown
        lengths = np.concatenate([batch.lengths[name] for batch in batches])
        labels = np.concatenate([batch.labels[name] for batch in batches])
        indices.append((torch.from_numpy(np.repeat(np.arange(num_images), lengths)), torch.from_numpy(labels)))
    partial = torch.from_numpy(np.concatenate([batch.partial for batch in batches]))
    return SparseLabels.from_indices(num_images, batches[0].num_classes, *indices, partial)


def _log_table(
    names: Sequence[str], positives: Tensor, shares: dict[str, Tensor], thresholds: dict[str, Tensor]
) -> None:
    rows = [['class', 'positives', *shares, *thresholds]]
    for i, name in enumerate(names):
        cells = [f'{100 * column[i]:.1f}' for column in shares.values()]
        cells += [f'{column[i]:.3f}' for column in thresholds.values()]
        rows.append([name, str(int(positives[i])), *('-' if cell == 'nan' else cell for cell in cells)])
    print_log('\n' + AsciiTable(rows).table, logger='current')
