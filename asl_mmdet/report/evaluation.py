"""The metrics of both tasks, as they are, that keep what a report shows.

The value of a picture, its Brier score, is the sum of squared errors: (p - y)^2 over an image's known labels; for
detectors (1 - p)^2 over its objects, p being the score of the matched box and 0 where there is none, and p^2 over the
boxes that match no object.
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO

import numpy as np
import torch
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import ConfigDict
from torch import Tensor

from ..datasets.detection import type_name
from ..evaluation import (
    ClassScores,
    MultiLabelMetric,
    ScoreCurves,
    SparseLabels,
    brier_scores,
    class_scores,
    positive_scores,
    score_curves,
)
from ..evaluation.multi_label_metric import sparse_labels, without_padding

# Pictures on either end of the list.
PICTURES = 12
# Labels and boxes of a picture, the highest scores first.
MAX_NEGATIVES, MAX_BOXES = 8, 50


@dataclass(frozen=True)
class Picture:
    """An image with what was predicted for it; classes are indices.

    Attributes:
        path: of the image file.
        brier: see above.
        labels: of a classifier, (class, score, whether it is positive).
        objects: of a detector, (class, score of the matched box or None, whether it is a crowd, x, y, w, h in pixels).
        boxes: of a detector, (class, score, truth, x, y, w, h), truth being None where the box lies in a crowd.
        size: width and height that boxes refer to.
    """

    path: str
    brier: float
    labels: list[tuple] | None = None
    objects: list[tuple] | None = None
    boxes: list[tuple] | None = None
    size: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Evaluation:
    """
    Attributes:
        classes: C names.
        num_images: N.
        curves: of the C classes.
        average_precision: by name, 'AP' first: (C,) in [0, 1], NaN where it is undefined.
        iou: detectors: a box is right from this overlap on; classifiers: None.
        worst, best: pictures, the highest and the lowest Brier score first; the best among those with a positive.
    """

    classes: list[str]
    num_images: int
    curves: ScoreCurves
    average_precision: dict[str, np.ndarray]
    iou: float | None
    worst: list[Picture]
    best: list[Picture]


@METRICS.register_module()
class MultiLabelReportMetric(MultiLabelMetric):
    """MultiLabelMetric with the same arguments and results.

    Attributes:
        evaluation: of the last evaluation, in the first process; None elsewhere.
    """

    _ranks_classes = True  # scores of all classes are kept
    evaluation: Evaluation | None = None

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        super().process(data_batch, data_samples)
        if data_samples:
            self.results[-1].paths = [sample.get('img_path', '') for sample in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics = super().compute_metrics(results)
        batches = without_padding(results)
        scores = [torch.from_numpy(batch.scores) for batch in batches]
        labels = sparse_labels(batches)
        right = positive_scores(scores, labels)
        curves = score_curves(class_scores(scores, labels), labels.num_classes, right)
        brier = brier_scores(scores, labels).numpy()
        has_positive = np.zeros(labels.num_images, dtype=bool)
        has_positive[labels.positive % labels.num_images] = True
        paths = [path for batch in batches for path in batch.paths]
        rows = np.cumsum([0] + [len(batch) for batch in batches])

        def picture(image: int) -> Picture:
            block = np.searchsorted(rows, image, side='right') - 1
            row = scores[block][image - rows[block]]
            return Picture(paths[image], float(brier[image]), labels=_labels_of(image, row, labels))

        worst, best = _ends(brier, has_positive)
        self.evaluation = Evaluation(
            classes=list(self._class_names or map(str, range(labels.num_classes))),
            num_images=labels.num_images,
            curves=curves,
            average_precision=dict(AP=curves.average_precision),
            iou=None,
            worst=[picture(image) for image in worst],
            best=[picture(image) for image in best],
        )
        return metrics


@METRICS.register_module()
class CocoReportMetric(CocoMetric):
    """mmdet's CocoMetric with the same arguments and results, for boxes.

    Attributes:
        evaluation: of the last evaluation, in the first process; None elsewhere. Boxes are matched as COCO matches
            them, at the lowest of ``iou_thrs``, 0.5 by default.

    Raises:
        ValueError: ``metric`` does not hold 'bbox', or nothing is evaluated as ``format_only=True``.
    """

    evaluation: Evaluation | None = None

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if 'bbox' not in self.metrics or self.format_only:
            raise ValueError(
                f'metric={self.metrics}, format_only={self.format_only} of CocoMetric: a report needs boxes that are '
                "evaluated, metric='bbox' and format_only=False"
            )

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        super().process(data_batch, data_samples)
        for (truth, _), sample in zip(self.results[-len(data_samples) :], data_samples):
            truth['img_path'] = sample.get('img_path', '')

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics = super().compute_metrics(results)
        evaluator = self._evaluate_boxes([prediction for _, prediction in results])
        matches = _Matches(evaluator)
        names = [self._coco_api.cats[category]['name'] for category in evaluator.params.catIds]
        curves = score_curves(matches.classes, len(names), np.concatenate([one.right for one in matches.classes]))
        truths = {truth['img_id']: truth for truth, _ in results}

        def picture(image: int) -> Picture:
            truth = truths[evaluator.params.imgIds[image]]
            objects, boxes = matches.of_image(image)
            size = truth['width'], truth['height']
            return Picture(truth['img_path'], float(matches.brier[image]), objects=objects, boxes=boxes, size=size)

        evaluated = np.array([image in truths for image in evaluator.params.imgIds])
        worst, best = _ends(np.where(evaluated, matches.brier, np.nan), matches.has_object)
        self.evaluation = Evaluation(
            classes=names,
            num_images=matches.num_images,
            curves=curves,
            average_precision=_coco_average_precision(evaluator),
            iou=float(evaluator.params.iouThrs[matches.threshold]),
            worst=[picture(image) for image in worst],
            best=[picture(image) for image in best],
        )
        return metrics

    def _evaluate_boxes(self, predictions: list[dict]) -> COCOeval:
        """Once more, over boxes of all sizes: mmdet's metric keeps neither the matches nor the curves."""
        annotations = []
        for prediction in predictions:
            x, y, right, bottom = prediction['bboxes'].astype(np.float64).T.reshape(4, -1)
            boxes = np.stack([x, y, right - x, bottom - y], axis=1)
            for box, score, label in zip(boxes.tolist(), prediction['scores'].tolist(), prediction['labels'].tolist()):
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=prediction['img_id'],
                        category_id=self.cat_ids[label],
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                        score=score,
                    )
                )
        detections = COCO()
        truth = self._coco_api.dataset
        detections.dataset = dict(images=truth['images'], categories=truth['categories'], annotations=annotations)
        evaluator = COCOeval(self._coco_api, iouType='bbox')
        evaluator.cocoDt = detections
        evaluator.params.catIds = self.cat_ids
        evaluator.params.maxDets = [max(self.proposal_nums)]
        evaluator.params.iouThrs = np.atleast_1d(self.iou_thrs)
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ['all']
        with redirect_stdout(StringIO()):
            detections.createIndex()
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator


