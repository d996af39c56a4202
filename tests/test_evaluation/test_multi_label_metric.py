"""MultiLabelMetric as mmengine's loops use it: batches of data samples in, a dict of percentages out."""

import itertools
import logging

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner

from asl_mmdet.evaluation import MultiLabelMetric
from asl_mmdet.structures import MultiLabelDataSample
from tests.conftest import in_processes

EVERYTHING = dict(
    items=('mAP', 'mAP_micro', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1'), official_map=True, best_threshold=True
)


def sample(score, label=None, negative=None, unknown=None, **metainfo):
    fields = dict(gt_label=label, gt_negative=negative, gt_unknown=unknown)
    fields = {name: torch.tensor(value, dtype=torch.int64) for name, value in fields.items() if value is not None}
    return MultiLabelDataSample(metainfo=metainfo, pred_score=torch.tensor(score, dtype=torch.float32), **fields)


def random_samples(number, num_classes=5):
    generator = torch.Generator().manual_seed(number)
    samples = []
    for i in range(number):
        listed = torch.randperm(num_classes, generator=generator).tolist()
        score = torch.randint(0, 21, (num_classes,), generator=generator) / 20
        samples.append(
            sample(
                score.tolist(),
                listed[: 1 + i % 2],
                negative=listed[2:4],
                unknown=listed[4 : 4 + i % 3],
                untagged_weight=(1.0, 0.0, 0.3)[i % 3],
                num_classes=num_classes,
            )
        )
    return samples


def evaluate(samples, batch_sizes=(3, 1), size=None, classes=None, **config):
    evaluator = Evaluator(MultiLabelMetric(**config))
    evaluator.dataset_meta = {} if classes is None else dict(classes=classes)
    samples, sizes = list(samples), itertools.cycle(batch_sizes)
    while samples:
        batch_size = next(sizes)
        evaluator.process(samples[:batch_size])
        samples = samples[batch_size:]
    return evaluator.evaluate(size)


# --------------------------------------------------------------------------------------------------------------- values


def test_table_8_by_hand():
    # Class 0: positives at ranks 1 and 2. Class 1: at rank 3. Class 2: none. Predicted at .5: {0, 1}, {0} and {1}.
    samples = [sample([0.9, 0.8, 0.1], [0]), sample([0.7, 0.2, 0.4], [0, 1]), sample([0.3, 0.6, 0.2], [])]
    results = evaluate(samples, size=3, topk=1, official_map=True)
    assert results == pytest.approx(
        {
            'multi-label/mAP': 100 * (1 + 1 / 3) / 2,
            'multi-label/mAP_official': 100 * (1 + 1 / 3) / 3,
            'multi-label/CP': 50,
            'multi-label/CR': 50,
            'multi-label/CF1': 50,
            'multi-label/OP': 50,
            'multi-label/OR': 200 / 3,
            'multi-label/OF1': 400 / 7,
            'multi-label/CP_top1': 50,
            'multi-label/CR_top1': 50,
            'multi-label/CF1_top1': 50,
            'multi-label/OP_top1': 200 / 3,
            'multi-label/OR_top1': 200 / 3,
            'multi-label/OF1_top1': 200 / 3,
        }
    )
    assert list(results)[0] == 'multi-label/mAP'  # which save_best='auto' takes


def test_threshold_and_items():
    samples = [sample([0.9, 0.8], [0]), sample([0.7, 0.2], [0])]
    results = evaluate(samples, size=2, thr=0.75, topk=None, items=('OP', 'OR'), prefix='raw')
    assert results == pytest.approx({'raw/OP': 50, 'raw/OR': 50})
    assert evaluate(samples, size=2, thr=None, topk=2, items=['OP']) == {'multi-label/OP_top2': 50}


def test_the_top_above_the_threshold_as_in_table_8():
    # At .5 the two highest are {0}, {0, 1} and none, with 2 right; all four classes of the second image reach it.
    samples = [sample([0.9, 0.4, 0.3, 0.2], [0]), sample([0.8, 0.7, 0.6, 0.5], [1]), sample([0.4, 0.3, 0.2, 0.1], [0])]
    results = evaluate(samples, size=3, topk=2, topk_above_thr=True, items=('OP', 'OR'))
    assert results == pytest.approx(
        {
            'multi-label/OP': 200 / 5,
            'multi-label/OR': 200 / 3,
            'multi-label/OP_top2': 200 / 3,
            'multi-label/OR_top2': 200 / 3,
        }
    )


def test_micro_map_and_best_thresholds_by_hand():
    # All pairs: .9 + | .8 - | .7 + | .2 -. Precision at the positives: 1 and 2/3. Best F1 at .7: 2 * 2 / (3 + 2).
    samples = [sample([0.9, 0.8], [0]), sample([0.2, 0.7], [1])]
    results = evaluate(samples, size=2, items=['mAP_micro'], best_threshold=True)
    assert results == pytest.approx(
        {
            'multi-label/mAP_micro': 100 * (1 + 2 / 3) / 2,
            'multi-label/best_OF1': 80,
            'multi-label/best_OF1_thr': 0.7,
            # Class 0 at .9: 1. Class 1 at .7: 2 / (2 + 1).
            'multi-label/best_F1': 100 * (1 + 2 / 3) / 2,
        }
    )


def test_unknown_labels_do_not_count():
    # .8 is of a difficult object: without it the precision at .7 is 1.
    results = evaluate([sample([0.9], [0]), sample([0.8], [], unknown=[0]), sample([0.7], [0])], size=3)
    assert results['multi-label/mAP'] == 100 and results['multi-label/OP'] == 100


@pytest.mark.parametrize('untagged_weight, precision', [(1.0, 25), (0.3, 50), (0.0, 50)])
def test_untagged_classes_of_a_partial_image_do_not_count(untagged_weight, precision):
    samples = [sample([0.9, 0.8, 0.7, 0.6], [0], negative=[1], untagged_weight=untagged_weight)]
    assert evaluate(samples, size=1)['multi-label/OP'] == precision


def test_classes_without_a_negative_are_left_out_on_request():
    samples = [sample([0.9, 0.2], [0, 1]), sample([0.8, 0.6], [0])]
    assert evaluate(samples, size=2, topk=None)['multi-label/mAP'] == 75
    results = evaluate(samples, size=2, topk=None, require_negatives=True)
    assert (results['multi-label/mAP'], results['multi-label/CR'], results['multi-label/OR']) == pytest.approx(
        (50, 0, 200 / 3)
    )


def test_macro_f1_of_single_labels():
    # Predicted 0 0 1 2, true 0 1 1 0: F1 of 0 is 2 / 4, of 1 it is 2 / 3, of 2 it is 0, and 3 does not occur.
    scores = [[0.9, 0.1, 0, 0], [0.9, 0.9, 0, 0], [0, 0.2, 0.1, 0], [0, 0, 1, 0]]
    samples = [sample(score, [label]) for score, label in zip(scores, (0, 1, 1, 0))]
    results = evaluate(samples, size=4, items=['macro_F1'])
    assert results == pytest.approx({'multi-label/macro_F1': 100 * (2 / 4 + 2 / 3 + 0) / 3})


def test_scores_are_kept_only_where_they_are_needed():
    samples = [s.to_dict() for s in random_samples(4)]
    for config, kept in ((dict(), (4, 5)), (dict(items=['macro_F1']), None), (dict(items=['OF1'], thr=None), None)):
        metric = MultiLabelMetric(**config)
        metric.process(None, [dict(s, gt_label=s['gt_label'][:1]) for s in samples])
        scores = metric.results[0].scores
        assert (None if scores is None else scores.shape) == kept
    metric = MultiLabelMetric()
    metric.process(None, samples)
    assert metric.results[0].scores.dtype == 'float32' and metric.results[0].labels['gt_label'].dtype == 'int32'
    before = metric.results[0].scores.copy()
    samples[0]['pred_score'].zero_()  # by a model that uses its buffers again
    assert (metric.results[0].scores == before).all() and before[0].any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_scores(dtype):
    samples = [sample([0.75, 0.5], [0]), sample([0.25, 0.5], [1])]
    for s in samples:
        s.pred_score = s.pred_score.to(dtype)
    assert evaluate(samples, size=2)['multi-label/mAP'] == 75


def test_batches_make_no_difference_and_results_are_cleared():
    samples = random_samples(11)
    expected = evaluate(samples, batch_sizes=(11,), size=11, **EVERYTHING)
    assert evaluate(samples, batch_sizes=(1, 4, 2), size=11, **EVERYTHING) == expected
    metric = MultiLabelMetric(**EVERYTHING)
    metric.process(None, [sample([0.5] * 5, []).to_dict()])
    with pytest.raises(ValueError):
        metric.evaluate(1)
    for _ in range(2):
        metric.process(None, [s.to_dict() for s in samples])
        assert metric.evaluate(11) == expected
    # What the sampler repeats at the end is dropped.
    assert evaluate(samples + samples[:3], batch_sizes=(5,), size=11, **EVERYTHING) == expected
    assert evaluate(samples + samples[:3], batch_sizes=(5,), size=14, **EVERYTHING) != expected


# ------------------------------------------------------------------------------------------------------------ processes


def rank_of_two(rank):
    results = []
    for size, padded, collect_device in itertools.product((1, 2, 7, 8), (True, False), ('cpu', 'gpu')):
        samples = random_samples(size)
        mine = [samples[i % size] for i in range(rank, size + (size % 2 if padded else 0), 2)]
        results.append(evaluate(mine, (3, 1) if rank else (2,), size, collect_device=collect_device, **EVERYTHING))
    # Shares that are not every second image.
    results.append(evaluate(random_samples(7)[5:] if rank else random_samples(7)[:5], size=7, **EVERYTHING))
    return results


def test_two_processes_give_what_one_gives(tmp_path):
    expected = [evaluate(random_samples(size), size=size, **EVERYTHING) for size in (1, 2, 7, 8) for _ in range(4)]
    expected.append(evaluate(random_samples(7), size=7, **EVERYTHING))
    assert in_processes(rank_of_two, tmp_path) == [expected, expected]
    repeated = random_samples(7) + random_samples(7)[:1]
    assert evaluate(repeated, size=8, **EVERYTHING) != evaluate(repeated, size=7, **EVERYTHING)


# ----------------------------------------------------------------------------------------------------- table and runner


def test_table_of_classes(caplog):
    # The order in which mmengine's loggers were made by other tests decides whether caplog sees them.
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        samples = [sample([0.9, 0.2, 0.4], [0]), sample([0.8, 0.6, 0.4], [0, 1]), sample([0.1, 0.7, 0.4], [])]
        with caplog.at_level(logging.INFO, logger.name):
            results = evaluate(samples, size=3, classes=('cat', 'dog', 'emu'), per_class=True, best_threshold=True)
    finally:
        logger.removeHandler(caplog.handler)
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in caplog.text.splitlines() if '|' in line]
    assert rows == [
        ['class', 'positives', 'AP', 'precision', 'recall', 'best F1', 'best thr'],
        ['cat', '2', '100.0', '100.0', '100.0', '100.0', '0.800'],
        ['dog', '1', '50.0', '50.0', '100.0', '66.7', '0.600'],
        ['emu', '0', '-', '-', '-', '-', '-'],
    ]
    per_class = {name: value for name, value in results.items() if name.endswith(('cat', 'dog', 'emu'))}
    assert per_class == pytest.approx(
        {
            'multi-label/AP_cat': 100,
            'multi-label/best_thr_cat': 0.8,
            'multi-label/AP_dog': 50,
            'multi-label/best_thr_dog': 0.6,
        }
    )


