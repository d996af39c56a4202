"""The report of an evaluation: what the metrics keep of it, and the page, in a browser that clicks and reads."""

import base64
import json
import re
import time
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import METRICS, MODELS
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope

from asl_mmdet.evaluation import (
    ClassScores,
    MultiLabelMetric,
    counts_at_threshold,
    precision_recall_f1,
    score_curves,
)
from asl_mmdet.report import CocoReportMetric, MultiLabelReportMetric, report_metric, write_report
from asl_mmdet.report.evaluation import Evaluation, Picture
from asl_mmdet.report.page import embedded_json, training_charts
from asl_mmdet.structures import MultiLabelDataSample
from tests.conftest import ROOT, in_processes, run_tool, start_tool

CLASSES = ('</script><img src=x onerror="window.broken=1">', 'cat & dog', '$&<!--', "O'Neill", '${x}')
PICTURE = '"><img src=x onerror="window.broken=2">{}.png'


def page_data(path):
    """The JSON in a page, and the page without it."""
    page = path.read_text(encoding='utf-8')
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text), page.replace(text, '')


def samples(folder, number=30):
    """(N, C) scores and labels, -1 being unknown, and the samples that hold them."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(0, 101, (number, len(CLASSES)), generator=generator) / 100
    targets = torch.randint(-1, 2, (number, len(CLASSES)), generator=generator)
    targets[0] = 0
    made = []
    for i, (score, target) in enumerate(zip(scores, targets)):
        sample = MultiLabelDataSample(metainfo=dict(img_path=str(folder / PICTURE.format(i)), num_classes=len(CLASSES)))
        sample.set_data(
            dict(pred_score=score, gt_label=(target == 1).nonzero()[:, 0], gt_unknown=(target == -1).nonzero()[:, 0])
        )
        made.append(sample)
    return scores, targets, made


def evaluate(metric, data_samples, batch_size=7):
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dict(classes=CLASSES)
    for start in range(0, len(data_samples), batch_size):
        evaluator.process(data_samples[start : start + batch_size])
    return evaluator.evaluate(len(data_samples))


# ---------------------------------------------------------------------------------------------------------- classifiers


def test_the_metric_of_classifiers_gives_what_it_gives_without_a_report(tmp_path):
    scores, targets, made = samples(tmp_path)
    metric = MultiLabelReportMetric(items=('CF1',), topk=None, thr=None)
    assert evaluate(metric, made) == evaluate(MultiLabelMetric(items=('CF1',), topk=None, thr=None), made)
    metric = MultiLabelReportMetric(best_threshold=True)
    results = evaluate(metric, made)
    assert results == evaluate(MultiLabelMetric(best_threshold=True), made)
    found = metric.evaluation
    assert found.classes == list(CLASSES) and found.num_images == 30 and found.iou is None
    assert 100 * np.nanmean(found.average_precision['AP']) == pytest.approx(results['multi-label/mAP'])
    assert found.curves.positives.tolist() == (targets == 1).sum(0).tolist()
    error = torch.where(targets == -1, 0, (scores - targets) ** 2).sum(1)
    worst, best = error.argsort(descending=True, stable=True), error.argsort(stable=True)
    assert [picture.brier for picture in found.worst] == pytest.approx(error[worst][:12].tolist(), abs=1e-6)
    best = [i for i in best.tolist() if (targets[i] == 1).any()][:12]
    assert [picture.path for picture in found.best] == [made[i].img_path for i in best]
    first = found.worst[0]
    row = [made_sample.img_path for made_sample in made].index(first.path)
    assert {i for i, _, positive in first.labels if positive} == set(made[row].gt_label.tolist())
    assert {i for i, _, positive in first.labels if not positive} == set((targets[row] == 0).nonzero()[:, 0].tolist())
    assert all(score == pytest.approx(scores[row, i].item()) for i, score, _ in first.labels)


def evaluation_of_rank(folder, rank):
    _, _, made = samples(folder, 15)
    metric = MultiLabelReportMetric()
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dict(classes=CLASSES)
    evaluator.process([made[i % 15] for i in range(rank, 16, 2)])  # mmengine's sampler repeats the first image
    evaluator.evaluate(15)
    return metric.evaluation


def test_of_two_processes_the_first_keeps_all_images_once(tmp_path):
    one = MultiLabelReportMetric()
    evaluate(one, samples(tmp_path, 15)[2])
    first, second = in_processes(partial(evaluation_of_rank, tmp_path), tmp_path)
    assert second is None and first.num_images == 15
    assert first.curves.true_positives.tolist() == one.evaluation.curves.true_positives.tolist()
    assert [picture.path for picture in first.worst] == [picture.path for picture in one.evaluation.worst]


# ------------------------------------------------------------------------------------------------------------ detectors


@pytest.fixture
def detections(tmp_path):
    """An annotation file of two images, and what a detector says of them: (boxes x y w h, scores, labels) each."""

    def annotation(number, image, category, box, crowd=0):
        return dict(id=number, image_id=image, category_id=category, bbox=box, area=box[2] * box[3], iscrowd=crowd)

    content = dict(
        images=[dict(id=number, file_name=f'{number}.png', width=100, height=80) for number in (5, 9)],
        categories=[dict(id=3, name='cat'), dict(id=7, name='dog'), dict(id=8, name='yak')],
        annotations=[
            annotation(1, 5, 3, [10, 10, 20, 20]),
            annotation(2, 5, 7, [50, 40, 30, 30]),
            annotation(3, 9, 3, [0, 0, 50, 50], crowd=1),
            annotation(4, 9, 3, [60, 60, 20, 20]),
        ],
    )
    (tmp_path / 'truth.json').write_text(json.dumps(content))
    predictions = {
        # The dog's box overlaps by .72.
        5: ([[10, 10, 20, 20], [40, 10, 20, 20], [50, 40, 30, 21.6]], [0.9, 0.6, 0.8], [0, 0, 1]),
        9: ([[5, 5, 20, 20], [60, 60, 20, 20]], [0.7, 0.3], [0, 0]),
    }
    return tmp_path / 'truth.json', predictions


def detector_samples(predictions):
    for image, (boxes, scores, labels) in predictions.items():
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        found = dict(
            bboxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            scores=torch.tensor(scores, dtype=torch.float32),
            labels=torch.tensor(labels, dtype=torch.int64),
        )
        yield dict(img_id=image, img_path=f'pictures/{image}.png', ori_shape=(80, 100), pred_instances=found)


def evaluate_detector(truth, predictions, kind=CocoReportMetric, **kwargs):
    metric = kind(ann_file=str(truth), metric='bbox', **kwargs)
    metric.dataset_meta = dict(classes=('cat', 'dog', 'yak'))
    metric.process({}, list(detector_samples(predictions)))
    return metric, metric.evaluate(len(predictions))


def test_the_metric_of_detectors_by_hand(detections):
    metric, results = evaluate_detector(*detections)
    found, curves = metric.evaluation, metric.evaluation.curves
    assert found.classes == ['cat', 'dog', 'yak'] and found.num_images == 2 and found.iou == 0.5
    assert curves.positives.tolist() == [2, 1, 0]
    at = {round(threshold, 3): i for i, threshold in enumerate(curves.thresholds)}
    # The box in the crowd counts neither way.
    assert [curves.true_positives[:, at[t]].tolist() for t in (0.2, 0.5, 0.85)] == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert [curves.false_positives[:, at[t]].tolist() for t in (0.2, 0.5, 0.85)] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    cat = (51 + 50 * 2 / 3) / 101  # COCO's 101 points of recall
    assert found.average_precision['AP'] == pytest.approx([cat, 0.5, np.nan], nan_ok=True)
    assert found.average_precision['AP50'] == pytest.approx([cat, 1, np.nan], nan_ok=True)
    assert found.average_precision['AP75'] == pytest.approx([cat, 0, np.nan], nan_ok=True)
    assert results['coco/bbox_mAP'] == pytest.approx(np.nanmean(found.average_precision['AP']), abs=5e-4)
    assert curves.probabilities[-1] == pytest.approx([(0.9 + 0.3 + 0.8) / 3, 1 - 0.6])
    assert [(p.path, p.brier) for p in found.worst] == [
        ('pictures/9.png', pytest.approx(0.7**2)),
        ('pictures/5.png', pytest.approx(0.1**2 + 0.6**2 + 0.2**2)),
    ]
    crowd, second = found.worst[0], found.worst[1]
    assert crowd.size == (100, 80)
    assert {one[2:] for one in crowd.objects} == {(True, 0, 0, 50, 50), (False, 60, 60, 20, 20)}
    assert [score for _, score, is_crowd, *_ in crowd.objects if not is_crowd] == [pytest.approx(0.3)]
    assert [(label, truth) for label, _, truth, *_ in crowd.boxes] == [(0, None), (0, True)]
    assert [(label, truth) for label, _, truth, *_ in second.boxes] == [(0, True), (1, True), (0, False)]
    assert second.boxes[2][3:] == pytest.approx((40, 10, 20, 20))


def test_a_detector_that_finds_nothing(detections):
    truth, predictions = detections
    metric, _ = evaluate_detector(truth, {image: ([], [], []) for image in predictions})
    curves = metric.evaluation.curves
    assert curves.positives.tolist() == [2, 1, 0] and not curves.true_positives.any()
    assert metric.evaluation.average_precision['AP'] == pytest.approx([0, 0, np.nan], nan_ok=True)
    assert [picture.brier for picture in metric.evaluation.worst] == [2, 1]


def test_what_no_report_is_made_of():
    for wrong in (dict(metric='segm'), dict(format_only=True, outfile_prefix='x')):
        with pytest.raises(ValueError, match="metric='bbox' and format_only=False"):
            CocoReportMetric(**wrong)
    with pytest.raises(ValueError, match='test_evaluator is VOCMetric; a report is made of MultiLabelMetric or Coco'):
        report_metric([ConfigDict(type='VOCMetric')])
    with pytest.raises(ValueError, match='test_evaluator is missing'):
        report_metric([])
    evaluators = [
        ConfigDict(type='VOCMetric'),
        ConfigDict(type='mmdet.CocoMetric', metric='bbox'),
        ConfigDict(type='X'),
    ]
    report_metric(evaluators)
    assert [evaluator.type for evaluator in evaluators] == ['VOCMetric', 'mmdet.CocoReportMetric', 'X']
    evaluator = ConfigDict(type=MultiLabelMetric)
    report_metric([evaluator])
    assert METRICS.get(evaluator.type) is MultiLabelReportMetric


# ------------------------------------------------------------------------------------------------------ training curves


def log(folder, *lines):
    path = folder / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, lines)))


def test_training_curves(tmp_path):
    assert 'No training log lies beside the checkpoint' in training_charts(tmp_path)['text']
    training = [
        dict(loss=1 / i, lr=0.1, epoch=1, step=i, gap=0.5, gamma_neg=4.0, time=1.0, memory=3) for i in range(1, 1001)
    ]
    validation = {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_l': -1.0, 'coco/cat_precision': 0.7, 'step': 1, 'data_time': 0.1}
    log(tmp_path / '20260101_000000', *training, validation)
    found = training_charts(tmp_path)
    assert '1,000 lines of training and 1 of validation' in found['text']
    assert [(chart['title'], chart['x'], [one['name'] for one in chart['series']]) for chart in found['charts']] == [
        ('Training losses', 'iteration', ['loss']),
        ('Probabilities in training (eqs. 9, 10)', 'iteration', ['gap']),
        ('Validation, coco', 'epoch', ['bbox_mAP', 'bbox_mAP_l']),
        ('Learning rate', 'iteration', ['lr']),
        ('gamma_neg in training', 'iteration', ['gamma_neg']),
    ]
    loss = found['charts'][0]['series'][0]
    assert len(loss['x']) == 400 and loss['x'][0] == 1 and loss['x'][-1] == 1000 and loss['y'][-1] == 0.001
    assert [one['y'] for one in found['charts'][2]['series']] == [[0.5], [None]]  # COCO's -1 is no value
    (tmp_path / '20260101_000000/vis_data/scalars.json').write_text('nonsense\n{}')
    assert "line 1: 'nonsense' is not a JSON object" in training_charts(tmp_path)['text']
    (tmp_path / '20260101_000000/vis_data/scalars.json').write_bytes(b'\xbd\xff\n{}')
    assert "line 1: '\ufffd\ufffd' is not a JSON object" in training_charts(tmp_path)['text']
    (tmp_path / '20260101_000000/vis_data/scalars.json').write_text('{"loss": 1.5, "step": 10}')
    (tmp_path / '20260101_000000/vis_data/config.py').write_bytes(b'\xbd\xff\n')
    assert '1 lines of training' in training_charts(tmp_path)['text']


def test_metrics_of_a_class_stand_in_its_row_alone(tmp_path):
    # One of the names holds a slash.
    _, _, made = samples(tmp_path)
    metric = MultiLabelReportMetric(per_class=True, best_threshold=True)
    results = evaluate(metric, made)
    overall = {name: value for name, value in results.items() if not re.search('/(AP|best_thr)_', name)}
    assert len(results) == len(overall) + 2 * len(CLASSES)
    lines = [dict(loss=1.0, epoch=1, step=1), {**results, 'step': 1}]
    log(tmp_path / '20260101_000000', *lines)
    files = tmp_path / 'config.py', tmp_path / 'epoch_1.pth'
    data, _ = page_data(write_report(tmp_path, metric.evaluation, results, *files))
    names = [name.removeprefix('multi-label/') for name in overall]
    assert data['metrics'] == [[name, pytest.approx(value, abs=1e-6)] for name, value in zip(names, overall.values())]
    (chart,) = (chart for chart in data['training']['charts'] if chart['title'].startswith('Validation'))
    assert chart['title'] == 'Validation, multi-label' and [one['name'] for one in chart['series']] == names


# --------------------------------------------------------------------------------------------------------- in a browser


def test_json_cannot_leave_its_element():
    text = embedded_json(['</script>', '<!--', ']]>', '\u2028', '\udcff'])
    assert '<' not in text and '>' not in text and text.isascii() and json.loads(text)[0] == '</script>'


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """A page about a classifier, and the scores and labels behind it; the first picture cannot be read."""
    folder = tmp_path_factory.mktemp('report')
    scores, targets, made = samples(folder)
    for i, sample in enumerate(made[1:], 1):
        cv2.imwrite(sample.img_path, np.full((40, 30 + 20 * i, 3), 8 * i, np.uint8))
    metric = MultiLabelReportMetric()
    results = evaluate(metric, made)
    log(folder / '20260101_000000', *(dict(loss=1 / i, epoch=1, step=i) for i in range(1, 5)))
    path = write_report(folder / 'out', metric.evaluation, results, folder / 'config.py', folder / 'epoch_1.pth')
    return path, scores, targets


def tiles(driver, place):
    script = f"""return Object.fromEntries([...document.querySelectorAll("#{place} [data-name]")]
        .map((tile) => [tile.dataset.name, tile.querySelector("b").textContent]))"""
    return driver.execute_script(script)


def move(driver, control, value):
    script = 'arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event("input", { bubbles: true }))'
    driver.execute_script(script, driver.find_element('id', control), value)


def column(driver, key):
    return driver.execute_script(
        f'return [...document.querySelectorAll("#rows td[data-key={key}]")].map((cell) => cell.textContent)'
    )


def test_the_numbers_at_a_threshold_are_those_of_the_metrics(report, browser):
    path, scores, targets = report
    driver = browser.open(path)
    thresholds = page_data(path)[0]['curves']['thresholds']
    for index in (10, 53, 90):
        move(driver, 'slider', index)
        move(driver, 'ratio', 2.5)
        counts = counts_at_threshold(scores, targets, thresholds[index])
        rates = precision_recall_f1(counts)
        true, predicted, positives = (int(count.sum()) for count in counts)
        assert driver.find_element('id', 'threshold-value').text == f'{thresholds[index]:g}'
        assert tiles(driver, 'counts') == {
            **{
                f'{name}, %': f'{100 * rates[key]:.1f}'
                for name, key in (('precision', 'OP'), ('recall', 'OR'), ('F1', 'OF1'))
            },
            **{f'{key}, %': f'{100 * rates[key]:.1f}' for key in ('CP', 'CR', 'CF1')},
            'false positives': str(predicted - true),
            'missed positives': str(positives - true),
            'cost': f'{predicted - true + 2.5 * (positives - true):g}',
        }
        assert column(driver, 'FP') == [
            str(int(counts.predicted[i] - counts.true_positives[i]))
            for i in map(CLASSES.index, column(driver, 'class'))
        ]
    costs = []
    for threshold in thresholds:
        true, predicted, positives = (int(count.sum()) for count in counts_at_threshold(scores, targets, threshold))
        costs.append(predicted - true + 2.5 * (positives - true))
    driver.find_element('id', 'lowest-cost').click()
    assert driver.find_element('id', 'threshold-value').text == f'{thresholds[int(np.argmin(costs))]:g}'
    assert tiles(driver, 'counts')['cost'] == f'{min(costs):g}'


def test_filter_sort_and_the_curves_of_a_class(report, browser, tmp_path):
    path, scores, targets = report
    driver = browser.open(path, width=1280, height=900)
    shown = [float(text) for text in column(driver, 'AP')]
    assert len(shown) == 5 and shown == sorted(shown)
    driver.find_element('css selector', '[data-key=AP] button').click()
    assert [float(text) for text in column(driver, 'AP')] == shown[::-1]
    driver.find_element('css selector', '[data-key=class] button').click()
    assert sorted(column(driver, 'class')) == sorted(CLASSES)
    driver.find_element('id', 'filter').send_keys('DOG')
    assert column(driver, 'class') == ['cat & dog']
    assert driver.find_element('id', 'shown').text == '1 shown of 1 that match, 5 in all'
    driver.find_element('css selector', '#rows tr').click()
    assert driver.find_element('css selector', '#by-threshold h3').text == 'Precision, recall and F1, cat & dog'
    index = 40
    move(driver, 'slider', index)
    counts = counts_at_threshold(scores, targets, page_data(path)[0]['curves']['thresholds'][index])
    assert tiles(driver, 'counts')['missed positives'] == str(int(counts.positives[1] - counts.true_positives[1]))
    driver.find_element('id', 'all-classes').click()
    assert driver.find_element('css selector', '#by-threshold h3').text.endswith('all classes together')
    known = targets[:, 1] != -1
    gap = scores[known & (targets[:, 1] == 1), 1].mean() - (1 - scores[known & (targets[:, 1] == 0), 1]).mean()
    assert float(column(driver, 'gap')[0]) == pytest.approx(float(gap), abs=6e-4)
    browser.screenshot(tmp_path / 'page.png')
    picture = cv2.imread(str(tmp_path / 'page.png'))
    assert picture.shape[0] > 2000 and picture.shape[1] == 1280 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_charts_and_pictures(report, browser):
    path, scores, targets = report
    driver = browser.open(path)
    drawn = driver.execute_script(
        'return [...document.querySelectorAll(".chart h3")].map((title) => title.textContent)'
    )
    assert [title.partition(',')[0] for title in drawn] == [
        *('Precision', 'Cost', 'Precision and recall', 'Scores', 'Average precision of the classes'),
        *('Gap by class', 'Training losses'),
    ]
    labels = driver.execute_script(
        'return [...document.querySelectorAll("#histogram text")].map((text) => text.textContent)'
    )
    assert 'score' in labels and 'number (logarithmic)' in labels
    drawings = driver.execute_script(
        'return [...document.querySelectorAll(".chart > svg")].map((drawing) => drawing.outerHTML)'
    )
    assert len(drawings) == 7 and not any('NaN' in drawing or 'Infinity' in drawing for drawing in drawings)
    assert len(driver.find_elements('css selector', '#worst figure')) == 12
    data = page_data(path)[0]
    for place in ('worst', 'best'):
        for picture, figure in zip(data['pictures'][place], driver.find_elements('css selector', f'#{place} figure')):
            assert figure.get_attribute('data-name') == picture['name']
            assert bool(figure.find_elements('css selector', '.unreadable')) == (picture['source'] is None)
    move(driver, 'slider', 53)
    threshold = data['curves']['thresholds'][53]
    first = driver.find_element('css selector', '#worst figure')
    expected = [
        'right' if truth and score >= threshold else 'missed' if truth else 'wrong'
        for _, score, truth in data['pictures']['worst'][0]['labels']
        if truth or score >= threshold
    ]
    assert [chip.get_attribute('class') for chip in first.find_elements('css selector', '.chips span')] == expected
    assert driver.execute_script(
        'return [...document.images].every((image) => image.complete && image.naturalWidth > 0)'
    )


def test_names_are_text_and_nothing_is_loaded(report, browser):
    path, _, _ = report
    driver = browser.open(path, width=390, height=800)
    assert driver.execute_script('return window.broken') is None
    assert len(driver.find_elements('css selector', 'img')) == driver.execute_script(
        'return document.querySelectorAll("figure img").length'
    )
    assert set(column(driver, 'class')) == set(CLASSES)
    assert driver.execute_script('return document.documentElement.scrollWidth') == 390
    _, rest = page_data(path)
    assert not re.search(r'(src|href)=|https?:(?!//www\.w3\.org/2000/svg)|@import|url\(', rest)
    # What is put into the page later does not run either.
    driver.execute_script(
        'const late = document.createElement("script"); late.text = "window.late = 1"; document.body.append(late)'
    )
    assert driver.execute_script('return window.late') is None
    assert [line for line in browser.complaints() if 'Content Security Policy' not in line] == []


def test_boxes_of_a_detector(detections, browser, tmp_path):
    (tmp_path / 'pictures').mkdir()
    for number in (5, 9):
        cv2.imwrite(str(tmp_path / f'pictures/{number}.png'), np.zeros((80, 100, 3), np.uint8))
    metric, results = evaluate_detector(*detections)
    pictures = {
        end: [Picture(**{**vars(one), 'path': str(tmp_path / one.path)}) for one in getattr(metric.evaluation, end)]
        for end in ('worst', 'best')
    }
    evaluation = Evaluation(**{**vars(metric.evaluation), **pictures})
    path = write_report(tmp_path, evaluation, results, tmp_path / 'c.py', tmp_path / 'none/epoch_1.pth')
    driver = browser.open(path)
    assert 'No training log' in driver.find_element('id', 'training-text').text
    thresholds = page_data(path)[0]['curves']['thresholds']
    for threshold, expected in (
        (0.2, ['✓ 2 found', '✗ 1 wrong', '○ 0 missed']),
        (0.85, ['✓ 1 found', '✗ 0 wrong', '○ 1 missed']),
    ):
        move(driver, 'slider', thresholds.index(threshold))
        figure = driver.find_element('css selector', 'figure[data-name="5.png"]')
        assert figure.text.splitlines()[-3:] == expected
    rectangles = figure.find_elements('css selector', 'rect')
    assert [one.get_attribute('class') for one in rectangles] == ['right', 'missed', 'right']
    assert [float(rectangles[1].get_attribute(name)) for name in ('x', 'y', 'width', 'height')] == [50, 40, 30, 30]
    box, image = rectangles[1].rect, figure.find_element('css selector', 'img').rect
    assert (box['x'] - image['x']) / image['width'] == pytest.approx(0.5, abs=0.02)
    assert (box['y'] - image['y']) / image['height'] == pytest.approx(0.5, abs=0.03)


@pytest.mark.slow
def test_5400_classes_stay_readable(browser, tmp_path):
    generator = np.random.default_rng(0)

    def classes():
        for _ in range(5400):
            candidates = np.sort(generator.random(3000))
            yield ClassScores(candidates, np.sort(generator.choice(candidates, 30, replace=False)), 30)

    curves = score_curves(classes(), 5400, generator.random(1000))
    names = [f'class {i}' for i in range(5400)]
    evaluation = Evaluation(names, 3000, curves, dict(AP=curves.average_precision), None, [], [])
    path = write_report(tmp_path, evaluation, {}, tmp_path / 'c.py', tmp_path / 'none/epoch_1.pth')
    print(f'{path.stat().st_size / 1e6:.2f} MB')
    assert path.stat().st_size < 6e6
    driver = browser.open(path)
    assert len(column(driver, 'class')) == 200
    driver.find_element('id', 'more').click()
    assert len(column(driver, 'class')) == 400
    move(driver, 'filter', 'class 539')
    assert len(column(driver, 'class')) == 11
    move(driver, 'slider', 12)
    assert column(driver, 'R')[0] == f'{100 * curves.true_positives[int(column(driver, "class")[0][6:]), 12] / 30:.1f}'


@pytest.mark.slow
def test_an_evaluation_as_large_as_coco_2014(tmp_path):
    """docs/report.md has what this prints: pytest -s -m slow -k as_large_as_coco."""
    number, classes = 40137, 80
    generator = np.random.default_rng(0)
    positive = generator.random((number, classes)) < 2.9 / classes
    logits = generator.normal(-3, 1.5, (number, classes)) + 3 * positive
    scores = torch.from_numpy((1 / (1 + np.exp(-logits))).astype(np.float32))
    picture = cv2.GaussianBlur(generator.integers(0, 255, (480, 640, 3), dtype=np.uint8), (0, 0), 2)
    cv2.imwrite(str(tmp_path / 'picture.jpg'), picture)
    made = [
        dict(img_path=str(tmp_path / 'picture.jpg'), pred_score=score, gt_label=torch.from_numpy(row.nonzero()[0]))
        for score, row in zip(scores, positive)
    ]
    for metric in (MultiLabelMetric(), MultiLabelReportMetric()):
        metric.dataset_meta = dict(classes=[f'class {i}' for i in range(classes)])
        for start in range(0, number, 128):
            metric.process({}, made[start : start + 128])
        start = time.perf_counter()
        results = metric.evaluate(number)
        print(f'{type(metric).__name__}: {time.perf_counter() - start:.2f} s')
    start = time.perf_counter()
    path = write_report(tmp_path, metric.evaluation, results, tmp_path / 'c.py', tmp_path / 'none/epoch_1.pth')
    print(f'page: {time.perf_counter() - start:.2f} s, {path.stat().st_size / 1e6:.2f} MB')
    assert path.stat().st_size < 1.5e6
    assert metric.evaluation.curves.positives.tolist() == positive.sum(0).tolist()


# --------------------------------------------------------------------------------------------------------------- a tool


def untrained(config, path):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)


def test_the_tool_writes_a_report_for_both_tasks(shapes, browser, tmp_path):
    configs = dict(
        classifier='configs/multi_label/tresnet-narrow_asl_shapes.py',
        detector='configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py',
    )
    running = {}
    for name, config in configs.items():
        folder = tmp_path / name
        folder.mkdir()
        untrained(ROOT / config, folder / 'epoch_1.pth')
        log(folder / '20260101_000000', dict(loss=1.0, epoch=1, step=1))
        command = ['tools/test.py', config, folder / 'epoch_1.pth', '--work-dir', folder / 'test', '--report', folder]
        options = [f'test_dataloader.dataset.data_root={shapes}/', 'test_dataloader.num_workers=0']
        options += ['test_dataloader.persistent_workers=False']
        if name == 'detector':
            options += [f'test_evaluator.ann_file={shapes}/annotations/val.json', 'model.test_cfg.score_thr=0.0']
        running[name] = start_tool(*command, '--cfg-options', *options, env=dict(OMP_NUM_THREADS='1'))
    for name, process in running.items():
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        path = tmp_path / name / 'report.html'
        assert f'Report: {path}' in output
        data, _ = page_data(path)
        logged = json.loads(next((tmp_path / name).glob('test/*/*.json')).read_text())
        key = 'multi-label/mAP' if name == 'classifier' else 'coco/bbox_mAP'
        assert dict(data['metrics'])[key.partition('/')[2]] == pytest.approx(logged[key], abs=1e-5)
        truth = json.loads((shapes / 'annotations/val.json').read_text())
        pairs = [(one['image_id'], one['category_id']) for one in truth['annotations']]
        assert sum(data['classes']['positives']) == len(set(pairs) if name == 'classifier' else pairs)
        assert '6 images, 6 classes' in data['about']['text']
        source = data['pictures']['worst'][0]['source']
        jpeg = np.frombuffer(base64.b64decode(source.partition(',')[2]), np.uint8)
        assert cv2.imdecode(jpeg, cv2.IMREAD_COLOR).shape == (64, 64, 3)
        driver = browser.open(path)
        assert len(column(driver, 'class')) == 6 and driver.find_elements('css selector', '#worst figure')
        assert data['training']['charts'][0]['series'][0]['y'] == [1.0]


@pytest.mark.slow
def test_two_processes_write_one_report(shapes, tmp_path):
    config = 'configs/multi_label/tresnet-narrow_asl_shapes.py'
    untrained(ROOT / config, tmp_path / 'epoch_1.pth')
    loader = [f'test_dataloader.{option}' for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=1')]
    done = run_tool(
        *('tools/dist_test.sh', config, tmp_path / 'epoch_1.pth', 2, '--work-dir', tmp_path / 'test'),
        *('--report', tmp_path / 'out', '--cfg-options', f'test_dataloader.dataset.data_root={shapes}/', *loader),
        env=dict(OMP_NUM_THREADS='1', PORT='29511'),
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count('Report: ') == 1
    data, _ = page_data(tmp_path / 'out/report.html')
    assert '6 images' in data['about']['text'] and len({one['name'] for one in data['pictures']['worst']}) == 6


@pytest.mark.slow
def test_a_report_that_cannot_be_written_is_refused_before_the_evaluation(tmp_path):
    (tmp_path / 'file').write_text('')
    checkpoint = tmp_path / 'epoch_1.pth'
    checkpoint.write_bytes(b'')
    done = run_tool(
        *('tools/test.py', 'configs/multi_label/tresnet-narrow_asl_shapes.py', checkpoint),
        *('--report', tmp_path / 'file', '--work-dir', tmp_path),
    )
    assert done.returncode == 2 and f'--report {tmp_path / "file"}: ' in done.stdout and 'Traceback' not in done.stdout
