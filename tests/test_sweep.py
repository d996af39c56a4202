"""tools/analysis_tools/sweep.py: tables by hand, and real runs on the small data set of shapes."""

import csv
import fcntl
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from mmengine.config import Config

from tests.conftest import ROOT, run_tool
from tests.test_tools import CLASSIFIER, classifier_on

SWEEP = 'tools/analysis_tools/sweep.py'
spec = importlib.util.spec_from_file_location('sweep', ROOT / SWEEP)
sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)

GAMMA = 'model.head.loss.gamma_neg'
GRID = f"""
base = '{CLASSIFIER}'
metric = 'multi-label/mAP'
seeds = [0]
runs = {{
    'asl': {{'model.head.loss': dict(gamma_neg=4.0, clip=0.05)}},
    'focal': {{'model.head.loss': dict(gamma_neg=2.0, clip=0.0)}},
    'broken': {{'model.head.in_channels': 7}},
}}
paper = {{'multi-label/mAP': {{'asl': 86.6}}}}
"""
EPOCHS = 8


@pytest.fixture
def grid_file(tmp_path):
    def write(content):
        path = tmp_path / 'grid.py'
        path.write_text(content)
        return path

    return write


@pytest.fixture(scope='module')
def options(shapes):
    return classifier_on(
        shapes,
        f'train_cfg.max_epochs={EPOCHS}',
        f'train_cfg.val_interval={EPOCHS}',
        'train_dataloader.batch_size=4',
    )


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, 'ended before'
        time.sleep(0.01)


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, SWEEP, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope='module')
def killed_and_started_again(options, tmp_path_factory):
    """A sweep that kill -9 ends, with its training process, in the second run; then again, two runs side by side."""
    folder = tmp_path_factory.mktemp('sweep')
    (folder / 'grid.py').write_text(GRID)
    arguments = [folder / 'grid.py', '--work-dir', folder / 'work', *options]
    process = start(*arguments, '--only', 'asl', 'focal')
    second = folder / 'work/focal/seed0'
    wait_until((second / 'last_checkpoint').exists, process)
    process.kill()
    os.killpg(int((second / 'lock').read_text()), signal.SIGKILL)
    process.communicate()
    first = folder / 'work/asl/seed0'
    assert not (second / 'result.json').exists()
    before = {path: path.stat().st_mtime_ns for path in first.rglob('*')}
    again = run_tool(SWEEP, *arguments, '--seeds', 0, 1, '--jobs', 2, env=dict(OMP_NUM_THREADS='1'))
    assert {path: path.stat().st_mtime_ns for path in first.rglob('*')} == before, 'a finished run was run again'
    return folder / 'work', again, arguments


def test_a_killed_sweep_goes_on_where_it_was(killed_and_started_again):
    work, again, _ = killed_and_started_again
    assert '6 runs' in again.stdout and '1 of them finished before' in again.stdout
    assert 'focal, seed 0: goes on\n' in again.stdout
    assert 'focal, seed 1: starts' in again.stdout and 'asl, seed 0' not in again.stdout
    log = (work / 'focal/seed0/train.log').read_text()
    assert len(re.findall(rf'Epoch\(val\) +\[{EPOCHS}\]', log)) == 1
    assert log.count('Saving checkpoint at 1 epochs') == 1


def test_every_run_trains_what_its_setting_says(killed_and_started_again):
    work, _, _ = killed_and_started_again
    for name, gamma, seed in (('asl', 4.0, 0), ('asl', 4.0, 1), ('focal', 2.0, 1)):
        config = Config.fromfile(work / f'{name}/seed{seed}/config.py')
        assert config.model.head.loss.gamma_neg == gamma and config.randomness.seed == seed
        assert config.train_cfg.max_epochs == EPOCHS
        values = json.loads((work / f'{name}/seed{seed}/result.json').read_text())['values']
        (log,) = (work / f'{name}/seed{seed}').glob('*/vis_data/scalars.json')
        assert values['multi-label/mAP'] == json.loads(log.read_text().splitlines()[-1])['multi-label/mAP']


def test_a_failed_run_is_reported_with_its_log_and_the_others_go_on(killed_and_started_again):
    work, again, _ = killed_and_started_again
    assert again.returncode == 1
    assert '2 of 6 runs failed' in again.stdout
    log = work / 'broken/seed1/train.log'
    assert f'exit status 1, log: {log}' in again.stdout and 'in_channels' in log.read_text()
    assert not (work / 'broken/seed1/result.json').exists()