class Better(BaseModel):
    """Tells even images, of class 1, from odd ones, of class 0, from its second training step on."""

    def __init__(self):
        super().__init__()
        self.steps = torch.nn.Parameter(torch.zeros(()))

    def forward(self, index, mode):
        if mode == 'loss':
            return dict(loss=-self.steps)
        scores = [[0.5, 0.25 + 0.2 * float(self.steps) if i % 2 == 0 else 0.5] for i in index]
        return [sample(score, [int(i % 2 == 0)]) for score, i in zip(scores, index)]


def test_save_best_follows_the_map(tmp_path):
    runner = Runner(
        model=Better(),
        work_dir=str(tmp_path),
        train_dataloader=dict(dataset=[dict(index=0)], batch_size=1, sampler=dict(type='DefaultSampler')),
        val_dataloader=dict(
            dataset=[dict(index=i) for i in range(4)], batch_size=3, sampler=dict(type='DefaultSampler')
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0)),
        val_evaluator=dict(type='mmdet.MultiLabelMetric'),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=-1, save_best='multi-label/mAP', save_last=False)
        ),
        experiment_name='save_best',
    )
    runner.train()
    assert (tmp_path / 'best_multi-label_mAP_epoch_2.pth').exists()


# ---------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(items=['map']), r"items=\('map',\).*mAP_micro"),
        (dict(items=[]), 'items='),
        (dict(thr=80), r'thr=80.*\(0, 1\)'),
        (dict(topk=0), 'topk=0'),
        (dict(topk=2.5), 'topk=2.5'),
        (dict(topk_above_thr=True, thr=None), 'topk_above_thr=True of MultiLabelMetric wants .* thr=None, topk=3'),
    ],
)
def test_arguments_out_of_range(config, message):
    with pytest.raises(ValueError, match=message):
        MultiLabelMetric(**config)


