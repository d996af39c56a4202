"""Runs that resume with everything random, against runs that were not interrupted."""

import random
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from asl_mmdet.hooks.exact_resume_hook import SeededBatches, seed_from
from tests.test_hooks.noisy_run import Noisy, assert_same, build_run, state


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    runner = build_run(folder)
    runner.train()
    return folder, torch.stack(runner.model.seen)


def test_two_runs_with_one_seed_are_equal_whatever_the_workers(whole, tmp_path):
    folder, seen = whole
    for name, workers, seed in (('again', 0, 0), ('two', 2, 0), ('three', 3, 0), ('other', 0, 1)):
        runner = build_run(tmp_path / name, workers=workers, seed=seed)
        runner.train()
        others = torch.stack(runner.model.seen)
        if seed == 0:
            assert torch.equal(others, seen), name
            assert_same(state(tmp_path / name / 'epoch_3.pth'), state(folder / 'epoch_3.pth'))
        else:
            assert not torch.equal(others[..., 1:], seen[..., 1:])


def test_seeds_reach_every_generator_in_use(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeds.append)
    words = np.random.SeedSequence((0, 7, 1)).generate_state(3).tolist()
    for in_use in (False, True):
        monkeypatch.setattr(torch.cuda, 'is_initialized', lambda in_use=in_use: in_use)
        seed_from(0, 7, 1)
        drawn = random.random(), np.random.random(), torch.rand(1).item()
        expected = random.Random(words[0]), np.random.RandomState(words[1]), torch.Generator().manual_seed(words[2])
        assert drawn == (expected[0].random(), expected[1].random_sample(), torch.rand(1, generator=expected[2]).item())
        assert seeds == words[2:] * in_use
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: False)
    monkeypatch.setattr('asl_mmdet.hooks.exact_resume_hook.get_device', lambda: 'npu')
    monkeypatch.setattr(torch, 'manual_seed', seeds.append)
    seed_from(0, 7, 1)
    assert seeds == words[2:] * 2


def test_a_data_set_that_reads_whole_batches_goes_on_to_do_so():
    class Whole(Dataset):
        def __getitems__(self, indices):
            return [torch.rand(1), indices]

    batches = SeededBatches(Whole(), seed=0, rank=0)
    (first, indices), (second, _) = batches([3, 1]), batches([2])
    batches.begin(0, 1)
    assert indices == [3, 1] and first != second and batches([2])[0] == second


def test_random_numbers_do_not_repeat(whole):
    noise = whole[1][..., 1:].flatten(0, 1)  # 36 items, 3 generators
    assert all(len(column.unique()) == 36 for column in noise.T)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('epoch', [1, 2])
def test_a_resumed_run_equals_the_whole_one(whole, tmp_path, epoch, workers, capfd):
    folder, seen = whole
    shutil.copy(folder / f'epoch_{epoch}.pth', tmp_path)
    runner = build_run(tmp_path, workers=workers, resume=True, load_from=str(tmp_path / f'epoch_{epoch}.pth'))
    runner.train()
    assert torch.equal(torch.stack(runner.model.seen), seen[4 * epoch :])
    assert_same(state(tmp_path / 'epoch_3.pth'), state(folder / 'epoch_3.pth'))
    assert 'resumed key' not in ''.join(capfd.readouterr())


class Wrapped:
    """As mmengine's RepeatDataset, no Dataset of torch's."""

    def __init__(self):
        self.dataset = Noisy()

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


@pytest.mark.parametrize('workers', [0, 2])
def test_so_does_one_whose_data_set_is_wrapped(tmp_path, workers):
    runner = build_run(tmp_path / 'whole', epochs=2, data=dict(dataset=Wrapped()))
    runner.train()
    seen, start = torch.stack(runner.model.seen), str(tmp_path / 'whole/epoch_1.pth')
    data = dict(dataset=Wrapped())
    runner = build_run(tmp_path / 'half', workers, epochs=2, data=data, resume=True, load_from=start)
    runner.train()
    assert torch.equal(torch.stack(runner.model.seen), seen[4:])


def test_a_run_without_a_seed_resumes_with_the_order_of_its_data(tmp_path):
    runner = build_run(tmp_path / 'whole', seed=None)
    runner.train()
    seen = torch.stack(runner.model.seen)
    runner = build_run(tmp_path / 'half', seed=None, resume=True, load_from=str(tmp_path / 'whole/epoch_1.pth'))
    runner.train()
    assert torch.equal(torch.stack(runner.model.seen), seen[4:])
    assert_same(state(tmp_path / 'half/epoch_3.pth'), state(tmp_path / 'whole/epoch_3.pth'))


