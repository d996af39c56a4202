import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import LoggerHook
from torch import nn

from asl_mmdet.hooks.probability_gap_hook import is_logging_step
from asl_mmdet.models import AsymmetricLoss
from asl_mmdet.models.asymmetric_loss import ProbabilityStatistics

GAP = [dict(type='ProbabilityGapHook', every=1)]
# Positives 0.9 and 0.5, negatives 0.2, 0.4, 0.1, 0.6; then one positive 0.3 and negatives 0.8, 0.3 beside an unknown.
BATCHES = [
    ([[0.9, 0.2], [0.4, 0.5], [0.1, 0.6]], [[1, 0], [0, 1], [0, 0]]),
    ([[0.3, 0.8], [0.99, 0.3]], [[1, 0], [-1, 0]]),
]


def test_every_line_of_the_log_has_the_means_of_its_batch(run_batches):
    _, scalars = run_batches(BATCHES, GAP)
    assert scalars['p_t_pos'] == pytest.approx([0.7, 0.3])
    assert scalars['p_t_neg'] == pytest.approx([1 - 1.3 / 4, 1 - 1.1 / 2])
    assert scalars['gap'] == pytest.approx([0.7 - 1 + 1.3 / 4, 0.3 - 1 + 1.1 / 2], abs=1e-6)


def test_several_batches_are_pooled_not_averaged(run_batches):
    _, scalars = run_batches(BATCHES, GAP, interval=2)
    assert scalars['p_t_pos'] == pytest.approx([1.7 / 3])
    assert scalars['p_t_neg'] == pytest.approx([1 - 2.4 / 6])


