"""One HTML file that opens from disk: everything it shows is in it, as JSON, SVG and thumbnails."""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import cv2
import mmcv
import numpy as np
from mmengine.fileio import get

from ..evaluation.score_curves import (
    BIN_EDGES,
    FEW_POINTS,
    MAX_FINE_CLASSES,
    POINTS,
    PrecisionRecall,
    evenly_spread,
)
from ..training_log import TrainingLogError, is_training, logged_lines
from ..version import __version__
from .evaluation import Evaluation, Picture

# Longest side of a thumbnail in pixels, and its JPEG quality.
THUMBNAIL, QUALITY = 320, 80
# Points of a training curve, as many series in a chart as are drawn before one is clicked, tiles of metrics.
MAX_STEPS, MAX_SERIES, MAX_METRICS = 400, 6, 24
# Charts of training come first by what their y-axis shows.
FIRST = {axis: i for i, axis in enumerate(('loss', 'probability', 'value', 'learning rate'))}
NOT_DRAWN = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory', 'base_lr')


def write_report(
    folder: Path, evaluation: Evaluation, metrics: Mapping[str, float], config: Path, checkpoint: Path
) -> Path:
    """Write ``folder/report.html``.

    Its size is about 4 kB for each of up to 200 classes or 1 kB for each of more, and 24 thumbnails of 320 pixels.

    Args:
        metrics: of the evaluation, by the names of the log.
        config, checkpoint: what was evaluated; training curves come from the logs in the checkpoint's folder.

    Raises:
        OSError: the file cannot be written. A picture that cannot be read is said to be so on the page.
    """
    data = dict(
        about=_about(evaluation, config, checkpoint),
        metrics=_headline(metrics),
        classes=_classes(evaluation),
        curves=_curves(evaluation),
        overall=_overall(evaluation),
        training=training_charts(checkpoint.parent),
        pictures=dict(
            worst=[_picture(one) for one in evaluation.worst], best=[_picture(one) for one in evaluation.best]
        ),
    )
    here = Path(__file__).parent
    script = (here / 'page.js').read_text(encoding='utf-8')
    page = (here / 'page.html').read_text(encoding='utf-8')
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace('%SCRIPT_HASH%', digest).replace('%TITLE%', html.escape(data['about']['title']))
    # The data come last: what they hold is replaced no more.
    page = page.replace('%SCRIPT%', script).replace('%DATA%', embedded_json(data))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'report.html'
    path.write_text(page, encoding='utf-8', newline='\n')
    return path