@pytest.mark.parametrize('workers', [0, 2])
def test_an_iteration_based_run_resumes_likewise(tmp_path, workers):
    hook = dict(checkpoint=dict(type='SafeCheckpointHook', interval=5, by_epoch=False))
    runner = build_run(tmp_path / 'whole', workers=workers, iters=10, default_hooks=hook)
    runner.train()
    seen = torch.stack(runner.model.seen)
    path = tmp_path / 'whole/iter_5.pth'
    runner = build_run(
        tmp_path / 'half', workers=workers, iters=10, default_hooks=hook, resume=True, load_from=str(path)
    )
    runner.train()
    assert torch.equal(torch.stack(runner.model.seen), seen[5:])
    assert_same(state(tmp_path / 'half/iter_10.pth'), state(tmp_path / 'whole/iter_10.pth'))


def test_iterations_are_equal_whatever_the_workers(tmp_path):
    seen = []
    for workers in (0, 2):
        runner = build_run(tmp_path / str(workers), workers=workers, iters=6)
        runner.train()
        seen.append(torch.stack(runner.model.seen))
    assert torch.equal(*seen)


def test_passes_of_an_iteration_based_run_have_random_numbers_of_their_own(tmp_path):
    """Of three batches each, so that two workers change places from pass to pass."""
    seen = []
    for workers, persistent in ((0, False), (2, False), (2, True)):
        data = dict(sampler=dict(type='DefaultSampler', shuffle=True), persistent_workers=persistent)
        runner = build_run(tmp_path / f'{workers}{persistent}', workers, iters=8, batch_size=4, data=data)
        runner.train()
        seen.append(torch.stack(runner.model.seen))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    noise = seen[0][..., 1:].flatten(0, 1)
    assert all(len(column.unique()) == 32 for column in noise.T)


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_batches_by_aspect_ratio_are_whole_and_equal_whatever_the_workers(tmp_path, sampler):
    seen = []
    for workers in (0, 2):
        data = dict(sampler=dict(type=sampler, shuffle=True), batch_sampler=dict(type='AspectRatioBatchSampler'))
        runner = build_run(tmp_path / str(workers), workers, iters=4, data=data)
        runner.train()
        seen.append(torch.stack(runner.model.seen))
    assert torch.equal(*seen)
    # Six images of either kind; an infinite sampler's next pass begins before the last bucket is full.
    indices = seen[0][..., 0]
    assert all(len((batch % 2).unique()) == 1 for batch in indices)
    assert sampler == 'InfiniteSampler' or sorted(indices.flatten().tolist()) == list(range(12))


@pytest.mark.parametrize('kind, workers', [('CheckpointHook', 0), ('SafeCheckpointHook', 0), ('SafeCheckpointHook', 2)])
@pytest.mark.parametrize('step', [1, 3, 6, 8])
def test_an_epoch_based_run_resumes_within_an_epoch(whole, tmp_path, step, kind, workers):
    folder, seen = whole
    hook = dict(checkpoint=dict(type=kind, interval=1, by_epoch=False))
    build_run(tmp_path, default_hooks=hook).train()
    runner = build_run(tmp_path, workers=workers, resume=True, load_from=str(tmp_path / f'iter_{step}.pth'))
    runner.train()
    assert torch.equal(torch.stack(runner.model.seen), seen[step:])
    assert runner.iter == 12
    assert_same(state(tmp_path / 'epoch_3.pth'), state(folder / 'epoch_3.pth'))


@pytest.mark.parametrize('size, other, batches', [(3, 2, 6), (4, 5, 3)])
def test_an_epoch_whose_batches_changed_begins_again(tmp_path, capfd, size, other, batches):
    hook = dict(checkpoint=dict(type='SafeCheckpointHook', interval=1, by_epoch=False))
    plain = dict(epochs=1, param_scheduler=None)
    build_run(tmp_path, batch_size=size, default_hooks=hook, **plain).train()
    runner = build_run(tmp_path, batch_size=other, resume=True, load_from=str(tmp_path / 'iter_2.pth'), **plain)
    runner.train()
    assert len(runner.model.seen) == batches
    message = (
        f'after 2 of {12 // size} batches of epoch 1, which now has {batches}, or batches of another size than {size}'
    )
    assert f'{message}: the epoch begins again' in capfd.readouterr().out
