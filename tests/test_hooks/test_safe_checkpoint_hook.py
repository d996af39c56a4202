"""Checkpoints of runs that end in the middle: killed, out of disk, told to stop; and resuming after each."""

import contextlib
import errno
import multiprocessing
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from asl_mmdet import checkpoint
from asl_mmdet.checkpoint import CheckpointError
from asl_mmdet.hooks import ExactResumeHook, SafeCheckpointHook, safe_checkpoint_hook
from asl_mmdet.hooks.safe_checkpoint_hook import AtomicLocalBackend
from tests.test_hooks.noisy_run import Count, assert_same, build_run, state


@HOOKS.register_module()
class CallAtHook(Hook):
    """Calls a function after an iteration."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.step:
            self.call()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    build_run(folder).train()
    return folder


delays = [0.0]
os.register_at_fork(after_in_child=lambda: time.sleep(delays[-1]))


@pytest.fixture
def slow_start():
    """Half a second between a fork and what the new process is for."""
    delays.append(0.5)
    yield
    delays.pop()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.py')


# ------------------------------------------------------------------------------------------------------ atomic writing


def test_a_file_is_seen_when_it_is_complete_and_synced(tmp_path, monkeypatch):
    (tmp_path / 'a.pth').write_bytes(b'old')
    seen = []
    sync, replace = os.fsync, os.replace

    def watch(name, call):
        def watched(*args):
            seen.append((name, (tmp_path / 'a.pth').read_bytes(), [p.read_bytes() for p in tmp_path.glob('.*')]))
            call(*args)

        return watched

    monkeypatch.setattr(os, 'fsync', watch('sync', sync))
    monkeypatch.setattr(os, 'replace', watch('rename', replace))
    AtomicLocalBackend().put(b'new', tmp_path / 'a.pth')
    assert seen == [('sync', b'old', [b'new']), ('rename', b'old', [b'new']), ('sync', b'new', [])]
    assert files(tmp_path) == ['a.pth']


@pytest.mark.parametrize('number', [errno.EINVAL, errno.EIO])
def test_a_file_system_that_does_not_sync_folders_is_written_to(tmp_path, monkeypatch, number):
    sync = os.fsync

    def sync_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', sync_files)
    with contextlib.nullcontext() if number == errno.EINVAL else pytest.raises(OSError):
        AtomicLocalBackend().put(b'new', tmp_path / 'a.pth')
    assert files(tmp_path) == ['a.pth']


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'a.pth').symlink_to(tmp_path / 'disk/a.pth')
    AtomicLocalBackend().put(b'new', tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth').is_symlink() and (tmp_path / 'disk/a.pth').read_bytes() == b'new'


def fill_disk(monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safe_checkpoint_hook.os, 'fsync', full)


def test_a_full_disk_is_an_error_and_leaves_the_older_checkpoint(whole, tmp_path, monkeypatch):
    hook = dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=1)
    filling = dict(type='CallAtHook', step=8, call=lambda: fill_disk(monkeypatch))
    with pytest.raises(OSError, match=r'No space left.*epoch_2\.pth \(0\.0 MB\) was not written.*--resume') as caught:
        build_run(tmp_path, default_hooks=dict(checkpoint=hook), hooks=[filling]).train()
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path) == ['epoch_1.pth', 'last_checkpoint']
    monkeypatch.undo()
    build_run(tmp_path, default_hooks=dict(checkpoint=hook), resume=True).train()
    assert files(tmp_path) == ['epoch_3.pth', 'last_checkpoint']
    assert_same(state(tmp_path / 'epoch_3.pth'), state(whole / 'epoch_3.pth'))


@pytest.mark.parametrize('best', ['acc', ['acc', 'acc2']])
def test_older_ones_go_when_the_new_one_is_there(tmp_path, monkeypatch, best):
    """Looks at the folder in the moment before each checkpoint appears."""
    seen = {}
    replace = os.replace

    def watch(source, target):
        seen.setdefault(Path(target).name, files(tmp_path))
        replace(source, target)

    class Two(Count):
        def evaluate(self, size):
            acc = super().evaluate(size)['acc']
            return dict(acc=acc, acc2=1 - acc)

    monkeypatch.setattr(os, 'replace', watch)
    hook = dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=1, save_best=best, rule='greater')
    build_run(tmp_path, default_hooks=dict(checkpoint=hook), evaluator=Two([0.2, 0.1, 0.3])).train()
    assert {'epoch_1.pth', 'best_acc_epoch_1.pth'} <= {*seen['best_acc_epoch_3.pth'], *seen['epoch_2.pth']}
    assert 'best_acc_epoch_1.pth' in seen['best_acc_epoch_3.pth'] and 'epoch_2.pth' in seen['epoch_3.pth']
    second = [] if best == 'acc' else ['best_acc2_epoch_2.pth']
    if second:
        assert 'best_acc2_epoch_1.pth' in seen['best_acc2_epoch_2.pth']
    assert [name for name in files(tmp_path) if name.endswith('.pth')] == [
        *second,
        'best_acc_epoch_3.pth',
        'epoch_3.pth',
    ]
    last = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)
    assert last['message_hub']['runtime_info']['keep_ckpt_ids'] == [3]


def test_the_best_of_another_run_stays_there(tmp_path):
    hook = dict(checkpoint=dict(type='SafeCheckpointHook', interval=1, save_best='acc'))
    build_run(tmp_path / 'first', epochs=1, default_hooks=hook, evaluator=Count([0.2])).train()
    other = dict(default_hooks=hook, resume=True, load_from=str(tmp_path / 'first/epoch_1.pth'))
    build_run(tmp_path / 'second', evaluator=Count([0.3, 0.4]), **other).train()
    assert [path.name for path in tmp_path.glob('*/best*')] == ['best_acc_epoch_1.pth', 'best_acc_epoch_3.pth']


def test_a_better_one_of_the_same_name_takes_its_place(tmp_path):
    hook = dict(checkpoint=dict(type='SafeCheckpointHook', interval=1, save_best='acc'))
    runner = build_run(tmp_path, epochs=1, default_hooks=hook, evaluator=Count([0.2, 0.3]))
    runner.train()
    runner.val_loop.run()
    best = torch.load(tmp_path / 'best_acc_epoch_1.pth', weights_only=False)
    assert best['message_hub']['runtime_info']['best_score'] == 0.3


def test_misspelt_arguments_are_refused_before_training():
    with pytest.raises(TypeError, match=r"intervall is no argument of SafeCheckpointHook \(did you mean 'interval'"):
        HOOKS.build(dict(type='SafeCheckpointHook', intervall=3))


def test_left_overs_of_a_kill_are_cleared_away(tmp_path):
    (tmp_path / '.epoch_1.pth.partial').write_bytes(b'half')
    build_run(tmp_path, epochs=1).train()
    assert not (tmp_path / '.epoch_1.pth.partial').exists()


# ------------------------------------------------------------------------------------------------------------ resuming


@pytest.fixture
def folder(whole, tmp_path):
    """Three epochs' checkpoints; the marker names the third's."""
    for epoch in (1, 2, 3):
        shutil.copy(whole / f'epoch_{epoch}.pth', tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ('harm', 'what'),
    [
        (lambda folder: cut(folder / 'epoch_3.pth'), r'epoch_3\.pth is truncated'),
        (lambda folder: flip_a_bit(folder / 'epoch_3.pth'), r'epoch_3\.pth is damaged'),
        (lambda folder: (folder / 'epoch_3.pth').write_bytes(b''), r'epoch_3\.pth is empty'),
        (lambda folder: (folder / 'epoch_3.pth').unlink(), r'epoch_3\.pth is missing'),
        (
            lambda folder: [(folder / 'epoch_3.pth').unlink(), (folder / 'last_checkpoint').unlink()],
            'last_checkpoint is m',
        ),
        (
            lambda folder: [(folder / 'epoch_3.pth').unlink(), (folder / 'last_checkpoint').write_text('')],
            'ckpoint is e',
        ),
    ],
)
def test_resume_falls_back_to_the_newest_intact_checkpoint(whole, folder, harm, what, capfd):
    harm(folder)
    os.utime(folder / 'epoch_1.pth')  # copied last
    runner = build_run(folder, resume=True)
    runner.train()
    assert len(runner.model.seen) == 4
    assert re.search(rf'WARNING - .*{what}.*: resuming from \S*/epoch_2\.pth', capfd.readouterr().out)
    assert_same(state(folder / 'epoch_3.pth'), state(whole / 'epoch_3.pth'))


def test_resume_reads_no_other_where_the_last_is_intact(folder, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoint, 'damage', lambda path: read.append(Path(path).name))
    assert checkpoint.newest_intact(folder, folder, ['epoch_*.pth']) == str(folder / 'epoch_3.pth')
    assert read == ['epoch_3.pth']


def test_resume_of_a_copy_reads_the_copy(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp('copy')
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    assert checkpoint.newest_intact(copy, copy, ['epoch_*.pth']) == str(copy / 'epoch_3.pth')
    (copy / 'epoch_3.pth').unlink()
    assert checkpoint.newest_intact(copy, copy, ['epoch_*.pth']) == str(folder / 'epoch_3.pth')


def test_resume_finds_names_of_any_template(tmp_path, whole):
    hook = dict(type='SafeCheckpointHook', interval=1, filename_tmpl='epoch_{:03d}.pth')
    build_run(tmp_path, epochs=2, default_hooks=dict(checkpoint=hook)).train()
    cut(tmp_path / 'epoch_002.pth')
    runner = build_run(tmp_path, epochs=3, default_hooks=dict(checkpoint=hook), resume=True)
    runner.train()
    assert len(runner.model.seen) == 8 and (tmp_path / 'epoch_003.pth').exists()


def test_an_evaluation_alone_changes_nothing(tmp_path):
    build_run(tmp_path, epochs=1, evaluator=Count()).train()
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert before['last_validation'] == b'4'
    assert build_run(tmp_path, epochs=1, evaluator=Count([0.3])).val() == dict(acc=0.3)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_resume_refuses_where_none_is_intact(folder):
    for path in folder.glob('*.pth'):
        cut(path)
    with pytest.raises(
        CheckpointError, match=r'cannot resume: \S*epoch_1.pth is trunc.*epoch_3.pth is trunc.*--resume'
    ):
        build_run(folder, resume=True).train()


def test_resume_refuses_a_run_of_another_model(folder):
    content = torch.load(folder / 'epoch_3.pth', weights_only=False)
    content['state_dict']['weight'] = torch.zeros(5)
    torch.save(content, folder / 'epoch_3.pth')
    with pytest.raises(CheckpointError, match="epoch_3.pth' holds no tensor of the config's model: it has weight"):
        build_run(folder, resume=True).train()


def test_resume_starts_where_nothing_is(tmp_path):
    runner = build_run(tmp_path, epochs=1, resume=True)
    runner.train()
    assert len(runner.model.seen) == 4


class Killed(BaseException):
    pass


def kill():
    raise Killed


def test_a_validation_that_a_kill_cut_off_is_made_up_for(tmp_path):
    with pytest.raises(Killed):
        build_run(tmp_path, epochs=1, evaluator=Count(at=kill)).train()
    again = Count()
    runner = build_run(tmp_path, epochs=1, evaluator=again, resume=True)
    runner.train()
    assert (len(runner.model.seen), again.runs) == (0, 1)
    once_more = Count()
    build_run(tmp_path, epochs=1, evaluator=once_more, resume=True).train()
    assert once_more.runs == 0


@pytest.mark.parametrize(
    ('epoch', 'settings', 'runs'),
    [
        (1, dict(val_interval=2), 0),
        (2, dict(val_interval=2), 1),
        (3, dict(val_interval=2), 1),  # the last
        (2, dict(val_interval=2, val_begin=3), 0),
        (2, dict(val_interval=3, dynamic_intervals=[(2, 1)]), 1),
    ],
)
def test_one_that_was_not_due_is_not(whole, tmp_path, epoch, settings, runs):
    shutil.copy(whole / f'epoch_{epoch}.pth', tmp_path)
    evaluator, stop = Count(), dict(type='CallAtHook', step=4 * epoch + 1, call=kill)
    train_cfg = dict(by_epoch=True, max_epochs=3, **settings)
    with pytest.raises(Killed) if epoch < 3 else contextlib.nullcontext():
        build_run(tmp_path, evaluator=evaluator, train_cfg=train_cfg, hooks=[stop], resume=True).train()
    assert evaluator.runs == runs


def test_one_of_an_earlier_run_does_not_count(tmp_path):
    build_run(tmp_path, epochs=1, evaluator=Count()).train()
    assert (tmp_path / 'last_validation').read_text() == '4'
    with pytest.raises(Killed):
        build_run(tmp_path, epochs=1, evaluator=Count(at=kill)).train()
    again = Count()
    build_run(tmp_path, epochs=1, evaluator=again, resume=True).train()
    assert again.runs == 1


def test_the_best_of_such_a_validation_is_remembered(tmp_path):
    hook = dict(type='SafeCheckpointHook', interval=1, save_best='acc')

    def attempt(evaluator, *hooks):
        build_run(
            tmp_path, epochs=2, default_hooks=dict(checkpoint=hook), evaluator=evaluator, hooks=hooks, resume=True
        ).train()

    with pytest.raises(Killed):
        attempt(Count(at=kill))
    with pytest.raises(Killed):
        attempt(Count([0.9]), dict(type='CallAtHook', step=5, call=kill))
    attempt(Count([0.5]))
    assert [name for name in files(tmp_path) if 'best' in name] == ['best_acc_epoch_1.pth']
    info = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['message_hub']['runtime_info']
    assert info['best_score'] == 0.9


def test_a_run_resumes_from_a_folder_of_checkpoints_elsewhere(tmp_path):
    """mmengine keeps them in ``out_dir/<name of the work dir>``; here the marker of the last one is gone."""
    (tmp_path / 'out/work').mkdir(parents=True)
    model = torch.nn.Linear(1, 1)
    for step in (1, 2):
        saved = dict(meta=dict(iter=step), state_dict=model.state_dict())
        torch.save(saved, tmp_path / f'out/work/epoch_{step}.pth')
    runner = SimpleNamespace(_resume=True, _load_from=None, work_dir=f'{tmp_path}/work/', model=model)
    SafeCheckpointHook(out_dir=f'{tmp_path}/out').before_run(runner)
    assert runner._load_from == f'{tmp_path}/out/work/epoch_2.pth'


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('step', [1, 4, 6, 11])
def test_sigterm_saves_and_the_next_start_goes_on(whole, tmp_path, step, workers):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        build_run(tmp_path, workers=workers, hooks=[dict(type='CallAtHook', step=step, call=terminate)]).train()
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    saved = Path((tmp_path / 'last_checkpoint').read_text())
    assert saved.name == ('epoch_1.pth' if step == 4 else f'iter_{step}.pth')
    runner = build_run(tmp_path, workers=workers, resume=True)
    runner.train()
    assert len(runner.model.seen) == 12 - step and runner.iter == 12
    assert_same(state(tmp_path / 'epoch_3.pth'), state(whole / 'epoch_3.pth'))
    assert not (tmp_path / f'iter_{step}.pth').exists()


def test_ctrl_c_saves_and_the_next_start_goes_on(whole, tmp_path, capfd):
    before = set(multiprocessing.active_children())

    def from_the_terminal():  # to all processes of its foreground
        pids = [str(child.pid) for child in set(multiprocessing.active_children()) - before] + [str(os.getpid())]
        assert len(pids) == 3
        for _ in range(2):  # as launchers pass it on
            subprocess.run(['kill', '-INT', *pids], check=True)
        time.sleep(0.3)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match='iter_6.pth is saved; --resume goes on'):
        build_run(tmp_path, workers=2, hooks=[dict(type='CallAtHook', step=6, call=from_the_terminal)]).train()
    assert signal.getsignal(signal.SIGINT) == handler
    said = capfd.readouterr().err
    assert said.count('Stopping as soon as --resume can go on from there. Ctrl-C once more stops at once') == 1
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_6.pth')
    build_run(tmp_path, workers=2, resume=True).train()
    assert_same(state(tmp_path / 'epoch_3.pth'), state(whole / 'epoch_3.pth'))


def test_ctrl_c_twice_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_checkpoint_hook, 'ONE_INTERRUPT', 0.1)

    def twice():
        terminate()
        interrupt()
        time.sleep(0.2)
        interrupt()

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as caught:
        build_run(tmp_path, hooks=[dict(type='CallAtHook', step=2, call=twice)]).train()
    assert not caught.value.args and not (tmp_path / 'last_checkpoint').exists()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_ctrl_c_is_heard_where_nobody_reads_what_is_said(tmp_path, monkeypatch):
    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr(safe_checkpoint_hook.os, 'write', closed)
    with pytest.raises(KeyboardInterrupt, match='iter_2.pth is saved'):
        build_run(tmp_path, hooks=[dict(type='CallAtHook', step=2, call=interrupt)]).train()


def test_signals_of_a_training_that_failed_are_forgotten(whole, tmp_path):
    def fail():
        terminate()
        raise ArithmeticError

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ArithmeticError):
        build_run(tmp_path / 'a', hooks=[dict(type='CallAtHook', step=2, call=fail)]).train()
    build_run(tmp_path / 'b').train()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert_same(state(tmp_path / 'b/epoch_3.pth'), state(whole / 'epoch_3.pth'))


def test_ctrl_c_is_ignored_where_the_shell_has_it_so(whole, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        build_run(tmp_path, hooks=[dict(type='CallAtHook', step=2, call=interrupt)]).train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert_same(state(tmp_path / 'epoch_3.pth'), state(whole / 'epoch_3.pth'))


def test_sigterm_twice_in_one_epoch(whole, tmp_path):
    for step in (5, 7):
        with pytest.raises(SystemExit):
            build_run(tmp_path, resume=True, hooks=[dict(type='CallAtHook', step=step, call=terminate)]).train()
    assert files(tmp_path) == ['epoch_1.pth', 'iter_7.pth', 'last_checkpoint']
    build_run(tmp_path, resume=True).train()
    assert_same(state(tmp_path / 'epoch_3.pth'), state(whole / 'epoch_3.pth'))


def test_sigterm_to_worker_processes_leaves_them_their_batches(whole, tmp_path):
    """As a scheduler does that signals every process of a job."""
    before = set(multiprocessing.active_children())

    def from_outside():  # a worker heeds its own training process
        pids = [str(child.pid) for child in set(multiprocessing.active_children()) - before] + [str(os.getpid())]
        assert len(pids) == 3
        os.system(f'kill -TERM {" ".join(pids)}; sleep 0.3')

    with pytest.raises(SystemExit) as caught:
        build_run(tmp_path, workers=2, hooks=[dict(type='CallAtHook', step=6, call=from_outside)]).train()
    assert caught.value.code == 143
    build_run(tmp_path, workers=2, resume=True).train()
    assert_same(state(tmp_path / 'epoch_3.pth'), state(whole / 'epoch_3.pth'))


def test_workers_still_call_what_they_are_to_begin_with(tmp_path):
    def begin(worker_id):
        (tmp_path / f'worker{worker_id}').touch()

    build_run(tmp_path, workers=2, epochs=1, data=dict(worker_init_fn=dict(type=begin))).train()
    assert len([*tmp_path.glob('worker*')]) == 2


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_sigterm_to_worker_processes_that_are_just_starting(whole, tmp_path, slow_start, method):
    before = set(multiprocessing.active_children())

    def from_outside():
        while len(workers := set(multiprocessing.active_children()) - before) < 2:
            time.sleep(0.01)
        subprocess.run(['kill', '-TERM', *(str(worker.pid) for worker in workers), str(os.getpid())], check=True)

    first = build_run(tmp_path, workers=2)
    first._train_dataloader['multiprocessing_context'] = method
    threading.Thread(target=from_outside, daemon=True).start()
    with pytest.raises(SystemExit) as caught:
        first.train()
    assert caught.value.code == 143
    assert files(tmp_path) == ['iter_1.pth', 'last_checkpoint']
    build_run(tmp_path, workers=2, resume=True).train()
    assert_same(state(tmp_path / 'epoch_3.pth'), state(whole / 'epoch_3.pth'))


def test_sigterm_waits_for_the_gradients_that_are_being_accumulated(tmp_path):
    optimizer = dict(optimizer=dict(type='AdamW', lr=0.1), accumulative_counts=3)
    build_run(tmp_path / 'whole', optim_wrapper=optimizer).train()
    with pytest.raises(SystemExit):
        hook = dict(type='CallAtHook', step=4, call=terminate)
        build_run(tmp_path / 'half', optim_wrapper=optimizer, hooks=[hook]).train()
    assert (tmp_path / 'half/last_checkpoint').read_text().endswith('iter_6.pth')
    build_run(tmp_path / 'half', optim_wrapper=optimizer, resume=True).train()
    assert_same(state(tmp_path / 'half/epoch_3.pth'), state(tmp_path / 'whole/epoch_3.pth'))


def test_sigterm_in_an_iteration_based_run(tmp_path):
    hook = dict(checkpoint=dict(type='SafeCheckpointHook', interval=10, by_epoch=False))
    build_run(tmp_path / 'whole', iters=10, default_hooks=hook).train()
    with pytest.raises(SystemExit):
        stop = dict(type='CallAtHook', step=4, call=terminate)
        build_run(tmp_path / 'half', iters=10, default_hooks=hook, hooks=[stop]).train()
    assert files(tmp_path / 'half') == ['iter_4.pth', 'last_checkpoint']
    build_run(tmp_path / 'half', iters=10, default_hooks=hook, resume=True).train()
    assert_same(state(tmp_path / 'half/iter_10.pth'), state(tmp_path / 'whole/iter_10.pth'))
    assert files(tmp_path / 'half') == ['iter_10.pth', 'last_checkpoint']


def test_sigterm_at_a_checkpoint_leaves_it_among_the_others(tmp_path):
    hook = dict(checkpoint=dict(type='SafeCheckpointHook', interval=4, by_epoch=False))
    with pytest.raises(SystemExit):
        stop = dict(type='CallAtHook', step=4, call=terminate)
        build_run(tmp_path, iters=10, default_hooks=hook, hooks=[stop]).train()
    build_run(tmp_path, iters=10, default_hooks=hook, resume=True).train()
    assert files(tmp_path) == ['iter_10.pth', 'iter_4.pth', 'iter_8.pth', 'last_checkpoint']


@pytest.mark.parametrize(('iters', 'saved'), [(None, 'epoch_1.pth'), (10, 'iter_6.pth')])
def test_sigterm_without_what_goes_on_within_an_epoch(tmp_path, iters, saved):
    hook = dict(checkpoint=dict(type='SafeCheckpointHook', interval=4 if iters else 1, by_epoch=not iters))
    stop = dict(type='CallAtHook', step=6, call=terminate)
    runner = build_run(tmp_path, iters=iters, default_hooks=hook, hooks=[stop])
    runner._hooks = [one for one in runner.hooks if not isinstance(one, ExactResumeHook)]
    with pytest.raises(SystemExit):
        runner.train()
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / saved)


def test_sigterm_in_a_validation(tmp_path):
    first = Count(at=terminate)
    with pytest.raises(SystemExit):
        build_run(tmp_path, evaluator=first).train()
    assert first.runs == 0 and (tmp_path / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    second = Count()
    runner = build_run(tmp_path, evaluator=second, resume=True)
    runner.train()
    assert (len(runner.model.seen), second.runs) == (8, 3)
    assert torch.load(tmp_path / 'epoch_3.pth', weights_only=False)['meta']['iter'] == 12


def test_sigterm_in_a_validation_waits_for_accumulated_gradients(tmp_path):
    optimizer = dict(optimizer=dict(type='AdamW', lr=0.1), accumulative_counts=3)
    build_run(tmp_path / 'whole', optim_wrapper=optimizer, evaluator=Count()).train()
    with pytest.raises(SystemExit):
        build_run(tmp_path / 'half', optim_wrapper=optimizer, evaluator=Count(at=terminate)).train()
    # Three batches are a step, and four an epoch.
    assert (tmp_path / 'half/last_checkpoint').read_text().endswith('iter_6.pth')
    build_run(tmp_path / 'half', optim_wrapper=optimizer, evaluator=Count(), resume=True).train()
    assert_same(state(tmp_path / 'half/epoch_3.pth'), state(tmp_path / 'whole/epoch_3.pth'))


@pytest.mark.parametrize(('interval', 'saved', 'validations'), [(1, 'epoch_1.pth', 2), (2, 'iter_5.pth', 2)])
def test_sigterm_when_the_metrics_are_computed(tmp_path, interval, saved, validations):
    class Slow(Count):
        def evaluate(self, size):
            terminate()
            return super().evaluate(size)

    hook = dict(checkpoint=dict(type='SafeCheckpointHook', interval=interval))
    ended = []
    after = Hook()
    after.after_run = ended.append
    runner = build_run(tmp_path, evaluator=Slow(), default_hooks=hook)
    runner.register_hook(after)
    with pytest.raises(SystemExit):
        runner.train()
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / saved) and ended == [runner]
    second = Count()
    build_run(tmp_path, evaluator=second, default_hooks=hook, resume=True).train()
    assert second.runs == validations


def test_sigterm_at_the_end_of_an_epoch_that_is_not_to_be_saved(whole, tmp_path):
    hook = dict(checkpoint=dict(type='SafeCheckpointHook', interval=2))
    with pytest.raises(SystemExit):
        build_run(tmp_path, default_hooks=hook, hooks=[dict(type='CallAtHook', step=4, call=terminate)]).train()
    assert files(tmp_path) == ['iter_4.pth', 'last_checkpoint']
    runner = build_run(tmp_path, default_hooks=hook, resume=True)
    runner.train()
    assert len(runner.model.seen) == 8
    assert_same(state(tmp_path / 'epoch_3.pth'), state(whole / 'epoch_3.pth'))


def test_processes_that_a_metric_forks_end_when_they_are_told_to(tmp_path):
    """As multiprocessing's pools tell theirs; Ctrl-C, which a terminal sends to all, they leave to the parent."""

    def fork():
        context = multiprocessing.get_context('fork')
        children = [context.Process(target=time.sleep, args=(seconds,)) for seconds in (60, 1)]
        for child in children:
            child.start()
        time.sleep(0.2)
        os.kill(children[1].pid, signal.SIGINT)
        children[0].terminate()
        for child in children:
            child.join(20)
            exits.append(child.exitcode)
            child.kill()
        with context.Pool(2) as pool:
            exits.append(pool.map(abs, [-1, -2]))

    exits = []
    runner = build_run(tmp_path, evaluator=Count(at=fork))
    runner.train()
    assert exits[:3] == [-signal.SIGTERM, 0, [1, 2]] and len(runner.model.seen) == 12


def test_sigterm_to_a_process_that_is_just_being_forked(tmp_path, monkeypatch):
    owner, exits = safe_checkpoint_hook._owner, []

    def slow_owner(number):
        time.sleep(0.2)
        return owner(number)

    def fork():
        child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(5)
        exits.append(child.exitcode)
        child.kill()

    monkeypatch.setattr(safe_checkpoint_hook, '_owner', slow_owner)
    build_run(tmp_path, epochs=1, batch_size=12, evaluator=Count(at=fork)).train()
    assert exits == [-signal.SIGTERM]