def embedded_json(data: object) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or opens a comment."""
    return json.dumps(data, allow_nan=False, separators=(',', ':')).replace('<', '\\u003c').replace('>', '\\u003e')


def training_charts(folder: Path) -> dict:
    """Charts of what was logged in a work dir: losses, probabilities and learning rate by iteration, metrics by epoch.

    Returns:
        ``text`` that says where the curves come from, or why there are none, and ``charts`` with ``title``, names of
        the axes ``x`` and ``y``, and ``series`` with ``name``, ``x``, ``y`` and ``hidden``.
    """
    try:
        lines = logged_lines(folder)
    except (TrainingLogError, OSError) as error:
        return dict(text=f'The training log cannot be read: {error}', charts=[])
    if not lines:
        return dict(
            text=f'No training log lies beside the checkpoint: {folder} has no */vis_data/scalars.json with a training '
            'loss. Where the checkpoint stays in its work dir, its curves stand here.',
            charts=[],
        )
    training = [line for line in lines if is_training(line)]
    by_epoch = any('epoch' in line for line in training)
    groups: dict[tuple[str, str, str], dict[str, list]] = {}
    for line in lines:
        for name, value in line.items():
            if name in NOT_DRAWN or _is_of_one_class(name) or not isinstance(value, (int, float)):
                continue
            key, label = _chart_of(name, is_training(line), by_epoch)
            groups.setdefault(key, {}).setdefault(label, []).append((line.get('step'), _value(name, value)))
    charts = []
    for (title, x, y), series in sorted(groups.items(), key=lambda group: FIRST.get(group[0][2], len(FIRST))):
        drawn = [
            dict(name=name, hidden=i >= MAX_SERIES, **_thinned(points))
            for i, (name, points) in enumerate(series.items())
        ]
        charts.append(dict(title=title, x=x, y=y, series=drawn))
    text = (
        f'From {folder}: {len(training):,} lines of training and {len(lines) - len(training):,} of validation, each '
        f'curve thinned to {MAX_STEPS} points. A click on a name in a legend hides or shows its curve.'
    )
    return dict(text=text, charts=charts)


def _chart_of(name: str, trains: bool, by_epoch: bool) -> tuple[tuple[str, str, str], str]:
    """Title and axes of the chart that a scalar belongs to, and what it is called there."""
    prefix, _, last = name.rpartition('/')
    if not trains:
        return (f'Validation, {prefix or "as logged"}', 'epoch' if by_epoch else 'iteration', 'value'), last
    if last in ('p_t_pos', 'p_t_neg', 'gap'):
        return ('Probabilities in training (eqs. 9, 10)', 'iteration', 'probability'), name
    if 'loss' in name:
        return ('Training losses', 'iteration', 'loss'), name
    if last == 'lr':
        return ('Learning rate', 'iteration', 'learning rate'), name
    return (f'{last} in training', 'iteration', last), name


def _value(name: str, value: float) -> float | None:
    """COCO's metrics say -1 where there is nothing to measure."""
    return None if value == -1 and name.startswith('coco/') else _number(value, 6)


def _is_of_one_class(name: str) -> bool:
    """Whether a metric is that of a class: they are as many, and in the table."""
    # What is behind AP_ may hold a slash.
    return re.search(r'(^|/)(AP|best_thr)_', name) is not None or name.endswith('_precision')


def _thinned(points: list[tuple[float, float | None]]) -> dict[str, list]:
    kept = evenly_spread(len(points), MAX_STEPS)
    return dict(x=[points[i][0] for i in kept], y=[points[i][1] for i in kept])


def _about(evaluation: Evaluation, config: Path, checkpoint: Path) -> dict[str, str]:
    detects = evaluation.iou is not None
    count, positives = len(evaluation.classes), int(evaluation.curves.positives.sum())
    thing = 'objects' if detects else 'positive labels'
    fine = count <= MAX_FINE_CLASSES
    about = dict(
        title=config.stem,
        text=f'{"Detection" if detects else "Multi-label classification"}, checkpoint {checkpoint}. '
        f'{evaluation.num_images:,} images, {count:,} classes, {positives:,} {thing}. asl_mmdet {__version__}, '
        f'{datetime.now():%Y-%m-%d %H:%M}.',
        right='boxes on an object' if detects else 'positive labels',
        wrong='other boxes' if detects else 'negative labels',
        positives='objects of the class' if detects else 'images with the class',
        classes='Every column sorts, a row or bar that is clicked shows the curves of its class. P, R, F1, FP and '
        'missed are at the threshold above; best F1 is what a threshold of its own gives a class.',
    )
    about['decision'] = (
        'What scores the threshold or more is predicted. '
        + (
            f'A box is right where it is matched to an object of its class, at an overlap (IoU) of {evaluation.iou:g} '
            'or more, as COCO matches them; a missed positive is an object without such a box. '
            if detects
            else 'Labels that are not known count neither way. CP, CR and CF1 are means over the classes. '
        )
        + 'Cost = false positives + missed positives x what a miss costs. '
        + f'{len(evaluation.curves.thresholds)} thresholds; precision-recall curves are thinned to '
        + f'{POINTS if fine else FEW_POINTS} points a class and {2 * POINTS} overall.'
    )
    about['gap'] = (
        'p_t+ is the mean score of the boxes on an object, p_t- the mean of 1 - score of the other boxes, among those '
        'that the detector gave out; what it left out, and most background, is not in them. Eqs. 9 and 10 over all '
        'positions are in the training curves where ProbabilityGapHook was on.'
        if detects
        else 'Eqs. 9 and 10 over the evaluated labels: p_t+ is the mean p of the positive ones, p_t- the mean 1 - p of '
        'the negative ones, the gap is p_t+ - p_t-. Below 0, positives are the less certain ones.'
    )
    about['pictures'] = (
        'By the Brier score, the sum of squared errors '
        + (
            '(1 - score)² over the objects and score² over the boxes on none. Solid: boxes; dashed: objects. '
            if detects
            else '(p - y)² over the labels of an image. '
        )
        + 'Green: right; red: wrong; brown: missed, all at the threshold above. The best are among the images with a '
        'positive.'
    )
    return about


