from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, MomentumAnnealingEMA
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import DataLoader, Dataset

from asl_mmdet.checkpoint import admit_runner_checkpoints, read_checkpoint
from asl_mmdet.hooks import SafeCheckpointHook
from asl_mmdet.hooks.raw_and_ema_hook import RawAndEMAHook
from asl_mmdet.models import MultiTensorEMA
from tests.conftest import in_processes


class Counter(BaseModel):
    """Its weight grows by 1 at each step of SGD with lr 1, and its buffer by 10."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer('seen', torch.zeros(1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'loss':
            self.seen += 10
            return dict(loss=-self.weight.sum())
        return [BaseDataElement(weight=self.weight.item(), seen=self.seen.item()) for _ in inputs]


class Items(Dataset):
    metainfo = {}

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return dict(inputs=torch.zeros(1))


class Value(BaseMetric):
    default_prefix = 'counter'

    def process(self, data_batch, data_samples):
        self.results += [(sample['weight'], sample['seen']) for sample in data_samples]

    def compute_metrics(self, results):
        assert len(results) == 2
        return dict(weight=results[0][0], seen=results[0][1])


def runner_of(work_dir, epochs, save_rule='greater', val_interval=1, hook=(), **kwargs):
    loader = dict(batch_size=2, num_workers=0, dataset=Items(), sampler=dict(type='DefaultSampler', shuffle=False))
    return Runner(
        model=Counter(),
        work_dir=str(work_dir),
        experiment_name='-'.join(work_dir.parts[-2:]),
        default_scope='mmdet',
        log_level='WARNING',
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=val_interval),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=dict(type=Value),
        test_evaluator=dict(type=Value),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, save_best='counter/weight', rule=save_rule)
        ),
        custom_hooks=[dict(type='RawAndEMAHook', momentum=0.5, **dict(hook))],
        **kwargs,
    )


def read(path):
    admit_runner_checkpoints()  # mmengine takes its own list back after each load, and with it what both have admitted
    return read_checkpoint(path)


def logged(runner):
    scalars = runner.message_hub.log_scalars.items()
    return {key[4:]: value.current() for key, value in scalars if key.startswith('val/') and 'counter' in key}


# The average with momentum 1/2: 1, then (1 + 2) / 2, then (1.5 + 3) / 2.
RAW, EMA = 3.0, 2.25


def test_both_are_evaluated_and_the_better_keeps_its_name(tmp_path):
    runner = runner_of(tmp_path, 3)
    runner.train()
    assert logged(runner) == {
        'counter/weight': RAW,
        'counter/seen': 10 * RAW,
        'raw/counter/weight': RAW,
        'raw/counter/seen': 10 * RAW,
        'ema/counter/weight': EMA,
        'ema/counter/seen': 10 * EMA,
    }
    assert runner.model.weight.item() == RAW


@pytest.mark.parametrize(
    'rule, line',
    [
        ('greater', 'counter/weight: 3.0000 with raw weights, 2.2500 with their average; the raw weights are better'),
        ('less', 'counter/weight: 3.0000 with raw weights, 2.2500 with their average; the average is better'),
    ],
)
def test_the_log_says_which_is_better(tmp_path, rule, line):
    runner = runner_of(tmp_path, 3, hook=dict(rule=rule, metric='counter/weight'))
    runner.logger.setLevel('INFO')
    for handler in runner.logger.handlers:
        handler.setLevel('INFO')
    runner.train()
    (log,) = tmp_path.glob('*/*.log')
    assert line in log.read_text()
    assert logged(runner)['counter/weight'] == (RAW if rule == 'greater' else EMA)


def test_another_metric_may_decide(tmp_path):
    runner = runner_of(tmp_path, 3, hook=dict(metric='counter/seen', rule='less'))
    runner.train()
    assert logged(runner)['counter/weight'] == EMA


def test_best_checkpoint_holds_the_better_weights(tmp_path):
    runner_of(tmp_path, 3).train()
    best = read(tmp_path / 'best_counter_weight_epoch_3.pth')
    assert best['state_dict']['weight'].item() == RAW and best['state_dict']['seen'].item() == 10 * RAW
    assert best['ema_state_dict']['module.weight'].item() == EMA and best['raw_in_state_dict'] is True


def test_other_checkpoints_hold_the_average(tmp_path):
    # Epoch 1 stays the best one by this rule. That of the best epoch itself is written again, after its validation.
    runner_of(tmp_path, 3, save_rule='less').train()
    last = read(tmp_path / 'epoch_3.pth')
    assert last['state_dict']['weight'].item() == EMA and last['state_dict']['seen'].item() == 10 * EMA
    assert last['ema_state_dict']['module.weight'].item() == RAW and last['raw_in_state_dict'] is False


def test_best_checkpoint_holds_the_average_where_that_is_better(tmp_path):
    runner_of(tmp_path, 3, hook=dict(rule='less')).train()
    best = read(tmp_path / 'best_counter_weight_epoch_3.pth')
    assert best['state_dict']['weight'].item() == EMA and best['raw_in_state_dict'] is False


@pytest.mark.parametrize('save_rule, raw_first', [('greater', True), ('less', False)])
def test_training_resumes_from_either(tmp_path, save_rule, raw_first):
    runner_of(tmp_path / 'first', 2, save_rule).train()
    checkpoint = tmp_path / 'first/epoch_2.pth'
    assert read(checkpoint)['raw_in_state_dict'] is raw_first
    resumed = runner_of(tmp_path / 'second', 3, resume=True, load_from=str(checkpoint))
    resumed.train()
    assert logged(resumed)['raw/counter/weight'] == RAW and logged(resumed)['ema/counter/weight'] == EMA
    assert logged(resumed)['ema/counter/seen'] == 10 * EMA


@pytest.mark.parametrize('save_rule, value', [('greater', RAW), ('less', EMA)])
def test_a_test_measures_the_state_dict_of_the_checkpoint(tmp_path, save_rule, value):
    runner_of(tmp_path / 'first', 3, save_rule).train()
    metrics = runner_of(tmp_path / 'second', 3, load_from=str(tmp_path / 'first/epoch_3.pth')).test()
    assert metrics == {'counter/weight': value, 'counter/seen': 10 * value}


def test_a_checkpoint_between_two_validations_holds_the_average(tmp_path):
    # Epoch 2 is validated and its raw weights win; so is epoch 4, after epoch 3 was written.
    runner_of(tmp_path, 4, val_interval=2).train()
    checkpoints = [read(tmp_path / f'epoch_{epoch}.pth') for epoch in (2, 3, 4)]
    assert [checkpoint['raw_in_state_dict'] for checkpoint in checkpoints] == [True, False, True]
    assert checkpoints[1]['state_dict']['weight'].item() == EMA


def test_averaging_of_buffers_can_be_turned_off(tmp_path):
    runner = runner_of(tmp_path, 3, hook=dict(update_buffers=False))
    runner.train()
    assert logged(runner)['ema/counter/weight'] == EMA and logged(runner)['ema/counter/seen'] == 10 * RAW


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="rule='most'"):
        RawAndEMAHook(rule='most')
    with pytest.raises(KeyError, match="metric='mAP' .* none of the metrics: counter/weight, counter/seen"):
        runner_of(tmp_path, 1, hook=dict(metric='mAP')).train()


class Scarce(Value):
    """Nothing where the weight lies outside of a range, as mmdet's CocoMetric without objects."""

    between = (0.0, 0.0)

    def compute_metrics(self, results):
        low, high = self.between
        return super().compute_metrics(results) if low < results[0][0] < high else {}


