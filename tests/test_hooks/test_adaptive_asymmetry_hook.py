import copy
from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from asl_mmdet.checkpoint import admit_runner_checkpoints, read_checkpoint
from asl_mmdet.hooks import AdaptiveAsymmetryHook, adaptive_asymmetry_hook, probability_gap_hook
from asl_mmdet.models import AsymmetricLoss
from asl_mmdet.models.asymmetric_loss import ProbabilityStatistics
from tests.conftest import ROOT, in_processes
from tests.test_hooks.conftest import Logits
from tests.test_hooks.test_probability_gap_hook import BATCHES, TwoHeads

# Of BATCHES by hand: 0.7 - (1 - 1.3 / 4) and 0.3 - (1 - 1.1 / 2).
GAPS = [0.025, -0.15]
WITHOUT_POSITIVES = ([[0.5, 0.1]], [[0, 0]])


def adaptive(**kwargs):
    return [dict(type='AdaptiveAsymmetryHook', **kwargs)]


def test_gamma_follows_equation_11(run_batches):
    _, scalars = run_batches(BATCHES, adaptive(target=0.1, step=2.0), epochs=2)
    moves = [2 * (0.1 - gap) for gap in 2 * GAPS]
    assert scalars['gamma_neg'] == pytest.approx([4 + sum(moves[: i + 1]) for i in range(4)])
    assert 'clip' not in scalars


def test_the_margin_crosses_its_range_at_the_same_speed(run_batches):
    _, scalars = run_batches(BATCHES, adaptive(target=0.1, step=2.0, adapt='both', clip_range=(0.0, 0.2)))
    assert scalars['gamma_neg'] == pytest.approx([4.15, 4.65])
    assert scalars['clip'] == pytest.approx([0.05 + 0.15 * 0.02, 0.05 + 0.65 * 0.02])
    _, scalars = run_batches(BATCHES, adaptive(target=0.1, step=2.0, adapt='clip'), work_dir='clip')
    assert scalars['clip'] == pytest.approx([0.05 + 0.15 * 0.05, 0.05 + 0.65 * 0.05]) and 'gamma_neg' not in scalars


@pytest.mark.parametrize('target, reached', [(0.9, 4.5), (-0.9, 3.0)])
def test_values_stay_inside_their_range(run_batches, target, reached):
    _, scalars = run_batches(BATCHES, adaptive(target=target, step=5.0, gamma_neg_range=(3.0, 4.5)))
    assert scalars['gamma_neg'] == [reached, reached]


def test_a_step_without_positives_changes_nothing(run_batches):
    _, scalars = run_batches([WITHOUT_POSITIVES, BATCHES[0]], adaptive(target=0.1, step=2.0))
    assert scalars['gamma_neg'] == pytest.approx([4.0, 4.15])


def test_one_step_is_one_update_whatever_the_number_of_calls(run_batches):
    _, scalars = run_batches(BATCHES[:1], adaptive(target=0.1, step=2.0), calls=3)
    assert scalars['gamma_neg'] == pytest.approx([4.15])


def test_accumulated_batches_are_one_step(run_batches):
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.0), accumulative_counts=2)
    _, scalars = run_batches(BATCHES, adaptive(target=0.1, step=2.0), epochs=2, optim_wrapper=optim_wrapper)
    together = 4 + 2 * (0.1 - (1.7 / 3 - 1 + 2.4 / 6))
    assert scalars['gamma_neg'] == pytest.approx([4.0, together, together, 2 * together - 4])


# Pairs of batches of the two processes: one of them without a positive, with other numbers of images; both without.
OF_TWO = [
    (BATCHES[0], WITHOUT_POSITIVES),
    (WITHOUT_POSITIVES, BATCHES[1]),
    (WITHOUT_POSITIVES, ([[0.7, 0.2], [0.4, 0.8]], [[0, 0], [0, 0]])),
    (BATCHES[1], ([[0.6, 0.7], [0.2, 0.5], [0.8, 0.1]], [[1, 1], [0, 0], [0, 1]])),
]