def test_some_batches_and_that_of_the_line_are_watched(run_batches):
    batches = [([[p, 0.1]], [[1, 0]]) for p in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    _, scalars = run_batches(batches, [dict(type='ProbabilityGapHook', every=3)], interval=4)
    # The third and sixth, and the fourth and eighth, which have a line.
    assert scalars['p_t_pos'] == pytest.approx([0.35, 0.7]) and scalars['gap'] == pytest.approx([-0.55, -0.2])
    _, scalars = run_batches(batches, [dict(type='ProbabilityGapHook')], interval=2, work_dir='default')
    assert scalars['p_t_pos'] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    with pytest.raises(ValueError, match='every=0 of ProbabilityGapHook'):
        run_batches(batches, [dict(type='ProbabilityGapHook', every=0)])


def test_several_losses_are_logged_as_they_are_not_smoothed(run_batches, tmp_path):
    run_batches(BATCHES, GAP, TwoHeads())
    lines = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    gaps = [json.loads(line)['asl_cls.one/gap'] for line in lines]
    assert gaps == pytest.approx([0.025, -0.15], abs=1e-6)


def test_an_epoch_shorter_than_the_interval_has_its_line(run_batches):
    _, scalars = run_batches(BATCHES, GAP, interval=5)
    assert scalars['p_t_pos'] == pytest.approx([1.7 / 3])


COUNTED = [
    # 1 + 0.25 positives and 0.75 + 1 negatives.
    ([[1, 0.25, 0]], None, -1, [0.625, 1.25, 0.875, 1.75]),
    ([[1, 0.25, 0]], [[3, 0.5, 0]], -1, [0.625, 1.25, 0.375, 0.75]),
    ([[1, 0, 0]], [[3, 0.5, 0]], -1, [0.5, 1, 0.5, 1]),
    # A row of class 1 and one of background; rows of class 0 are unknown.
    ([0, 0, 1, 3], None, 0, [0.5, 1, 2.5, 5]),
    ([0, 0, 1, 3], [[1, 1, 1]] * 4, 0, [0.5, 1, 2.5, 5]),
    ([0, 0, 1, 3], None, -1, [1.5, 3, 4.5, 9]),
]


@pytest.mark.parametrize(
    ('interval', 'ignore_last', 'steps'), [(2, True, [1, 3]), (2, False, [1, 3, 4]), (10, True, [4])]
)
def test_a_logging_step_is_one_whose_line_mmengine_writes(interval, ignore_last, steps):
    runner = SimpleNamespace(train_dataloader=range(5), hooks=[LoggerHook(interval=interval, ignore_last=ignore_last)])
    assert [i for i in range(5) if is_logging_step(runner, i)] == steps
    runner.hooks = []
    assert not any(is_logging_step(runner, i) for i in range(5))


@pytest.mark.parametrize(
    'fused, target, weight, ignore_index, expected',
    [(False, *case) for case in COUNTED]
    # Each takes a kernel, that is, seconds of compiling.
    + [pytest.param(True, *case, marks=[pytest.mark.slow] * (i not in (1, 3))) for i, case in enumerate(COUNTED)],
)
def test_what_counts(fused, target, weight, ignore_index, expected):
    loss, statistics = AsymmetricLoss(fused=fused, ignore_index=ignore_index), ProbabilityStatistics()
    loss.observe(statistics)
    loss(torch.zeros(len(target), 3), torch.tensor(target), None if weight is None else torch.tensor(weight))
    assert statistics.take().flatten().tolist() == pytest.approx(expected)


def test_validation_losses_do_not_count():
    loss, statistics = AsymmetricLoss(), ProbabilityStatistics()
    loss.observe(statistics)
    loss.eval()(torch.zeros(2, 3), torch.ones(2, 3))
    assert statistics.take().tolist() == [[0.0]] * 4
    loss.train()(torch.zeros(2, 3), torch.ones(2, 3))
    assert statistics.take().tolist() == [[3.0], [6.0], [0.0], [0.0]]


def test_calls_of_one_step_are_pooled(run_batches):
    _, scalars = run_batches(BATCHES[:1], GAP, calls=3)
    assert scalars['p_t_pos'] == pytest.approx([0.7])


def test_a_line_without_positives_has_no_gap(run_batches):
    without = ([[0.5, 0.1]], [[0, 0]])
    _, scalars = run_batches([without, BATCHES[0]], GAP)
    assert scalars['p_t_pos'] == pytest.approx([0.7])
    assert scalars['p_t_neg'] == pytest.approx([1 - 1.3 / 4])


def test_the_probabilities_are_those_of_cross_entropy_and_focal_loss_too(run_batches):
    for i, loss in enumerate(
        (AsymmetricLoss(gamma_neg=0, clip=0), AsymmetricLoss(gamma_pos=2, gamma_neg=2, clip=0, alpha=0.25))
    ):
        _, scalars = run_batches(BATCHES[:1], GAP, loss, work_dir=str(i))
        assert scalars['gap'] == pytest.approx([0.7 - 1 + 1.3 / 4], abs=1e-6)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = AsymmetricLoss(), AsymmetricLoss(gamma_neg=2)

    def forward(self, logits, targets):
        return self.one(logits, targets) + self.two(-logits, targets)


def test_several_losses_are_told_apart_by_their_place(run_batches):
    _, scalars = run_batches(BATCHES[:1], GAP, TwoHeads())
    assert scalars['asl_cls.one/gap'] == pytest.approx([0.7 - 1 + 1.3 / 4], abs=1e-6)
    # The second loss sees 1 - p.
    assert scalars['asl_cls.two/p_t_pos'] == pytest.approx([0.3])
    assert scalars['asl_cls.two/p_t_neg'] == pytest.approx([1.3 / 4])
    assert scalars['asl_cls.two/gap'] == pytest.approx([0.3 - 1.3 / 4], abs=1e-6)
    assert 'gap' not in scalars


def test_a_model_without_the_loss_is_refused(run_batches):
    with pytest.raises(ValueError, match='Logits has no AsymmetricLoss to watch. Cross-entropy is'):
        run_batches(BATCHES, GAP, nn.BCEWithLogitsLoss())


def test_the_log_file_has_the_gap(run_batches, tmp_path):
    run_batches(BATCHES, GAP)
    lines = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert [json.loads(line)['gap'] for line in lines] == pytest.approx([0.025, -0.15], abs=1e-6)
