import errno
import functools
import os
import re

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from asl_mmdet.command_line import stop_at_non_finite
from asl_mmdet.hooks import NonFiniteError, NonFiniteHook
from asl_mmdet.structures import MultiLabelDataSample
from tests.conftest import in_processes, run_tool
from tests.test_tools import CLASSIFIER, CONFIG, classifier_on, on

NAN, INF = float('nan'), float('inf')


class Two(BaseModel):
    """loss_line = line * x + sum(wide * x), and loss_root = sqrt(y), whose gradient by root is infinite for y = 0."""

    def __init__(self):
        super().__init__()
        self.line = nn.Parameter(torch.ones(()))
        self.root = nn.Parameter(torch.ones(()))
        self.wide = nn.Parameter(torch.zeros(8))

    def forward(self, inputs, data_samples, mode='tensor'):
        x, y = torch.stack(inputs).mean(0)
        # A detector gives one value a level.
        return dict(
            loss_line=[self.line * x, (self.wide * x).sum()],
            loss_root=(self.root - self.root.detach() + y).sqrt(),
            acc=y / 0,
        )


class Items(Dataset):
    metainfo = {}

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        sample = (MultiLabelDataSample if i % 2 else DetDataSample)(metainfo=dict(img_path=f'{i + 1}.png'))
        return dict(inputs=torch.tensor(self.items[i]), data_samples=sample)


class LikeGPU(NonFiniteHook):
    """Looks only where it would on a GPU."""

    def before_train(self, runner):
        super().before_train(runner)
        self._on_cpu = False


class Steps(Hook):
    """Counts iterations that came to their end."""

    def __init__(self):
        self.count = 0

    def after_train_iter(self, runner, **kwargs):
        self.count += 1


def runner_of(work_dir, items, hook=None, batch_size=1, logging=3, model=None, lr=0.0, checkpoint=None, **kwargs):
    kwargs.setdefault('train_cfg', dict(by_epoch=True, max_epochs=1))
    optim_wrapper = ConfigDict(optimizer=dict(type='SGD', lr=lr), **kwargs.pop('optim_wrapper', {}))
    return Runner(
        model=model or Two(),
        work_dir=str(work_dir),
        experiment_name='-'.join(work_dir.parts[-2:]),
        default_scope='mmdet',
        log_level='ERROR',
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=0,
            dataset=Items(items),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        optim_wrapper=optim_wrapper,
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=logging), checkpoint=checkpoint or dict(type='CheckpointHook')
        ),
        custom_hooks=[NonFiniteHook() if hook is None else hook, Steps()],
        randomness=dict(seed=7),
        **kwargs,
    )


def stopped(runner):
    """Its message, and how many iterations were over."""
    with pytest.raises(NonFiniteError) as caught:
        runner.train()
    return str(caught.value), next(hook for hook in runner.hooks if isinstance(hook, Steps)).count


def saved(work_dir):
    (path,) = (work_dir / 'non_finite').iterdir()
    return torch.load(path, weights_only=False)


GOOD, BAD_LOSS, BAD_GRADIENT = (1.0, 1.0), (NAN, 1.0), (1.0, 0.0)


@pytest.mark.parametrize('value', [NAN, INF, -INF])
def test_a_loss_is_named_with_iteration_and_images_before_the_step(tmp_path, value):
    items = [GOOD] * 4 + [GOOD, (value, 1.0)] + [GOOD] * 4
    runner = runner_of(tmp_path, items, batch_size=2, lr=0.5)
    message, over = stopped(runner)
    path = tmp_path / 'non_finite/iter_3_rank_0.pth'
    assert message.startswith(
        'Iteration 3 (epoch 1): the loss loss_line is not finite. Images: 5.png, 6.png. The batch'
    )
    assert f'is saved in {path}, see NonFiniteHook' in message and '\n' not in message
    assert over == 2
    # Two steps of 0.5 along a gradient of 1, none after.
    assert runner.model.line.item() == 0.0
    fault = saved(tmp_path)
    expected = dict(iteration=3, epoch=1, rank=0, seed=7, losses=['loss_line'], img_paths=['5.png', '6.png'])
    assert {key: fault[key] for key in expected} == expected and 'line' in fault['gradients']
    assert fault['state_dict']['line'].item() == 0.0