def adapted(run_batches, per_class, accumulated, batches, work_dir, **kwargs):
    """Scalars of every step, and the state of the loss."""
    options = dict(adapt='gamma_neg' if per_class else 'both', per_class=per_class)
    hooks = [dict(type='ProbabilityGapHook', every=1), *adaptive(target=0.1, step=2.0, **options)]
    wrapper = dict(optimizer=dict(type='SGD', lr=0.0), accumulative_counts=accumulated)
    runner, scalars = run_batches(batches, hooks, work_dir=work_dir, optim_wrapper=wrapper, **kwargs)
    loss = (runner.model.module if kwargs else runner.model).loss_cls
    return scalars, {name: value.tolist() for name, value in loss.state_dict().items()}


def adapted_in_process(run_batches, per_class, accumulated, rank):
    # The sampler deals the batches out in turn.
    dealt = [batch for pair in OF_TWO for batch in pair]
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    options = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper))
    return adapted(run_batches, per_class, accumulated, dealt, f'rank{rank}', **options)


@pytest.mark.parametrize('per_class', [False, True])
@pytest.mark.parametrize('accumulated', [1, 2])
def test_two_processes_with_uneven_batches_adapt_like_one(run_batches, tmp_path, per_class, accumulated):
    ranks = in_processes(partial(adapted_in_process, run_batches, per_class, accumulated), tmp_path)
    scalars, state = adapted(run_batches, per_class, accumulated, [(p + q, y + z) for (p, y), (q, z) in OF_TWO], 'one')
    assert len(set(scalars['gap'])) == len(scalars['gap']) == 3
    assert len(set(scalars['gamma_neg'])) == 3 and len(scalars['gamma_neg']) == 4
    for of_rank, state_of_rank in ranks:
        for name in ('p_t_pos', 'p_t_neg', 'gap', 'gamma_neg', 'gamma_neg_min' if per_class else 'clip'):
            assert of_rank[name] == pytest.approx(scalars[name], rel=1e-6, abs=1e-7), name
        assert state_of_rank.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(torch.tensor(state_of_rank[name]), torch.tensor(value), rtol=1e-6, atol=1e-7)


def test_every_class_has_its_own_gamma(run_batches):
    """The second batch has no positive of class 1: that one stands still, and its average does not decay."""
    hook = adaptive(target=0.1, step=2.0, per_class=True, decay=0.5)
    third = ([[0.9, 0.2], [0.4, 0.7], [0.1, 0.6]], BATCHES[0][1])
    runner, scalars = run_batches([*BATCHES, third], hook)
    # Class 0: p+ 0.9, p- of 0.4, 0.1; then p+ 0.3 and no negative beside half of those.
    gaps_0 = [0.9 - (1 - 0.5 / 2), (0.45 + 0.3) / 1.5 - (1 - 0.25 / 1)]
    gaps_0.append((0.375 + 0.9) / 1.75 - (1 - (0.125 + 0.5) / 2.5))
    # Class 1: p+ 0.5, p- of 0.2, 0.6; then p+ 0.7 and the same p-.
    gaps_1 = [0.5 - (1 - 0.8 / 2), (0.25 + 0.7) / 1.5 - (1 - (0.4 + 0.8) / 3)]
    expected = [4 + sum(2 * (0.1 - gap) for gap in gaps) for gaps in (gaps_0, gaps_1)]
    assert runner.model.loss_cls.gamma_neg.tolist() == pytest.approx(expected)
    assert scalars['gamma_neg'][-1] == pytest.approx(sum(expected) / 2)
    assert scalars['gamma_neg_min'][-1] == pytest.approx(min(expected))
    assert scalars['gamma_neg_max'][-1] == pytest.approx(max(expected))


@pytest.mark.parametrize('per_class', [False, True])
def test_a_batch_of_nan_changes_nothing_for_good(run_batches, per_class):
    bad = ([[float('nan'), 0.2], [0.4, 0.5]], [[1, 0], [0, 1]])
    hook = adaptive(target=0.1, step=2.0, per_class=per_class, decay=0.5)
    with_nan, without = (
        run_batches(batches, hook, work_dir=name, model=Logits(AsymmetricLoss(), 2, trained=False))[0]
        for name, batches in (('nan', [BATCHES[0], bad, BATCHES[0]]), ('fine', [BATCHES[0], BATCHES[0]]))
    )
    gammas = [runner.model.loss_cls.gamma_neg for runner in (with_nan, without)]
    torch.testing.assert_close(*(gamma.flatten()[:1] for gamma in gammas))
    assert all(gamma.isfinite().all() for gamma in gammas)