def test_the_tables_and_the_plot_hold_the_finished_runs(killed_and_started_again):
    work, again, _ = killed_and_started_again
    rows = list(csv.DictReader((work / 'results.csv').open()))
    assert [(row['name'], row['seed'], row[GAMMA]) for row in rows] == [
        ('asl', '0', '4.0'),
        ('asl', '1', '4.0'),
        ('focal', '0', '2.0'),
        ('focal', '1', '2.0'),
    ]
    assert all(0 < float(row['multi-label/mAP']) <= 100 and row['ema/multi-label/mAP'] for row in rows)
    table = (work / 'results.md').read_text()
    assert '| setting | seeds | multi-label/mAP | multi-label/mAP (paper) |' in table and table in again.stdout
    assert 'with `train_dataloader.dataset.data_root=' in table and f'`train_cfg.max_epochs={EPOCHS}`' in table
    assert re.search(r'\| asl \| 2 \| [\d.]+ ± [\d.]+ \| 86.6 \|', table) and '| broken | 0 |  |  |' in table
    assert (work / 'results.png').read_bytes().startswith(b'\x89PNG')


def test_other_settings_in_the_same_work_dir_are_refused(killed_and_started_again, grid_file, capsys):
    work, _, (_, *options) = killed_and_started_again
    grid = grid_file(GRID.replace('gamma_neg=2.0', 'gamma_neg=3.0'))
    assert sweep.main([str(part) for part in (grid, *options)]) == 2
    message = capsys.readouterr().err
    assert f'{work}/focal/seed0 was made with other settings: {GAMMA} was 2.0, and is 3.0 now' in message
    assert 'delete that folder' in message and '--work-dir' in message


def test_a_base_that_was_changed_since_is_refused(grid_file, tmp_path):
    inherited, base = tmp_path / 'inherited.py', tmp_path / 'base.py'
    inherited.write_text(f"_base_ = '{ROOT / CLASSIFIER}'\ntrain_cfg = dict(max_epochs=2)\n")
    base.write_text("_base_ = 'inherited.py'\n")
    grid = grid_file(GRID.replace(str(CLASSIFIER), 'base.py'))

    def start_over():
        args = sweep.parse_arguments([str(grid), '--work-dir', str(tmp_path / 'work')])
        loaded, config = sweep.load_grid(grid), Config.fromfile(base)
        return sweep.plan(args, loaded, sweep.swept_values(loaded, config), base, config, [0])

    for run in start_over():
        run.folder.mkdir(parents=True)
        sweep.write_whole(run.folder / 'run.json', json.dumps(run.origin))
    assert [run.last_step for run in start_over()] == [2, 2, 2]
    inherited.write_text(inherited.read_text().replace('max_epochs=2', 'max_epochs=1'))
    with pytest.raises(sweep.SweepError, match=r'asl/seed0 was made with.*: train_cfg.max_epochs was 2, and is 1 now'):
        start_over()


def test_sigterm_ends_the_training_processes_too(options, grid_file, tmp_path):
    process = start(grid_file(GRID), '--work-dir', tmp_path / 'work', '--only', 'asl', *options)
    lock = tmp_path / 'work/asl/seed0/lock'
    wait_until(lambda: lock.exists() and lock.read_text(), process)
    child = int(lock.read_text())
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and 'goes on from here' in output and 'Traceback' not in output
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_stopping_ends_the_children_of_a_training_process(tmp_path):
    stop = threading.Event()
    command = ['sh', '-c', f'sleep 60 & echo $! > {tmp_path}/pid; wait']
    with open(tmp_path / 'lock', 'a+') as lock:
        thread = threading.Thread(target=sweep.execute, args=(command, tmp_path / 'log', {}, lock, stop))
        thread.start()
        while not (tmp_path / 'pid').exists() or not (tmp_path / 'pid').read_text():
            time.sleep(0.01)
        stop.set()
        thread.join(timeout=20)
    status = subprocess.run(
        ['ps', '-o', 'stat=', '-p', (tmp_path / 'pid').read_text().strip()], capture_output=True, text=True
    )
    assert not status.stdout or status.stdout.startswith('Z')