def test_a_gradient_of_a_finite_loss_is_named_by_its_parameter(tmp_path):
    message, over = stopped(runner_of(tmp_path, [GOOD, BAD_GRADIENT, GOOD]))
    assert message.startswith('Iteration 2 (epoch 1): the gradient of root is not finite. Images: 2.png. The batch')
    assert over == 1
    assert saved(tmp_path)['losses'] == [] and saved(tmp_path)['gradients'] == ['root']


def looked_at(gradients, on_cpu):
    """Whether each gradient was found to be finite; those without a number are not among them."""
    hook = NonFiniteHook()
    hook._findings, hook._on_cpu, hook._parameter_names, parameters = [], on_cpu, {}, []
    for name, gradient in gradients.items():
        parameters.append(nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype)))
        parameters[-1].grad = gradient
        hook._parameter_names[parameters[-1]] = name
    hook._see_gradients(OptimWrapper(torch.optim.SGD(parameters, lr=1)))
    ((names, finite),) = hook._findings
    return {name: good for (_, name), good in zip(names, finite.tolist())}


@pytest.mark.parametrize('on_cpu', [True, False])
@pytest.mark.parametrize('value', [NAN, INF, -INF, -3e38, 3e38])
def test_gradients_of_every_kind_are_looked_at(value, on_cpu):
    """One bad number of each; the greatest ones of float32, which are none of float16, are finite."""
    bad = torch.zeros(2, 3, 4, 4).index_fill_(2, torch.tensor(3), value)
    gradients = dict(
        scalar=torch.tensor(value),
        rows=bad.flatten(1),
        channels_last=bad.to(memory_format=torch.channels_last),
        view=bad[..., 1:],
        half=bad.half(),
        double=bad.double(),
        empty=torch.zeros(0, 3),
        sparse=torch.sparse_coo_tensor([[1, 1]], [0.0, value], (4,)),
        sparse_sum=torch.sparse_coo_tensor([[1, 1]], [value, value], (4,)),
        sparse_without_entries=torch.sparse_coo_tensor(size=(4,)),
        good=torch.ones(3),
    )
    found = looked_at(gradients, on_cpu)
    is_finite = abs(value) < INF
    assert found == {
        **dict.fromkeys(['scalar', 'rows', 'channels_last', 'view', 'double', 'sparse'], is_finite),
        **dict.fromkeys(['half', 'sparse_sum'], False),
        'good': True,
    }


@pytest.mark.parametrize('on_cpu', [True, False])
@pytest.mark.parametrize('value', [NAN, INF, -INF, 1e30])
def test_a_complex_gradient_is_looked_at(value, on_cpu):
    gradients = dict(bad=torch.tensor([0, complex(1, value)]), good=torch.ones(3))
    assert looked_at(gradients, on_cpu) == dict(bad=value == 1e30, good=True)


def test_clipping_does_not_hide_where_it_came_from(tmp_path):
    runner = runner_of(tmp_path, [BAD_GRADIENT], optim_wrapper=dict(clip_grad=dict(max_norm=1.0)))
    assert 'the gradient of root is not finite' in stopped(runner)[0]


