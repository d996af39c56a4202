"""tools/train.py, killed, stopped and out of disk, resumed each time; and crafted files through the tools.

The default suite has a small share of the kills with a fixed seed; make test-slow has all of them.
"""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from asl_mmdet.checkpoint import TRUST
from tests.conftest import ROOT, run_tool
from tests.test_checkpoint import crafted
from tests.test_hooks.noisy_run import assert_same, state
from tests.test_tools import CONFIG, classifier_on, free_port, on

EPOCHS = 6
LAST = f'epoch_{EPOCHS}.pth'
TIMEOUT = 900  # of a single process; a run that is stuck fails


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The classifier on shapes with random flips, an average and an adaptive loss, on a disk that takes its time."""
    folder = tmp_path_factory.mktemp('config')
    (folder / 'slow_disk.py').write_text(
        textwrap.dedent("""
        import os, time

        sync, replace = os.fsync, os.replace
        pause = float(os.environ.get('SLOW_DISK', 0))

        def slow_sync(descriptor):
            time.sleep(pause)
            sync(descriptor)

        def slow_replace(source, target):
            time.sleep(pause)
            replace(source, target)
            time.sleep(pause)

        os.fsync, os.replace = slow_sync, slow_replace
        if 'PID_FOLDER' in os.environ:
            open(f"{os.environ['PID_FOLDER']}/rank{os.environ['RANK']}.pid", 'w').write(str(os.getpid()))
        """)
    )
    (folder / 'resumed.py').write_text(
        textwrap.dedent(f"""
        _base_ = '{ROOT}/configs/multi_label/tresnet-narrow_asl_shapes.py'
        custom_imports = dict(imports=['asl_mmdet', 'slow_disk'])
        param_scheduler = [dict(type='OneCycleLR', eta_max=2e-3, total_steps={EPOCHS * 4}, by_epoch=False)]
        custom_hooks = [
            dict(type='RawAndEMAHook', metric='multi-label/mAP', momentum=0.1),
            dict(type='ProbabilityGapHook'),
            dict(type='AdaptiveAsymmetryHook', target=0.3, step=0.2),
        ]
        """)
    )
    return folder / 'resumed.py'


def command(config, shapes, work_dir, *more):
    options = classifier_on(
        shapes,
        'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=1',
        'train_dataloader.dataset.pipeline.1.prob=0.5',
        'model.backbone.norm_eval=False',
        'default_hooks.visualization.draw=False',
        f'train_cfg.max_epochs={EPOCHS}',
        'train_cfg.val_interval=2',
    )
    return ['tools/train.py', str(config), '--work-dir', str(work_dir), '--resume', *more, *options]


def environment(config, slow=0):
    path = os.pathsep.join(filter(None, [str(config.parent), str(ROOT), os.environ.get('PYTHONPATH')]))
    return dict(PYTHONPATH=path, SLOW_DISK=str(slow), OMP_NUM_THREADS='1')


def finish(config, shapes, work_dir):
    done = run_tool(*command(config, shapes, work_dir), env=environment(config), timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope='module')
def whole(config, shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    assert 'resumed epoch' not in finish(config, shapes, folder)
    return state(folder / LAST)


def start(config, shapes, work_dir, slow):
    log = open(work_dir / 'output.txt', 'a')
    return subprocess.Popen(
        [sys.executable, *command(config, shapes, work_dir)],
        cwd=ROOT,
        env={**os.environ, **environment(config, slow)},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def wait_until(process, condition):
    """False where the process ends first."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, 'stuck'
        time.sleep(0.005)
    return True


def logs(work_dir):
    return sorted(work_dir.glob('*/vis_data/config.py'))