def test_a_run_that_another_process_trains_is_waited_for(tmp_path):
    """A training process outlives a sweep that is killed alone: it holds the lock."""
    path = tmp_path / 'lock'
    said, stop = [], threading.Event()
    with open(path, 'a+') as held:
        trainer = subprocess.Popen(['sleep', '1.5'], pass_fds=[held.fileno()])
        fcntl.flock(held, fcntl.LOCK_EX)
        path.write_text(str(trainer.pid))
    with open(path, 'a+') as lock:
        assert sweep.hold(lock, stop, said.append)
    assert trainer.poll() is not None and said == [str(trainer.pid)]
    with open(path, 'a+') as held, open(path, 'a+') as lock:
        fcntl.flock(held, fcntl.LOCK_EX)
        stop.set()
        assert not sweep.hold(lock, stop, said.append)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ("'model.head.los.clip': 0.1", r"asl: model.head.los.clip: model.head has no 'los'; did you mean 'loss'\?"),
        ("'model.head.loss.gama_neg': 1", r"model.head.loss has no 'gama_neg'; did you mean 'gamma_neg'\?"),
        ("'model.head.loss': dict(alfa=1)", r"model.head.loss has no 'alfa'; did you mean 'alpha'\?"),
        ("'train_dataloader.dataset.pipeline.7.prob': 1", r'is a list of 3: give a number from 0, or \+TYPE'),
        ("'custom_hooks.+NoHook.a': 1", r"custom_hooks.\+NoHook.a: no type 'NoHook' is registered"),
        ("'custom_hooks.+EarlyStoppingHook.monitr': 1", r"has no 'monitr'; did you mean 'monitor'\?"),
        ("'custom_hooks.+DataCheckHook': {}", r'has a DataCheckHook already; override it as custom_hooks.1.KEY'),
        ("'train_cfg.max_epochs.a': 1", r"train_cfg.max_epochs is 18, which has no 'a'"),
        ("'randomness.seed': 1", r'randomness.seed is what the seeds of the sweep set'),
        ("'max_epochs': 1", r"max_epochs: the config has no 'max_epochs'"),
    ],
)
def test_a_wrong_key_is_refused_before_any_run(wrong, message, grid_file, tmp_path, capsys):
    grid = grid_file(f"base = '{CLASSIFIER}'\nmetric = 'multi-label/mAP'\nruns = {{'asl': {{{wrong}}}}}\n")
    assert sweep.main([str(grid), '--work-dir', str(tmp_path / 'work')]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and str(grid) in error and not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    'axes', ["x = 'model.head.loss.gama_neg'", "x = 'model.head.loss.clip'\nlines = 'model.head.thr'"]
)
def test_an_axis_that_no_setting_sets_is_refused(axes, grid_file, tmp_path, capsys):
    content = (
        f"base = '{CLASSIFIER}'\nmetric = 'multi-label/mAP'\ngrid = {{'model.head.loss.clip': [0.0, 0.1]}}\n{axes}"
    )
    assert sweep.main([str(grid_file(content)), '--work-dir', str(tmp_path / 'work')]) == 2
    wrong = axes.split("'")[-2]
    assert f'{wrong}, an axis of the plot, is none of the keys it sets: model.head.loss.clip' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('base = 1', 'base is missing or no text'),
        ("base = 'a.py'\nmetric = 'm'", 'write either runs = .* or grid ='),
        ("base = 'a.py'\nmetric = 'm'\nruns = {'a/b': {}}", "the setting 'a/b' names a folder"),
        ("base = 'a.py'\nmetric = 'm'\nruns = {'a': {}}", 'no base a.py in .*; mend it, or give one with --config'),
        ("base = 'a.py'\nmetric = 'm'\nruns = {'a': {}}\nseeds = 3", 'seeds = 3; write a list of whole numbers'),
        ("base = 'a.py'\nmetric = 'm'\nruns = {'a': {}}\nseed = [3]", 'seed is none of the keys of a grid'),
        (
            "base = 'a.py'\nmetric = 'm'\nruns = {'a': {}}\npaper = {'m': {'b': 1}}",
            r"'b' of paper\['m'\] is none of: a",
        ),
        ("base = 'a.py'\nmetric = 'm'\ngrid = {'a': 3}", 'a of grid is 3; write a list of values'),
        ("base = 'a.py'\nmetric = 'm'\nruns = {}", 'there is no setting in it'),
        ("base = 'a.py'\nmetric = 'm'\nruns = {'a': {}}\nlines = 'g'", "lines = 'g' wants an x beside it"),
        ("base = 'a.py'\nmetric = 'm'\nruns = {'a': {'h.+A': 1}}", r"h.\+A is 1 in 'a'; write a dict of its arguments"),
        ('base = ', 'cannot be read: .*Error'),
    ],
)
def test_a_faulty_grid_is_explained(content, message, grid_file, capsys):
    assert sweep.main([str(grid_file(content))]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_base_of_a_project_is_found_from_where_the_command_runs(tmp_path, monkeypatch):
    grid, base = tmp_path / 'grids/ladder.py', tmp_path / 'configs/mine.py'
    base.parent.mkdir()
    base.write_text('')
    with pytest.raises(sweep.SweepError, match='no base configs/mine.py'):
        sweep.base_path(grid, 'configs/mine.py')
    monkeypatch.chdir(tmp_path)
    assert sweep.base_path(grid, 'configs/mine.py') == base


def test_wrong_options_are_explained(grid_file, capsys):
    grid = str(grid_file(GRID))
    assert sweep.main([grid, '--only', 'ce']) == 2
    assert '--only ce: the settings of' in capsys.readouterr().err
    assert sweep.main([grid, '--cfg-options', f'{GAMMA}=1']) == 2
    assert f'--cfg-options: {GAMMA} is what {grid} sets; change it there' in capsys.readouterr().err
    assert sweep.main([grid, '--config', 'none.py']) == 2
    assert 'no config file' in capsys.readouterr().err


def test_a_dry_run_lists_the_runs_and_leaves_nothing(grid_file, tmp_path, capsys):
    grid = grid_file(f"base = '{CLASSIFIER}'\nmetric = 'm'\nseeds = [0, 1]\ngrid = {{'{GAMMA}': [1.0, 2.0]}}\n")
    assert sweep.main([str(grid), '--work-dir', str(tmp_path / 'work'), '--dry-run']) == 0
    output = capsys.readouterr().out
    assert '4 runs' in output and f'gamma_neg=2.0, seed 1: to run\n  {GAMMA}=2.0' in output
    assert not (tmp_path / 'work').exists()


def test_overrides_are_merged_and_appended():
    base = Config(dict(model=dict(head=dict(clip=0.1, thr=0.5)), custom_hooks=[dict(type='A')]))
    overrides = {
        'model.head.clip': 0.0,
        'custom_hooks.+B.target': 0.2,
        'custom_hooks.+B.step': 1,
        'custom_hooks.+C': {},
    }
    config = sweep.run_config(base, overrides, seed=3)
    assert config.to_dict() == dict(
        model=dict(head=dict(clip=0.0, thr=0.5)),
        custom_hooks=[dict(type='A'), dict(type='B', target=0.2, step=1), dict(type='C')],
        randomness=dict(seed=3),
    )
    assert base.custom_hooks == [dict(type='A')] and 'randomness' not in base


def test_a_grid_is_every_combination_of_its_values():
    assert sweep.combinations({'a.b': [1, 2], 'c': ['x', 'y']}) == {
        'b=1,c=x': {'a.b': 1, 'c': 'x'},
        'b=1,c=y': {'a.b': 1, 'c': 'y'},
        'b=2,c=x': {'a.b': 2, 'c': 'x'},
        'b=2,c=y': {'a.b': 2, 'c': 'y'},
    }


def test_the_last_validation_counts_and_the_last_values_of_the_hooks():
    scalars = [
        dict(lr=1, loss=2.0, step=5, gap=-0.5, gamma_neg=0.1),
        {'m/mAP': 40.0, 'time': 1, 'data_time': 1, 'step': 1},
        {'lr': 1, 'loss': 2.0, 'step': 10, 'gap': 0.1, 'gamma_neg': 3.2, 'head.loss/gap': 0.3},
        {'m/mAP': 50.0, 'raw/m/mAP': 49.0, 'time': 1, 'data_time': 1, 'step': 2},
    ]
    values = {'m/mAP': 50.0, 'raw/m/mAP': 49.0, 'gap': 0.1, 'gamma_neg': 3.2, 'head.loss/gap': 0.3}
    assert sweep.final_values(scalars) == (2, values)
    assert sweep.final_values(scalars[:1]) == (0, dict(gap=-0.5, gamma_neg=0.1))


def test_a_spoilt_line_of_the_log_is_left_out(tmp_path):
    for start, content in (('20260102_1', b'{"step": 2}\n{"ste'), ('20260101_1', b'{"step": 1}\n\xbd\xff\n')):
        (tmp_path / start / 'vis_data').mkdir(parents=True)
        (tmp_path / start / 'vis_data/scalars.json').write_bytes(content)
    assert sweep.read_scalars(tmp_path) == [dict(step=1), dict(step=2)]


def test_the_last_checkpoint_tells_how_far_a_run_is(tmp_path):
    runs = {
        unit: sweep.Run('asl', 0, tmp_path, Config(dict(train_cfg={f'max_{unit}s': 100})), {})
        for unit in ('epoch', 'iter')
    }
    assert runs['epoch'].saved_step == 0
    # SIGTERM leaves one that counts iterations, also in a run by epochs.
    for name in ('epoch_3', 'epoch_4', 'epoch_10', 'iter_70', 'epoch_99_swa', 'best_mAP_epoch_98'):
        (tmp_path / f'{name}.pth').touch()
    assert (runs['epoch'].saved_step, runs['iter'].saved_step) == (10, 70)


@pytest.mark.parametrize(
    ('files', 'resumes'),
    [(['epoch_1.pth', 'last_checkpoint'], True), (['epoch_1.pth'], True), (['last_checkpoint'], False), ([], False)],
)
def test_a_run_is_resumed_where_a_checkpoint_of_it_is_left(files, resumes, tmp_path, monkeypatch):
    """The marker alone, whose checkpoints were deleted, is nothing that train.py could go on from."""
    for name in files:
        (tmp_path / name).write_text('/moved/epoch_1.pth')
    commands, said = [], []
    monkeypatch.setattr(sweep, 'execute', lambda command, *_: commands.append(command))
    run = sweep.Run('asl', 0, tmp_path, Config(dict(train_cfg=dict(max_epochs=2))), {})
    assert sweep.train(run, 1, {}, threading.Event(), said.append) == 'stopped'
    assert ('--resume' in commands[0]) == resumes and said == [f'asl, seed 0: {"goes on" if resumes else "starts"}']


ROWS = [
    {'name': 'a', 'g': 1.0, 'seed': 0, 'mAP': 80.0, 'gap': -0.2, 'gamma_neg': 1.0},
    {'name': 'a', 'g': 1.0, 'seed': 1, 'mAP': 83.0, 'gap': -0.1, 'gamma_neg': 2.0},
    {'name': 'a', 'g': 1.0, 'seed': 2, 'mAP': 86.0, 'gap': 0.0, 'gamma_neg': 3.0},
    {'name': 'b', 'g': 2.0, 'seed': 0, 'mAP': 90.5},
]
SETTINGS = {'a': {'g': 1.0}, 'b': {'g': 2.0}, 'c': {'g': 3.0}}


def test_mean_and_spread_are_those_by_hand():
    # Deviations -3, 0, 3: 18 / (3 - 1) = 9.
    assert sweep.mean_and_spread(ROWS, 'a', 'mAP') == (83.0, 3.0)
    mean, spread = sweep.mean_and_spread(ROWS, 'b', 'mAP')
    assert mean == 90.5 and spread != spread
    diverged = [dict(name='d', mAP=value) for value in (80.0, float('nan'))]
    assert sweep.as_csv(diverged) == 'name,mAP\nd,80.0\nd,nan\n'
    assert all(value != value for value in sweep.mean_and_spread(diverged, 'd', 'mAP'))
    assert sweep.mean_and_spread(ROWS, 'c', 'mAP') is None and sweep.mean_and_spread(ROWS, 'b', 'gap') is None


def test_the_tables_are_those_by_hand():
    grid = sweep.Grid('base.py', 'mAP', (0,), SETTINGS, paper={'mAP': {'b': 91.0}, 'gamma_neg': {'a': 1.2}})
    assert sweep.as_markdown(ROWS, grid, 'title', 'base.py').splitlines()[4:] == [
        '| setting | seeds | mAP | mAP (paper) | final gamma_neg | final gamma_neg (paper) | final gap |',
        '|---|---:|---:|---:|---:|---:|---:|',
        '| a | 3 | 83.00 ± 3.00 |  | 2.000 ± 1.000 | 1.2 | -0.100 ± 0.100 |',
        '| b | 1 | 90.50 | 91.0 |  |  |  |',
        '| c | 0 |  |  |  |  |  |',
    ]
    assert sweep.as_csv(ROWS).splitlines()[:2] == ['name,g,seed,mAP,gamma_neg,gap', 'a,1.0,0,80.0,1.0,-0.2']
    assert sweep.as_csv(ROWS).splitlines()[-1] == 'b,2.0,0,90.5,,'


@pytest.mark.parametrize('axes', [dict(), dict(x='g'), dict(x='g', lines='h')])
def test_a_plot_is_drawn_with_and_without_axes(axes):
    grid = sweep.Grid('base.py', 'mAP', (0,), SETTINGS, **axes)
    swept = {name: {**values, 'h': 'line'} for name, values in SETTINGS.items()}
    assert sweep.plot(ROWS, grid, swept, 'title').startswith(b'\x89PNG')


def test_swept_are_the_keys_that_differ_and_the_axes():
    base = Config(dict(a=0, b=5, c=7))
    grid = sweep.Grid('base.py', 'm', (0,), {'one': {'a': 1, 'b': 2, 'c': 1}, 'two': {'b': 2, 'c': 1}}, x='c')
    assert sweep.swept_values(grid, base) == {'one': {'a': 1, 'c': 1}, 'two': {'a': 0, 'c': 1}}


def test_a_part_that_is_replaced_has_its_type_beside_it():
    net = dict(type='Net', depth=1)
    other = dict(_delete_=True, type='Other')
    grid = sweep.Grid('base.py', 'm', (0,), {'net': {}, 'other': {'net': other}, 'third': {'net.type': 'Third'}})
    assert sweep.swept_values(grid, Config(dict(net=net))) == {
        'net': {'net': net, 'net.type': 'Net'},
        'other': {'net': other, 'net.type': 'Other'},
        'third': {'net': net, 'net.type': 'Third'},
    }
    grid = sweep.Grid('base.py', 'm', (0,), {'with': {'new': other}, 'without': {}})
    assert sweep.swept_values(grid, Config()) == {
        'with': {'new': other, 'new.type': 'Other'},
        'without': {'new': None},
    }


def test_runs_side_by_side_share_cores_and_gpus():
    assert sweep.environments(2, 1, [], 8, {}) == [dict(OMP_NUM_THREADS='4')] * 2
    assert sweep.environments(3, 1, [], 2, dict(OMP_NUM_THREADS='5')) == [dict(OMP_NUM_THREADS='5')] * 3
    assert sweep.environments(3, 2, ['0', '1', '4', '5', '6'], 12, {}) == [
        dict(OMP_NUM_THREADS='2', CUDA_VISIBLE_DEVICES='0,1', PORT='29500'),
        dict(OMP_NUM_THREADS='2', CUDA_VISIBLE_DEVICES='4,5', PORT='29501'),
        dict(OMP_NUM_THREADS='2', CUDA_VISIBLE_DEVICES='0,1', PORT='29502'),
    ]
    with pytest.raises(sweep.SweepError, match='--gpus 4: there are 2 here'):
        sweep.environments(1, 4, ['0', '1'], 8, {})


# Table 2: focal, ten static weights, focusing, margin, both. Figure 4: three losses; figure 6: five gamma_pos on two
# gamma_neg; figure 7: seven margins on three gamma. Of the small ones: eight losses, and six on two sets of labels,
# with three seeds.
RUNS_OF_THE_PAPER = {
    'table2_coco2014': 14,
    'table3_coco2014': 4,
    'fig4_coco2014': 3,
    'fig5_coco2014': 7,
    'fig6_coco2014': 10,
    'fig7_coco2014': 21,
    'dynamics_shapes-64': 24,
    'margin_shapes-64': 36,
}


def test_the_grids_of_section_3_are_all_here():
    assert {path.stem for path in (ROOT / 'configs/_sweeps_').glob('*.py')} == set(RUNS_OF_THE_PAPER)


@pytest.mark.parametrize('name', RUNS_OF_THE_PAPER)
def test_a_grid_fits_its_base_and_has_the_runs_of_the_paper(name, tmp_path):
    path = ROOT / f'configs/_sweeps_/{name}.py'
    grid = sweep.load_grid(path)
    base = sweep.config_from_file(sweep.base_path(path, grid.base))
    faults = {sweep.fault_of_key(base, key) for overrides in grid.settings.values() for key in overrides}
    assert faults == {None}
    assert len(grid.settings) * len(grid.seeds) == RUNS_OF_THE_PAPER[name]
    configs = [sweep.run_config(base, overrides, 0) for overrides in grid.settings.values()]
    assert len({config.dump() for config in configs}) == len(grid.settings)
    for config in configs:
        loss = config.model.head.loss.to_dict()
        sweep.registered(loss.pop('type'))(**loss)
        hooks = [hook.to_dict() for hook in config.custom_hooks]
        for hook in hooks:
            sweep.registered(hook.pop('type'))(**hook)
        assert any(hook.type == 'ProbabilityGapHook' for hook in config.custom_hooks)
    assert grid.metric == base.default_hooks.checkpoint.save_best