def test_a_full_disk_does_not_hide_the_fault(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    message, over = stopped(runner_of(tmp_path, [GOOD, BAD_LOSS]))
    assert 'the loss loss_line is not finite' in message and over == 1
    assert 'The batch could not be saved: No space left on device: ' in message
    assert list((tmp_path / 'non_finite').iterdir()) == []


def test_what_is_saved_gives_the_fault_again(tmp_path):
    for name, item in (('loss', BAD_LOSS), ('gradient', BAD_GRADIENT)):
        stopped(runner_of(tmp_path / name, [GOOD, item]))
        fault = saved(tmp_path / name)
        model = Two()
        model.load_state_dict(fault['state_dict'])
        losses = model.train()(**model.data_preprocessor(fault['data_batch'], training=True), mode='loss')
        assert losses['loss_line'][0].isnan().item() == (name == 'loss')
        losses['loss_root'].backward()
        assert model.root.grad.isinf().item() == (name == 'gradient')


def test_finite_runs_are_left_alone(tmp_path):
    # Infinite values under other names are no losses; finite gradients whose squares overflow are finite.
    items = [(1e25, 1.0), (-3e25, 0.5), *[(float(i), 1.0) for i in range(10)]]
    ends = []
    for hook in (NonFiniteHook(), LikeGPU(interval=2), Hook()):
        runner = runner_of(tmp_path / type(hook).__name__, items, hook=hook, lr=1e-28)
        runner.train()
        ends.append((runner.model.line.item(), runner.model.root.item()))
        assert not (tmp_path / type(hook).__name__ / 'non_finite').exists()
        assert 'step' not in vars(runner.optim_wrapper) or runner.optim_wrapper.step.__name__ == 'step'
    assert ends[0] == ends[1] == ends[2] != (1.0, 1.0)


def test_no_batch_is_kept_that_is_known_to_be_finite(tmp_path):
    class Watched(LikeGPU):
        kept = 0

        def after_train_iter(self, *args, **kwargs):
            super().after_train_iter(*args, **kwargs)
            self.kept = max(self.kept, len(self._unknown))

    hook = Watched(interval=50)
    runner_of(tmp_path, [GOOD] * 4, hook=hook, logging=50).train()
    assert hook.kept == 0


def test_a_schedule_knows_the_watched_step(tmp_path, recwarn):
    schedule = dict(type='LinearLR', start_factor=0.5, by_epoch=False)
    runner_of(tmp_path, [GOOD] * 3, param_scheduler=schedule).train()
    assert not [warning for warning in recwarn if 'optimizer.step()' in str(warning.message)]


def test_a_compiled_step_of_training_is_watched(tmp_path):
    ends = []
    for compile in (False, dict(backend='eager')):
        work_dir = tmp_path / str(bool(compile))
        options = dict(optim_wrapper=dict(paramwise_cfg=dict(bias_lr_mult=2.0)), cfg=dict(compile=compile), lr=0.5)
        runner = runner_of(work_dir, [GOOD, GOOD, BAD_LOSS], **options)
        message, over = stopped(runner)
        assert message.startswith('Iteration 3 (epoch 1): the loss loss_line') and over == 2
        ends.append([parameter.tolist() for parameter in runner.model.parameters()])
    assert ends[0] == ends[1]


def test_gradients_that_add_up_are_watched_in_between(tmp_path):
    runner = runner_of(tmp_path, [GOOD] * 5 + [BAD_LOSS] + [GOOD] * 6, optim_wrapper=dict(accumulative_counts=4))
    message, _ = stopped(runner)
    assert 'Iteration 6 (epoch 1): the loss loss_line' in message and 'Images: 6.png.' in message


@pytest.mark.parametrize('bad, logging, interval, over', [(5, 4, 50, 7), (5, 50, 3, 5), (10, 7, 50, 9)])
def test_a_gpu_is_read_with_the_log_at_an_interval_and_after_an_epoch(tmp_path, bad, logging, interval, over):
    """The first bad one is named, though the next ones are bad too: their weights are."""
    items = [BAD_LOSS if i == bad else GOOD for i in range(1, 11)]
    two_epochs = dict(train_cfg=dict(by_epoch=True, max_epochs=2), checkpoint=dict(type='CheckpointHook', interval=9))
    runner = runner_of(tmp_path, items, hook=LikeGPU(interval=interval), logging=logging, lr=0.1, **two_epochs)
    message, count = stopped(runner)
    assert message.startswith(f'Iteration {bad} (epoch 1): the loss loss_line is not finite. Images: {bad}.png.')
    assert count == over
    assert runner.model.line.isnan() and saved(tmp_path)['state_dict'] is None
    assert saved(tmp_path)['data_batch']['inputs'][0].isnan().tolist() == [True, False]


def test_weights_that_a_fault_has_spoiled_are_not_saved(tmp_path):
    items = [GOOD] * 4 + [BAD_LOSS] + [GOOD] * 5
    by_iteration = dict(
        train_cfg=dict(by_epoch=False, max_iters=10), checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)
    )
    message, _ = stopped(runner_of(tmp_path, items, hook=LikeGPU(), logging=50, lr=0.1, **by_iteration))
    assert 'Iteration 5 ' in message
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_3.pth']