REPORTED = {'MultiLabelMetric': MultiLabelReportMetric, 'CocoMetric': CocoReportMetric}


def report_metric(evaluators: Sequence[ConfigDict]) -> None:
    """Puts a metric that keeps what a report shows in place of the first of ``evaluators`` that there is one for.

    Raises:
        ValueError: there is none.
    """
    for evaluator in evaluators:
        if (name := type_name(evaluator)) in REPORTED:
            evaluator['type'] = f'mmdet.{REPORTED[name].__name__}'
            return
    types = ', '.join(str(evaluator.get('type')) for evaluator in evaluators)
    raise ValueError(f'test_evaluator is {types or "missing"}; a report is made of {" or ".join(REPORTED)}')


class _Matches:
    """What a COCOeval found at its lowest overlap, by class and by image.

    Attributes:
        threshold: index of that overlap.
        classes: K of ClassScores, without the boxes that lie in crowds.
        brier: (N,), of each image.
        has_object: (N,) bool.
    """

    def __init__(self, evaluator: COCOeval) -> None:
        self.evaluator = evaluator
        self.threshold = int(np.argmin(evaluator.params.iouThrs))
        self.num_images = len(evaluator.params.imgIds)
        self.classes = []
        self.brier = np.zeros(self.num_images)
        self.has_object = np.zeros(self.num_images, dtype=bool)
        for category in range(len(evaluator.params.catIds)):
            scores, right, positives = [np.zeros(0)], [np.zeros(0, dtype=bool)], 0
            for image in range(self.num_images):
                pair = self._pair(category, image)
                if pair is None:
                    continue
                counted = ~pair['dtIgnore'][self.threshold].astype(bool)
                score = np.asarray(pair['dtScores'], dtype=np.float64)[counted]
                matched = pair['dtMatches'][self.threshold][counted] > 0
                objects = np.count_nonzero(np.asarray(pair['gtIgnore']) == 0)
                missed = objects - np.count_nonzero(matched)
                error = np.where(matched, 1 - score, score)
                self.brier[image] += error @ error + missed
                self.has_object[image] |= objects > 0
                positives += objects
                scores.append(score)
                right.append(matched)
            scores, right = np.concatenate(scores), np.concatenate(right)
            self.classes.append(ClassScores(np.sort(scores), np.sort(scores[right]), positives))

    def _pair(self, category: int, image: int) -> dict | None:
        return self.evaluator.evalImgs[category * self.num_images + image]

    def of_image(self, image: int) -> tuple[list[tuple], list[tuple]]:
        """``objects`` and ``boxes`` of :class:`Picture`."""
        objects, boxes = [], []
        truths, detections = self.evaluator.cocoGt.anns, self.evaluator.cocoDt.anns
        for category in range(len(self.classes)):
            pair = self._pair(category, image)
            if pair is None:
                continue
            for index, match in zip(pair['gtIds'], pair['gtMatches'][self.threshold]):
                score = float(detections[int(match)]['score']) if match > 0 else None
                crowd = bool(truths[index].get('iscrowd', 0))
                objects.append((category, score, crowd, *truths[index]['bbox']))
            for index, match, ignored in zip(
                pair['dtIds'], pair['dtMatches'][self.threshold], pair['dtIgnore'][self.threshold]
            ):
                box = detections[index]
                boxes.append((category, box['score'], None if ignored else bool(match > 0), *box['bbox']))
        return objects, sorted(boxes, key=lambda box: -box[1])[:MAX_BOXES]