def _headline(metrics: Mapping[str, float]) -> list[tuple[str, float | None]]:
    """Names and values as they are in the log, without a prefix that all share."""
    chosen = {name: _value(name, value) for name, value in metrics.items() if not _is_of_one_class(name)}
    prefixes = {name.rpartition('/')[0] for name in chosen}
    if len(prefixes) == 1:
        chosen = {name.rpartition('/')[2]: value for name, value in chosen.items()}
    return list(chosen.items())[:MAX_METRICS]


def _classes(evaluation: Evaluation) -> dict:
    curves = evaluation.curves
    probabilities = curves.probabilities[:-1]
    return dict(
        names=[str(name) for name in evaluation.classes],
        positives=curves.positives.tolist(),
        average_precision={name: _numbers(values, 5) for name, values in evaluation.average_precision.items()},
        best_f1=_numbers(curves.best_f1, 5),
        best_threshold=_numbers(curves.best_threshold, 6),
        probabilities=_numbers(probabilities, 5),
        gap=_numbers(probabilities[:, 0] - probabilities[:, 1], 5),
    )


def _curves(evaluation: Evaluation) -> dict:
    curves = evaluation.curves
    return dict(
        thresholds=curves.thresholds.tolist(),
        tp=curves.true_positives.tolist(),
        fp=curves.false_positives.tolist(),
        pr=[_precision_recall(one) for one in curves.precision_recall],
        edges=[round(edge, 2) for edge in BIN_EDGES.tolist()],
        histograms=curves.histograms.tolist(),
    )


def _overall(evaluation: Evaluation) -> dict:
    curves = evaluation.curves
    p_t_pos, p_t_neg = curves.probabilities[-1]
    return dict(
        pr=_precision_recall(curves.overall),
        histograms=curves.histograms.sum(0).tolist(),
        probabilities=_numbers(curves.probabilities[-1], 5),
        gap=_number(p_t_pos - p_t_neg, 5),
    )


def _precision_recall(curve: PrecisionRecall) -> dict[str, list]:
    return {name: _numbers(values, 4) for name, values in curve._asdict().items()}


def _picture(picture: Picture) -> dict:
    width, height = picture.size
    shown = dict(
        name=Path(picture.path).name or '(no file name)',
        brier=_number(picture.brier, 4),
        source=thumbnail(picture.path, THUMBNAIL),
        width=width,
        height=height,
    )
    for kind in ('labels', 'objects', 'boxes'):
        if (listed := getattr(picture, kind)) is not None:
            shown[kind] = [
                [_number(value, 6) if isinstance(value, float) else value for value in one] for one in listed
            ]
    return shown


def thumbnail(path: str, side: int) -> str | None:
    """A picture of so many pixels at most as a data URL, None where the file cannot be read."""
    try:
        image = mmcv.imfrombytes(get(path))
        image = mmcv.imrescale(image, (side, side), interpolation='area') if max(image.shape[:2]) > side else image
        written, jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    except (OSError, ValueError, AttributeError, cv2.error):
        return None
    return f'data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}' if written else None


def _number(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def _numbers(values: np.ndarray | Sequence[float], digits: int) -> list:
    """Nested lists of rounded numbers, None for NaN."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim > 1:
        return [_numbers(row, digits) for row in values]
    return [_number(value, digits) for value in values.tolist()]