@pytest.mark.parametrize('metric', [None, 'counter/weight'])
@pytest.mark.parametrize(
    'between, kind, value', [((2.5, 9.0), 'raw', RAW), ((0.0, 2.5), 'ema', EMA), ((9.0, 9.0), '', 0)]
)
def test_weights_that_find_nothing_are_the_worse(tmp_path, monkeypatch, between, kind, value, metric):
    monkeypatch.setattr(Scarce, 'between', between)
    runner = runner_of(tmp_path, 3, val_interval=3, hook=dict(metric=metric))
    runner.val_loop.evaluator.metrics = [Scarce()]
    runner.train()
    found = {name: value for name, value in logged(runner).items() if name.endswith('weight')}
    assert found == ({'counter/weight': value, f'{kind}/counter/weight': value} if kind else {})


def statistics_of_validations(rank):
    """BN's, as the average is evaluated, with SafeCheckpointHook and without, and as the raw weights are."""
    checkpoint_hook, hook, found = SafeCheckpointHook(), RawAndEMAHook(), []
    checkpoint_hook.training = True
    evaluator = SimpleNamespace(evaluate=lambda size: {})
    loop = SimpleNamespace(fp16=False, dataloader=DataLoader([]), evaluator=evaluator)
    for validate in (checkpoint_hook.before_val_epoch, hook.before_val_epoch, hook._evaluate):
        norm = nn.BatchNorm1d(1)
        norm.running_mean.fill_(rank)
        norm.running_var.fill_(2 + rank)
        model = nn.Sequential(norm, nn.BatchNorm1d(1, track_running_stats=False))
        runner = SimpleNamespace(model=model, val_loop=loop)
        hook.before_run(runner)
        validate(runner)
        found += [norm.running_mean.item(), norm.running_var.item()]
    return found


def test_all_processes_validate_what_the_first_one_saves(tmp_path):
    assert in_processes(statistics_of_validations, tmp_path) == [[0, 2] * 3] * 2


@pytest.mark.parametrize(
    'options, average', [({}, MultiTensorEMA), (dict(ema_type='MomentumAnnealingEMA'), MomentumAnnealingEMA)]
)
def test_the_average_is_the_one_asked_for(options, average):
    hook = RawAndEMAHook(**options)
    hook.before_run(SimpleNamespace(model=Counter()))
    assert type(hook.ema_model) is average
    assert hook.ema_model.momentum == 0.0003 and hook.ema_model.update_buffers