def test_several_optimizers_are_refused(run_batches):
    wrapper = OptimWrapperDict(main=OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)))
    with pytest.raises(ValueError, match='follows the steps of one optim_wrapper'):
        run_batches(BATCHES, adaptive(), optim_wrapper=wrapper)


def test_every_loss_of_a_model_is_adapted_by_its_own_gap(run_batches):
    _, scalars = run_batches(BATCHES[:1], adaptive(target=0.1, step=2.0), TwoHeads())
    assert scalars['asl_cls.one/gamma_neg'] == pytest.approx([4.15])
    assert scalars['asl_cls.two/gamma_neg'] == pytest.approx([2 + 2 * (0.1 - (0.3 - 1.3 / 4))])


def training(run_batches, work_dir, epochs, hooks=(), step=0.5, lr=3.0, **kwargs):
    runner, scalars = run_batches(
        [*BATCHES, WITHOUT_POSITIVES],
        [*adaptive(target=0.1, step=step, adapt='both'), *hooks],
        AsymmetricLoss(gamma_neg=0.3, clip=0.2),
        epochs=epochs,
        work_dir=work_dir,
        lr=lr,
        randomness=dict(seed=0),
        **kwargs,
    )
    return runner, scalars


EMA = dict(type='EMAHook', momentum=0.5)
RAW_AND_EMA = dict(type='RawAndEMAHook', momentum=0.5)


@pytest.mark.parametrize('hooks', [(), (EMA,), (dict(EMA, update_buffers=True),), (RAW_AND_EMA,)])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(run_batches, tmp_path, hooks):
    whole, scalars = training(run_batches, 'whole', 4, hooks)
    assert len(set(scalars['gamma_neg'])) > 6
    checkpoint = str(tmp_path / 'whole/epoch_2.pth')
    resumed, rest = training(run_batches, 'resumed', 4, hooks, load_from=checkpoint, resume=True)
    admit_runner_checkpoints()
    averaged = read_checkpoint(checkpoint).get('ema_state_dict')
    assert averaged is None if not hooks else 'module.loss_cls.gamma_neg' in averaged
    for name in ('gamma_neg', 'clip'):
        assert rest[name] == scalars[name]
        assert torch.equal(getattr(resumed.model.loss_cls, name), getattr(whole.model.loss_cls, name))
    assert torch.equal(resumed.model.bias, whole.model.bias)


def test_weights_to_start_from_bring_no_gamma(run_batches, tmp_path):
    trained, _ = training(run_batches, 'first', 2)
    assert abs(trained.model.loss_cls.gamma_neg - 0.3) > 0.1
    checkpoint = str(tmp_path / 'first/epoch_2.pth')
    started, scalars = training(run_batches, 'second', 1, step=1e-9, lr=0.0, load_from=checkpoint)
    assert scalars['gamma_neg'] == pytest.approx([0.3] * 3) and scalars['clip'] == pytest.approx([0.2] * 3)
    assert torch.equal(started.model.bias, trained.model.bias) and started.model.bias.any()