# ------------------------------------------------------------------------------------------------------ loss scaling


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """mmengine's AmpOptimWrapper with torch's own scaler for the CPU."""
    monkeypatch.setattr(amp, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp, 'GradScaler', functools.partial(torch.amp.GradScaler, device='cpu'))

    def wrapper(loss_scale):
        return dict(type='AmpOptimWrapper', loss_scale=loss_scale, dtype='bfloat16')

    return wrapper


@pytest.fixture(params=[NonFiniteHook, functools.partial(LikeGPU, interval=1)], ids=['cpu', 'gpu'])
def hook(request):
    return request.param


def test_overflow_of_the_scaled_loss_is_the_scalers_business(tmp_path, amp_on_cpu, hook):
    """A gradient of 2^10 times 2^120 is infinite until the scale is 2^117: three steps are skipped, two are made."""
    runner = runner_of(
        tmp_path, [(1024.0, 1.0)] * 5, hook(), lr=2.0**-10, optim_wrapper=amp_on_cpu(dict(init_scale=2.0**120))
    )
    runner.train()
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**117
    assert runner.model.line.item() == 1 - 2


def test_a_bad_batch_now_and_then_is_skipped(tmp_path, amp_on_cpu, hook):
    runner = runner_of(
        tmp_path,
        [GOOD, BAD_LOSS, GOOD, BAD_GRADIENT] * 3,
        hook(max_skipped=2),
        lr=0.5,
        optim_wrapper=amp_on_cpu('dynamic'),
    )
    runner.train()
    assert runner.model.line.item() == 1 - 6 * 0.5


def test_the_scaler_has_given_up_where_its_scale_is_below_1(tmp_path, amp_on_cpu, hook):
    """4, 2 and 1 in the iterations 3 to 5, then 1/2."""
    items = [GOOD] * 2 + [BAD_LOSS] * 6
    message, over = stopped(
        runner_of(tmp_path, items, hook(), logging=50, lr=0.1, optim_wrapper=amp_on_cpu(dict(init_scale=4.0)))
    )
    assert message.startswith(
        'Iteration 3 (epoch 1): the loss loss_line is not finite, and the loss scaler has given up'
    )
    assert 'scale 0.5' in message and 'Images: 3.png.' in message
    assert over == (5 if hook is NonFiniteHook else 4)
    assert saved(tmp_path)['state_dict']['line'].item() == pytest.approx(0.8)


def test_a_fixed_scale_has_given_up_after_so_many_in_a_row(tmp_path, amp_on_cpu, hook):
    items = [BAD_GRADIENT] * 2 + [GOOD] + [BAD_GRADIENT] * 5
    message, over = stopped(
        runner_of(tmp_path, items, hook(max_skipped=3), logging=50, optim_wrapper=amp_on_cpu(128.0))
    )
    assert message.startswith('Iteration 4 (epoch 1): the gradient of root is not finite, and the loss scaler')
    assert 'scale 128, 3 in a row' in message and over == 5


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='interval=0 of NonFiniteHook'):
        NonFiniteHook(interval=0)
    with pytest.raises(ValueError, match='max_skipped=0 of NonFiniteHook'):
        NonFiniteHook(max_skipped=0)


# --------------------------------------------------------------------------------------------------------- processes


