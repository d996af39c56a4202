import io
import math

import pytest
import torch
from mmdet.registry import PARAM_SCHEDULERS
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import asl_mmdet.one_cycle  # noqa: F401, registers ScalableOneCycleLR
from tests.conftest import ROOT

SCHEDULES = ROOT / 'configs/_base_/schedules'


@pytest.fixture(autouse=True)
def mmdet():
    with DefaultScope.overwrite_default_scope('mmdet'):  # a Runner of another test may have left its own
        yield


def trajectory(schedulers, optimizer, steps):
    values = []
    for _ in range(steps):
        values.append([(group['lr'], group['betas'][0]) for group in optimizer.param_groups])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return torch.tensor(values, dtype=torch.float64)  # (steps, groups, 2)


@pytest.mark.parametrize(
    'name, peak, cycle, epochs', [('asl_onecycle_60e', 2e-4, 60, 60), ('asl_public_script_40e', 1e-4, 80, 40)]
)
def test_schedules_are_torch_one_cycle_of_learning_rate_and_beta(name, peak, cycle, epochs):
    cfg = Config.fromfile(SCHEDULES / f'{name}.py')
    assert cfg.train_cfg.max_epochs == epochs
    per_epoch = 20
    optimizer = torch.optim.Adam(
        nn.Linear(1, 1).parameters(), cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.betas
    )
    schedulers = [
        # As the Runner, which gives the end of training to those that have none.
        PARAM_SCHEDULERS.build(dict(dict(end=epochs) | scheduler, optimizer=optimizer, epoch_length=per_epoch))
        for scheduler in cfg.param_scheduler
    ]
    ours = trajectory(schedulers, optimizer, epochs * per_epoch)
    optimizer = torch.optim.Adam(nn.Linear(1, 1).parameters(), peak)
    torchs = trajectory([OneCycleLR(optimizer, peak, cycle * per_epoch, pct_start=0.2)], optimizer, epochs * per_epoch)
    torch.testing.assert_close(ours[..., 0], torchs[..., 0], rtol=1e-6, atol=0)
    # The momentum turns one step later than in torch.
    torch.testing.assert_close(ours[..., 1], torchs[..., 1], rtol=0, atol=0.1 * math.pi / 2 / (0.2 * cycle * per_epoch))
    assert ours[..., 0].max().item() == pytest.approx(peak, rel=1e-4)
    assert ours[..., 1].min().item() == pytest.approx(0.85, abs=1e-4)


def test_the_cycle_behind_other_schedulers():
    layers = [nn.Linear(1, 1), nn.Linear(1, 1)]
    optimizer = torch.optim.Adam(
        [dict(params=layers[0].parameters(), lr=0.1), dict(params=layers[1].parameters())], 0.2
    )
    schedulers = [
        PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer, by_epoch=False))
        for scheduler in (
            dict(type='LinearLR', start_factor=0.001, begin=0, end=10),
            dict(type='ScalableOneCycleLR', begin=10, end=60),
            dict(type='ScalableOneCycleLR', begin=60, end=110),
        )
    ]
    rates = trajectory(schedulers, optimizer, 110)[..., 0]
    assert rates[10:60].amax(0).tolist() == pytest.approx([0.1, 0.2])
    assert rates[60:].amax(0).tolist() == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(
    'name, optimizer, decay', [('asl_onecycle_60e', 'AdamW', 1e-4), ('asl_public_script_40e', 'Adam', 1e-4 / 128)]
)
def test_nothing_of_one_dimension_decays(name, optimizer, decay):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    cfg = Config.fromfile(SCHEDULES / f'{name}.py').optim_wrapper
    wrapper = build_optim_wrapper(model, dict(cfg, type='OptimWrapper'))
    assert type(wrapper.optimizer).__name__ == optimizer
    decays = {id(group['params'][0]): group['weight_decay'] for group in wrapper.param_groups}
    for parameter in model.parameters():
        assert decays[id(parameter)] == (decay if parameter.ndim > 1 else 0)


def test_every_group_has_a_cycle_of_its_own():
    groups = [dict(params=[nn.Parameter(torch.zeros(1))], lr=lr) for lr in (1e-3, 1e-4)]
    optimizer = torch.optim.Adam(groups)
    scheduler = dict(type='ScalableOneCycleLR', optimizer=OptimWrapper(optimizer), total_steps=50, by_epoch=False)
    values = trajectory([PARAM_SCHEDULERS.build(scheduler)], optimizer, 50)[..., 0]
    torch.testing.assert_close(values[:, 0], 10 * values[:, 1])
    assert values[:, 0].max().item() == pytest.approx(1e-3) and values[0, 1].item() == pytest.approx(1e-4 / 25)