def without_score():
    data_sample = sample([0.5, 0.5], [0], img_path='a.jpg')
    del data_sample.pred_score
    return data_sample


@pytest.mark.parametrize(
    'data_sample, message',
    [
        (without_score(), 'a.jpg has no pred_score'),
        (sample([0.5, float('nan')], [0], img_path='a.jpg'), 'pred_score of a.jpg holds nan for class 1'),
        (sample([-3.0, 2.0], [0], img_path='a.jpg'), r'pred_score of a.jpg holds -3.0 for class 0.*sigmoid'),
        (
            sample([0.5, 0.5, 0.5], [0], img_path='a.jpg'),
            r'of a.jpg has the shape \(3,\).*has 2 classes.*num_classes=2',
        ),
        (sample([[0.5, 0.5]], [0], img_path='a.jpg'), r'pred_score of a.jpg has the shape \(1, 2\)'),
        (sample([0.5, 0.5], [0], img_path='a.jpg', num_classes=3), 'pred_score of a.jpg .* 3 classes'),
        (sample([0.5, 0.5], img_path='a.jpg'), 'a.jpg has no ground truth'),
        (sample([0.5, 0.5], [2], img_path='a.jpg'), r'gt_label of a.jpg is tensor\(\[2\]\).*from 0 to 1'),
        (sample([0.5, 0.5], [0], negative=[-1], img_path='a.jpg'), 'gt_negative of a.jpg'),
    ],
)
def test_wrong_samples(data_sample, message):
    for classes in (('cat', 'dog'), None):
        with pytest.raises(ValueError, match=message):
            evaluate([sample([0.5, 0.5], [0]), data_sample], size=2, classes=classes)