def test_a_loss_that_is_not_adaptive_takes_no_values_from_a_checkpoint():
    source, plain = AsymmetricLoss(), AsymmetricLoss(gamma_neg=3)
    source.make_adaptive('gamma_neg', (), torch.device('cpu'))
    assert dict(source.state_dict()) == dict(gamma_neg=torch.tensor(4.0))
    plain.load_state_dict(source.state_dict())
    assert plain.gamma_neg == 3 and not plain.state_dict()
    twin = copy.deepcopy(source)
    source.gamma_neg.fill_(1.5)
    twin.load_state_dict(source.state_dict())
    assert twin.gamma_neg == 1.5


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_no_gamma_or_margin_on_the_way_gives_nan(dtype):
    """Trap 1: 0 < gamma < 1 where p_m is 0, saturated logits, a margin that comes down to exactly 0."""
    logits = torch.tensor([[-1e4, -100.0, -5.0, 0.0, 5.0, 100.0, 1e4]], dtype=dtype).expand(2, 7).contiguous()
    targets = torch.tensor([[0] * 7, [1] * 7])
    loss = AsymmetricLoss()
    for name in ('gamma_neg', 'clip'):
        loss.make_adaptive(name, (), torch.device('cpu'))
    for gamma in (0.0, 1e-6, 0.3, 1.0, 2.7, 10.0):
        for clip in (0.0, 1e-6, 0.05, 0.5):
            loss.gamma_neg.fill_(gamma)
            loss.clip.fill_(clip)
            z = logits.clone().requires_grad_()
            value = loss(z, targets)
            value.backward()
            assert value.isfinite() and z.grad.isfinite().all()
            exact = AsymmetricLoss(gamma_neg=gamma, clip=clip)
            other = logits.clone().requires_grad_()
            expected = exact(other, targets)
            expected.backward()
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(z.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_atss_calls_the_loss_for_every_level_and_adapts_once_a_step(shapes, tmp_path, monkeypatch):
    cfg = Config.fromfile(ROOT / 'configs/atss/atss_tresnet-narrow_fpn_asl_shapes.py')
    cfg.work_dir = str(tmp_path)
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.data_root = f'{shapes}/'
    for part in ('val', 'test'):
        for name in (f'{part}_dataloader', f'{part}_evaluator', f'{part}_cfg'):
            cfg[name] = None
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    cfg.default_hooks.logger.interval = 1
    cfg.custom_hooks = [dict(type='ProbabilityGapHook'), *adaptive(target=0.1, step=0.5)]
    cfg.experiment_name = f'atss-{tmp_path.name}'
    calls = []
    original = AsymmetricLoss.forward
    monkeypatch.setattr(AsymmetricLoss, 'forward', lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = {key[6:]: list(value.data[0]) for key, value in runner.message_hub.log_scalars.items()}
    assert len(calls) == 4 * 3 and len(scalars['gap']) == 4
    gamma, reached = 2.0, []
    for gap in scalars['gap']:
        gamma = min(max(gamma + 0.5 * (0.1 - gap), 0), 10)
        reached.append(gamma)
    assert scalars['gamma_neg'] == pytest.approx(reached, rel=1e-5)
    assert all(value.isfinite().all() for value in runner.model.parameters())


@pytest.mark.parametrize(
    'option, message',
    [
        (dict(adapt='gamma'), "adapt='gamma'"),
        (dict(per_class=True, adapt='both'), "per_class=True .* not 'both'"),
        (dict(target=1.5), 'target=1.5'),
        (dict(step=0), 'step=0'),
        (dict(decay=1.0), 'decay=1.0'),
        (dict(gamma_neg_range=(3, 1)), r'gamma_neg_range=\(3, 1\)'),
        (dict(clip_range=(0, 1.5)), r'clip_range=\(0, 1.5\)'),
    ],
)
def test_bad_arguments_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveAsymmetryHook(**option)


def test_a_start_outside_the_range_is_refused(run_batches):
    with pytest.raises(ValueError, match=r'gamma_neg=4.0 of AsymmetricLoss.*gamma_neg_range=\(0.0, 2.0\)'):
        run_batches(BATCHES, adaptive(gamma_neg_range=(0.0, 2.0)))


def test_classes_must_be_countable_for_a_gamma_each(run_batches):
    with pytest.raises(ValueError, match='holds loss_cls.one has no num_classes'):
        run_batches(BATCHES, adaptive(per_class=True), TwoHeads())


def test_a_model_that_was_adapted_goes_on_in_another_run(run_batches):
    model = Logits(AsymmetricLoss(), num_classes=2)
    run_batches(BATCHES, adaptive(target=0.1, step=2.0), model=model, work_dir='first')
    _, scalars = run_batches(BATCHES, adaptive(target=0.1, step=2.0), model=model, work_dir='second')
    moves = [2 * (0.1 - gap) for gap in 2 * GAPS]
    assert scalars['gamma_neg'] == pytest.approx([4 + sum(moves[: i + 1]) for i in (2, 3)])
    with pytest.raises(ValueError, match=r'gamma_neg of this model has the shape \(\) .* set per_class=False'):
        run_batches(BATCHES, adaptive(per_class=True), model=model, work_dir='third')


def test_a_loss_is_watched_while_it_is_trained_only(run_batches):
    class Counting(ProbabilityStatistics):
        made = []

        def __init__(self, *args):
            super().__init__(*args)
            self.made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        for hook in (adaptive_asymmetry_hook, probability_gap_hook):
            patch.setattr(hook, 'ProbabilityStatistics', Counting)
        runner, _ = run_batches(BATCHES, adaptive() + [dict(type='ProbabilityGapHook', every=1)])
    assert len(Counting.made) == 2
    runner.model.train()
    runner.model.loss_cls(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    assert all(statistics.take().sum() == 0 for statistics in Counting.made)