def _coco_average_precision(evaluator: COCOeval) -> dict[str, np.ndarray]:
    """AP of each class as COCO defines it, over all overlaps, and at 0.5 and 0.75 where they are among them."""
    precision = evaluator.eval['precision'][..., 0, -1]  # (overlaps, recalls, K), -1 without objects
    precision = np.where(precision < 0, np.nan, precision)
    found = dict(AP=precision.mean((0, 1)))
    for overlap in (0.5, 0.75):
        for index in np.flatnonzero(np.isclose(evaluator.params.iouThrs, overlap)):
            found[f'AP{100 * overlap:.0f}'] = precision[index].mean(0)
    return found


def _labels_of(image: int, scores: Tensor, labels: SparseLabels) -> list[tuple]:
    """The positive labels of an image, and the negative ones of the highest scores."""
    keys = np.arange(labels.num_classes) * labels.num_images + image
    positive, known = labels.is_positive(keys), labels.is_known(keys)
    order = scores.numpy().argsort(kind='stable')[::-1]
    negatives = [i for i in order if known[i] and not positive[i]][:MAX_NEGATIVES]
    listed = [i for i in order if positive[i]]
    return [(int(i), float(scores[i]), bool(positive[i])) for i in [*listed, *negatives]]


def _ends(brier: np.ndarray, has_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images of the highest Brier scores, and those of the lowest among images with a positive; NaN is neither."""
    order = brier.argsort(kind='stable')
    order = order[~np.isnan(brier[order])]
    return order[::-1][:PICTURES], order[has_positive[order]][:PICTURES]