def test_dense_ground_truth_is_refused():
    data_sample = sample([0.5, 0.5], [0], img_path='a.jpg')
    data_sample.gt_label = torch.tensor([True, False])
    with pytest.raises(ValueError, match=r'gt_label of a.jpg is tensor\(\[ True, False\]\)'):
        evaluate([data_sample], size=1)


def test_class_names_and_predictions_of_another_number():
    with pytest.raises(ValueError, match=r'shape \(2,\), but its data set has 3 classes'):
        evaluate([sample([0.5, 0.5], [0])], size=1, classes=('cat', 'dog', 'emu'))


def test_batches_of_other_numbers_of_classes():
    with pytest.raises(ValueError, match=r'shape \(3,\), but its data set has 2 classes'):
        evaluate([sample([0.5, 0.5], [0]), sample([0.5, 0.5, 0.5], [0])], batch_sizes=(1,), size=2)


@pytest.mark.parametrize(
    'samples, config, message',
    [
        ([], {}, 'no predictions'),
        ([sample([0.5, 0.5], [])], {}, 'gt_label is empty in all 1 images'),
        ([sample([0.5, 0.5], [0, 1])], dict(require_negatives=True), 'require_negatives=False'),
        ([sample([0.5, 0.5], [0, 1])], dict(items='macro_F1'), 'macro_F1'),
        ([sample([0.5, 0.5], negative=[0])], dict(items='macro_F1'), 'macro_F1'),
    ],
)
def test_nothing_to_measure(samples, config, message):
    with pytest.raises(ValueError, match=message):
        evaluate(samples, size=len(samples), **config)