def kill_and_resume(config, shapes, work_dir, kills, seed):
    """A run that is killed at random moments, every other one within the writing of a checkpoint, and resumed each time
    until it is finished; then it begins again. Returns the final states and the numbers of kills."""
    moments = random.Random(seed)
    finals, counts = [], dict(anywhere=0, writing=0, resumed=0)
    chain = 0
    while counts['anywhere'] + counts['writing'] < kills:
        folder = work_dir / f'{chain}'
        folder.mkdir(exist_ok=True)
        writing = (counts['anywhere'] + counts['writing']) % 2 == 1
        before = len(logs(folder))
        counts['resumed'] += (folder / 'last_checkpoint').exists()
        process = start(config, shapes, folder, slow=0.1)
        alive = wait_until(process, lambda: len(logs(folder)) > before)
        if alive and writing:
            alive = wait_until(process, lambda: any(folder.glob('.*.partial')))
            time.sleep(moments.uniform(0, 0.3))
        elif alive:
            time.sleep(moments.uniform(0, 4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(TIMEOUT)
            counts['writing' if writing else 'anywhere'] += 1
        else:
            assert process.returncode == 0, (folder / 'output.txt').read_text()
            finals.append(state(folder / LAST))
            chain += 1
    finish(config, shapes, work_dir / f'{chain}')
    return [*finals, state(work_dir / f'{chain}' / LAST)], counts


@pytest.mark.parametrize('kills', [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_runs_end_in_the_weights_of_the_whole_one(config, shapes, whole, tmp_path, kills):
    finals, counts = kill_and_resume(config, shapes, tmp_path, kills, seed=0)
    for final in finals:
        assert_same(final, whole)
    print(
        f'{kills} kills -9, {counts["writing"]} of them while a checkpoint was written; {counts["resumed"]} starts '
        f'from a checkpoint; {len(finals)} runs brought to their end, all equal to the uninterrupted one'
    )


@pytest.mark.parametrize('sent', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_from_outside_saves_and_the_next_start_goes_on(config, shapes, whole, tmp_path, sent):
    """To the process and its workers at once, as schedulers and terminals do."""
    process = start(config, shapes, tmp_path, slow=0)
    assert wait_until(process, lambda: (tmp_path / 'epoch_1.pth').exists())
    os.killpg(process.pid, sent)
    status = -sent if sent == signal.SIGINT else 128 + sent  # a shell makes the same of both
    assert process.wait(TIMEOUT) == status, (tmp_path / 'output.txt').read_text()
    output = (tmp_path / 'output.txt').read_text()
    assert 'Traceback' not in output and f'{sent.name}: ' in output
    assert f'--resume goes on. Exit status {128 + sent}' in output
    assert not (tmp_path / LAST).exists()
    finish(config, shapes, tmp_path)
    assert_same(state(tmp_path / LAST), whole)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_and_resumes_both(config, shapes, tmp_path):
    def both(work_dir, *more):
        tool = ['tools/dist_train.sh', str(config), '2', *command(config, shapes, work_dir, *more)[2:]]
        env = {**os.environ, **environment(config), 'PORT': free_port(), 'PID_FOLDER': str(work_dir)}
        env['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), env['PATH']])
        log = open(work_dir / 'output.txt', 'a')
        return subprocess.Popen(tool, cwd=ROOT, env=env, stdout=log, stderr=log)

    for name in ('whole', 'half'):
        (tmp_path / name).mkdir()
    assert both(tmp_path / 'whole').wait(TIMEOUT) == 0
    process = both(tmp_path / 'half')
    assert wait_until(process, lambda: (tmp_path / 'half/epoch_1.pth').exists())
    os.kill(int((tmp_path / 'half/rank1.pid').read_text()), signal.SIGTERM)
    assert process.wait(TIMEOUT) != 0
    assert 'Exit status 143' in (tmp_path / 'half/output.txt').read_text()
    assert not (tmp_path / 'half' / LAST).exists()
    assert both(tmp_path / 'half').wait(TIMEOUT) == 0, (tmp_path / 'half/output.txt').read_text()
    assert_same(state(tmp_path / 'half' / LAST), state(tmp_path / 'whole' / LAST))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB, where this process may mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', str(folder)], capture_output=True).returncode:
        pytest.skip('mounting a tmpfs takes root')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.slow
def test_a_full_file_system_is_said_and_leaves_a_whole_checkpoint(config, shapes, whole, small_disk):
    filler = small_disk / 'filler'
    process = start(config, shapes, small_disk, slow=0)
    assert wait_until(process, lambda: (small_disk / 'epoch_2.pth').exists())
    with open(filler, 'wb') as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    assert process.wait(TIMEOUT) == 1
    output = (small_disk / 'output.txt').read_text()
    assert 'No space left on device' in output
    filler.unlink()
    assert 'resumed epoch' in finish(config, shapes, small_disk)
    assert_same(state(small_disk / LAST), whole)


# --------------------------------------------------------------------------------------------- crafted files, by tool


def crafted_calls(path, shapes, folder):
    return dict(
        test=['tools/test.py', CONFIG, path, '--work-dir', folder, *on(shapes)],
        resume=['tools/train.py', CONFIG, '--work-dir', folder, '--resume', path, *on(shapes)],
        converter=['tools/model_converters/tresnet.py', path, folder / 'out.pth'],
        infer=['tools/infer.py', shapes / 'val', CONFIG, path],
    )


@pytest.mark.parametrize('tool', ['test', 'resume', 'converter', pytest.param('infer', marks=pytest.mark.slow)])
def test_tools_refuse_crafted_files_and_run_nothing(shapes, tmp_path, tool):
    path = crafted(tmp_path / 'crafted.pth', tmp_path / 'marker', 'protocol 2')
    done = run_tool(*crafted_calls(path, shapes, tmp_path)[tool])
    assert done.returncode == 1 and 'Traceback' not in done.stdout, done.stdout
    assert 'posix.mkdir, which is refused' in done.stdout.strip().splitlines()[-1] and f'{TRUST}=1' in done.stdout
    assert not (tmp_path / 'marker').exists()


@pytest.mark.slow
@pytest.mark.parametrize('tool', ['test', 'resume', 'converter', 'infer'])
def test_tools_run_them_with_the_flag(shapes, tmp_path, tool):
    path = crafted(tmp_path / 'crafted.pth', tmp_path / 'marker', 'protocol 2')
    done = run_tool(*crafted_calls(path, shapes, tmp_path)[tool], env={TRUST: '1'})
    assert (tmp_path / 'marker').is_dir() and 'is read without restriction' in done.stdout