def stopped_in_process(folder, item, added_up, hook, rank):
    """The message, and the iteration."""
    items = [GOOD] * 5 + [item] + [GOOD] * 14  # the third of the second process
    model = MMDistributedDataParallel(Two(), device_ids=None)
    wrapper = dict(accumulative_counts=added_up)
    runner = runner_of(folder / 'work', items, hook=hook, model=model, logging=4, lr=0.1, optim_wrapper=wrapper)
    with pytest.raises(NonFiniteError) as caught:
        runner.train()
    return str(caught.value), runner.iter


@pytest.mark.parametrize(
    'item, added_up, what',
    [(BAD_LOSS, 1, 'loss loss_line'), (BAD_LOSS, 5, 'loss loss_line'), (BAD_GRADIENT, 1, 'gradient of root')],
)
@pytest.mark.parametrize('hook, over', [(NonFiniteHook, 2), (LikeGPU, 3)])
def test_two_processes_stop_together(tmp_path, item, added_up, what, hook, over):
    """Gradients that are being added up are each process's own: the other one cannot see what is wrong."""
    ranks = in_processes(functools.partial(stopped_in_process, tmp_path, item, added_up, hook()), tmp_path)
    (first, iteration), (second, other) = ranks
    assert first == second and iteration == other == over
    assert first.startswith(f'Iteration 3 (epoch 1): the {what} is not finite. Images: ')
    # A gradient is the mean over both, and shows in both.
    names, ranks = ('6.png', [1]) if item is BAD_LOSS else ('5.png, 6.png', [0, 1])
    assert f'Images: {names}. ' in first
    files = sorted(path.name for path in (tmp_path / 'work/non_finite').iterdir())
    assert files == [f'iter_3_rank_{rank}.pth' for rank in ranks] and all(name in first for name in files)


# ------------------------------------------------------------------------------------------------------------- tools


@pytest.mark.parametrize('config, options_on', [(CONFIG, on), (CLASSIFIER, classifier_on)])
def test_train_ends_in_one_message_and_keeps_the_batch(shapes, tmp_path, config, options_on):
    """The first step, of about 1e30, spoils the weights."""
    options = [
        'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=1',
        'optim_wrapper.optimizer._delete_=True',
        'optim_wrapper.optimizer.type=SGD',
        'optim_wrapper.optimizer.lr=1e30',
        'param_scheduler=[]',
    ]
    done = run_tool('tools/train.py', config, '--work-dir', tmp_path, *options_on(shapes, *options))
    assert done.returncode == 1 and 'Traceback' not in done.stdout, done.stdout
    last = done.stdout.strip().splitlines()[-1]
    found = re.search(
        r' - ERROR - .* - Iteration 2 \(epoch 1\): the loss (.*) is not finite\. Images: (.*)\. The ', last
    )
    assert found, last
    fault = saved(tmp_path)
    assert fault['losses'] == found[1].split(', ') and fault['img_paths'] == found[2].split(', ')
    assert fault['img_paths'] == [sample.img_path for sample in fault['data_batch']['data_samples']]
    assert len(fault['img_paths']) == 4 and fault['seed'] == 0

    (dumped,) = (path for path in tmp_path.glob('*.py'))
    model = MODELS.build(dict(Config.fromfile(dumped).model, _scope_='mmdet'))
    model.load_state_dict(fault['state_dict'])
    losses = model.train()(**model.data_preprocessor(fault['data_batch'], training=True), mode='loss')
    _, values = model.parse_losses(losses)
    assert [name for name in losses if not values[name].isfinite()] == fault['losses'] != []


def test_tools_watch_unless_the_config_says_otherwise():
    added = dict(type='mmdet.NonFiniteHook')
    for config, watched in (
        (dict(), [added]),
        (dict(custom_hooks=[dict(type='DataCheckHook')]), [dict(type='DataCheckHook'), added]),
        (dict(custom_hooks=[dict(type='NonFiniteHook', interval=9)]), [dict(type='NonFiniteHook', interval=9)]),
        (dict(allow_non_finite=True), None),
        (dict(allow_non_finite=False), [added]),
    ):
        config = Config(config)
        stop_at_non_finite(config)
        assert config.get('custom_hooks') == watched