def test_auto_scale_lr_scales_the_cycle_which_is_as_long_as_training(tmp_path):
    from mmengine.model import BaseModel

    all_rates = {}

    class Weight(BaseModel):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return dict(loss=self.weight.sum())

    def largest_rate(name, total_steps=dict(total_steps=5), **kwargs):
        rates = []
        runner = Runner(
            Weight(),
            work_dir=str(tmp_path / name),
            experiment_name=f'{tmp_path.name}-{name}',
            default_scope='mmdet',
            log_level='WARNING',
            train_cfg=dict(by_epoch=True, max_epochs=5),
            train_dataloader=dict(
                batch_size=8,
                num_workers=0,
                dataset=[dict(inputs=torch.zeros(1))] * 80,
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.4)),
            param_scheduler=dict(type='ScalableOneCycleLR', by_epoch=True, convert_to_iter_based=True, **total_steps),
            **kwargs,
        )
        step = runner.model.train_step
        runner.model.train_step = lambda *args, **kw: (
            rates.append(runner.optim_wrapper.get_lr()['lr'][0]),
            step(*args, **kw),
        )[1]
        runner.train()
        assert len(rates) == 50
        all_rates[name] = rates
        return max(rates)

    assert largest_rate('plain') == pytest.approx(0.4, rel=1e-2)
    scaled = largest_rate('scaled', auto_scale_lr=dict(enable=True, base_batch_size=32))
    assert scaled == pytest.approx(0.1, rel=1e-2)
    largest_rate('as long as training', total_steps={})
    assert all_rates['as long as training'] == all_rates['plain']
    with pytest.raises(ValueError, match='a cycle of 40 steps, but training takes 50: leave total_steps out'):
        largest_rate('too short', total_steps=dict(total_steps=4))


def test_a_checkpoint_of_it_loads_without_running_code():
    def scheduler(total_steps=20):
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 0.1)
        return optimizer, PARAM_SCHEDULERS.build(
            dict(type='ScalableOneCycleLR', optimizer=optimizer, total_steps=total_steps, by_epoch=False)
        )

    optimizer, straight = scheduler()
    expected = trajectory([straight], optimizer, 20)[:, 0, 0]
    optimizer, first = scheduler()
    trajectory([first], optimizer, 8)
    file = io.BytesIO()
    torch.save(dict(optimizer=optimizer.state_dict(), scheduler=first.state_dict()), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    optimizer, second = scheduler()
    optimizer.load_state_dict(state['optimizer'])
    second.load_state_dict(state['scheduler'])
    torch.testing.assert_close(trajectory([second], optimizer, 12)[:, 0, 0], expected[8:])
    optimizer, straight = scheduler(40)
    expected = trajectory([straight], optimizer, 40)[:, 0, 0]
    optimizer, longer = scheduler(40)
    optimizer.load_state_dict(state['optimizer'])
    longer.load_state_dict(state['scheduler'])
    # The rate in the optimizer's state is that of the shorter cycle, until the next step.
    torch.testing.assert_close(trajectory([longer], optimizer, 32)[1:, 0, 0], expected[9:])


@pytest.mark.parametrize('before, after', [(6, 3), (3, 6), (6, 4)])
@pytest.mark.parametrize('begin', [0, 1, 3])
@pytest.mark.parametrize('begun', [0, 2])
def test_epochs_of_another_length_go_on_in_their_place(before, after, begin, begun):
    epochs, done = 5, 2

    def scheduler(epoch_length):
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 0.1)
        cfg = dict(type='ScalableOneCycleLR', begin=begin, end=epochs, convert_to_iter_based=True)
        return optimizer, PARAM_SCHEDULERS.build(dict(cfg, optimizer=optimizer, epoch_length=epoch_length))

    optimizer, straight = scheduler(after)
    expected = trajectory([straight], optimizer, epochs * after)[:, 0, 0]
    optimizer, first = scheduler(before)
    # Of an epoch that is begun, the next start makes all batches again.
    trajectory([first], optimizer, done * before + begun)
    optimizer, second = scheduler(after)
    second.load_state_dict(first.state_dict())
    rates = trajectory([second], optimizer, (epochs - done) * after)[:, 0, 0]
    # The first is that of the optimizer's state.
    torch.testing.assert_close(rates[1:], expected[done * after + 1 :])


@pytest.mark.parametrize('by_epoch', [True, False])
def test_within_an_epoch_it_goes_on_at_its_step(by_epoch):
    in_epochs = dict(end=5, convert_to_iter_based=True, epoch_length=6)

    def scheduler(kwargs):
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 0.1)
        return optimizer, PARAM_SCHEDULERS.build(dict(type='ScalableOneCycleLR', optimizer=optimizer, **kwargs))

    optimizer, first = scheduler(in_epochs)
    expected = trajectory([first], optimizer, 30)[:, 0, 0]
    optimizer, first = scheduler(in_epochs)
    trajectory([first], optimizer, 8)
    optimizer, second = scheduler(in_epochs if by_epoch else dict(total_steps=30, by_epoch=False))
    second.load_state_dict(first.state_dict())
    # The first is that of the optimizer's state.
    torch.testing.assert_close(trajectory([second], optimizer, 22)[1:, 0, 0], expected[9:])


def test_a_maximum_of_its_own_is_refused():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 0.1)
    with pytest.raises(ValueError, match='eta_max=0.2 .* optim_wrapper.optimizer.lr'):
        PARAM_SCHEDULERS.build(dict(type='ScalableOneCycleLR', optimizer=optimizer, total_steps=5, eta_max=0.2))
