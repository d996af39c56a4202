"""Where the scalars of a run go: mmengine's visualization backends, by name; and settings of the command line."""

import argparse
import errno
import importlib.util
import os
import runpy
import sys
from types import SimpleNamespace

import pytest
from mmdet.registry import VISUALIZERS
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, VISBACKENDS, DefaultScope

from asl_mmdet import command_line
from asl_mmdet.command_line import (
    add_config_arguments,
    build_runner,
    exit_on_known_faults,
    load_config,
    positive,
    probability,
)
from tests.conftest import ROOT

CLASSIFIER = 'configs/multi_label/tresnet-narrow_asl_shapes.py'
RECIPES = [
    CLASSIFIER,
    'configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py',
    'configs/atss/atss_tresnet-m_fpn_asl-alpha_8xb6-70e_coco.py',
    'configs/multi_label/tresnet-l_asl_8xb16-60e_coco2014-448.py',
]


OF_NO_WORKERS = ('num_workers=0', 'persistent_workers=False')


@pytest.fixture
def said(monkeypatch):
    """What the tools tell their users."""
    lines = []
    monkeypatch.setattr(command_line, 'print_log', lambda message, *_: lines.append(message))
    return lines


def loaded(config, *options, arguments=()):
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    options = ['--cfg-options', *options] if options else []
    return load_config(parser.parse_args([str(config), *map(str, arguments), *options]))


def backends(cfg):
    return [backend.type for backend in cfg.visualizer.vis_backends]


@pytest.mark.parametrize('config', RECIPES)
def test_tensorboard_by_default(config):
    assert backends(loaded(ROOT / config)) == ['LocalVisBackend', 'TensorboardVisBackend']


def test_another_backend_by_name(tmp_path):
    option = 'visualizer.vis_backends.1.type=MLflowVisBackend'
    assert backends(loaded(ROOT / CLASSIFIER, option)) == ['LocalVisBackend', 'MLflowVisBackend']
    # The same way, one that is installed, in a config of mmdet's that has none.
    (tmp_path / 'config.py').write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'")
    cfg = loaded(tmp_path / 'config.py', 'visualizer.vis_backends.0.type=TensorboardVisBackend')
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, save_dir=str(tmp_path), name='by_name'))
    visualizer.add_scalar('loss', 0.5, 1)
    visualizer.close()
    assert len(list(tmp_path.glob('vis_data/events.out.tfevents.*'))) == 1


def test_a_backend_whose_package_is_missing_ends_in_one_line(tmp_path, said):
    assert importlib.util.find_spec('mlflow') is None
    with pytest.raises(SystemExit) as end, exit_on_known_faults():
        VISBACKENDS.build(dict(type='MLflowVisBackend', save_dir=str(tmp_path))).experiment
    assert end.value.code == 1 and said == ['Please run "pip install mlflow" to install mlflow']
    with pytest.raises(ModuleNotFoundError, match='nothing'), exit_on_known_faults():
        import nothing  # noqa: F401


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_is_full_ends_in_one_line(said, number):
    with pytest.raises(SystemExit) as end, exit_on_known_faults():
        raise OSError(number, 'a.pth was not written')
    assert end.value.code == 1 and said == [f'[Errno {number}] a.pth was not written']
    with pytest.raises(PermissionError), exit_on_known_faults():
        raise OSError(errno.EACCES, 'a.pth')


@pytest.mark.parametrize('told', [(), ('epoch_1.pth is saved',)])
def test_a_traceback_of_ctrl_c_is_left_out_where_the_log_has_told_of_it(monkeypatch, told):
    hook = sys.excepthook
    monkeypatch.setattr(sys, 'excepthook', hook)
    monkeypatch.setattr(command_line.atexit, 'register', lambda function: None)
    with pytest.raises(KeyboardInterrupt), exit_on_known_faults():
        raise KeyboardInterrupt(*told)
    assert (sys.excepthook is hook) == (not told)


@pytest.mark.parametrize('given', [list, tuple, lambda backends: backends[-1]])
def test_without_tensorboard_a_run_goes_on(given, monkeypatch, said):
    """mmengine takes several backends, or one alone."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'tensorboard' else find_spec(name))
    built = []
    monkeypatch.setattr(command_line.Runner, 'from_cfg', built.append)
    cfg = Config(dict(visualizer=loaded(ROOT / CLASSIFIER).visualizer))
    cfg.visualizer.vis_backends = given(cfg.visualizer.vis_backends)
    build_runner(cfg)
    assert built == [cfg] and backends(cfg) == ['LocalVisBackend'] * (given in (list, tuple))
    assert len(said) == 1 and 'pip install tensorboard' in said[0]


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    'option, hint',
    [
        ('trian_cfg.max_epochs=3', r"\(did you mean 'train_cfg'\?\)"),
        ('optim_wraper={}', r"\(did you mean 'optim_wrapper'\?\)"),
        ('zzz=1', ', and nothing reads one'),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(option, hint):
    key = option.partition('=')[0]
    with pytest.raises(SystemExit, match=f"--cfg-options {key}: the config has no '{key.partition('.')[0]}'.*{hint}"):
        loaded(ROOT / CLASSIFIER, option)


def test_a_runner_of_another_type_may_read_anything(tmp_path):
    (tmp_path / 'config.py').write_text("runner_type = 'Own'")
    assert loaded(tmp_path / 'config.py', 'zzz=1').zzz == 1


def test_settings_that_a_config_need_not_have(tmp_path):
    (tmp_path / 'config.py').write_text('own = 1')
    cfg = loaded(
        tmp_path / 'config.py', 'own=2', 'randomness.seed=1', 'compile=True', 'allow_outside=True', 'load_from=a.pth'
    )
    assert (cfg.own, cfg.randomness.seed, cfg.compile, cfg.allow_outside) == (2, 1, True, True)
    assert cfg.load_from == 'a.pth'


@pytest.mark.parametrize(
    'config, hooks',
    [
        (dict(), ['mmdet.DataCheckHook']),
        (dict(custom_hooks=[dict(type='EMAHook')]), ['EMAHook', 'mmdet.DataCheckHook']),
        (dict(custom_hooks=[dict(type='DataCheckHook')]), ['DataCheckHook']),
        (dict(check_data=False), []),
        (dict(check_data=False, custom_hooks=[dict(type='DataCheckHook'), dict(type='EMAHook')]), ['EMAHook']),
    ],
)
def test_every_run_compares_the_heads_with_the_data(monkeypatch, config, hooks):
    monkeypatch.setattr(command_line.Runner, 'from_cfg', lambda cfg: cfg)
    assert [hook.type for hook in build_runner(Config(config)).get('custom_hooks', [])] == hooks


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain', 'mmengine'])
def test_hooks_are_found_in_any_scope(scope):
    """With the checkpoint hook as a class, as in configs in pure Python, and with no default hooks at all."""
    for default_hooks, interval in ((dict(checkpoint=dict(type=CheckpointHook, interval=7)), 7), (None, 1)):
        cfg = Config(dict(default_hooks=default_hooks, custom_hooks=None))
        command_line.make_resumable(cfg)
        command_line.stop_at_non_finite(cfg)
        with DefaultScope.overwrite_default_scope(scope):
            hooks = [HOOKS.build(hook) for hook in (*cfg.default_hooks.values(), *cfg.custom_hooks)]
        assert [type(hook).__name__ for hook in hooks] == ['SafeCheckpointHook', 'ExactResumeHook', 'NonFiniteHook']
        assert hooks[0].interval == interval


def test_hooks_that_a_config_does_without():
    cfg = Config(dict(default_hooks=dict(checkpoint=None), custom_hooks=[dict(type='ExactResumeHook')]))
    cfg.allow_non_finite = True
    command_line.make_resumable(cfg)
    command_line.stop_at_non_finite(cfg)
    assert cfg.default_hooks == dict(checkpoint=None) and cfg.custom_hooks == [dict(type='ExactResumeHook')]


def test_a_base_that_is_missing_is_named_with_the_config(tmp_path):
    (tmp_path / 'config.py').write_text("_base_ = 'none.py'")
    with pytest.raises(SystemExit, match=rf'{tmp_path}/config.py, or a config .* missing: .*{tmp_path}/none.py'):
        loaded(tmp_path / 'config.py')
    (tmp_path / 'config.py').write_text("classes = open('classes.txt').read()")
    with pytest.raises(
        SystemExit, match=rf"{tmp_path}/config.py, .* or reads a file, that is missing: .*'classes.txt'"
    ):
        loaded(tmp_path / 'config.py')


def test_a_config_that_is_no_program_is_named(tmp_path):
    for text, message in (
        ('model = dict(\n', r"SyntaxError: '\(' was never closed \([^()]*, line 1\)$"),
        ('x = 1\ny = z\n', rf"NameError: name 'z' is not defined \({tmp_path}/config.py, line 2\)"),
    ):
        (tmp_path / 'config.py').write_text(text)
        with pytest.raises(SystemExit, match=rf'{tmp_path}/config.py, or a config .* cannot be read: {message}'):
            loaded(tmp_path / 'config.py')


def test_a_work_dir_that_cannot_be_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    for folder in (tmp_path / 'file', tmp_path / 'file/run'):
        with pytest.raises(SystemExit, match=rf'{folder} cannot be the work dir: {tmp_path}/file is no folder'):
            loaded(CLASSIFIER, arguments=['--work-dir', folder])
    assert loaded(CLASSIFIER, arguments=['--work-dir', tmp_path / 'a/b']) and not (tmp_path / 'a').exists()
    monkeypatch.setattr(command_line.os, 'access', lambda folder, mode: folder != tmp_path)
    with pytest.raises(SystemExit, match=f'{tmp_path}/a/b cannot be .*: {tmp_path} may not be written to. --work-dir'):
        loaded(CLASSIFIER, arguments=['--work-dir', tmp_path / 'a/b'])


@pytest.mark.parametrize(
    ('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')]
)
def test_a_launcher_that_has_started_nothing_is_refused(monkeypatch, launcher, variable):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit, match=f'--launcher {launcher}: {variable} is not set.*tools/dist_train.sh'):
        loaded(CLASSIFIER, arguments=['--launcher', launcher])


@pytest.mark.parametrize(
    ('launcher', 'options', 'timeout'), [('pytorch', (), 600), ('pytorch', ('60',), 60), ('none', (), None)]
)
def test_processes_wait_for_each_other_as_long_as_the_config_says(monkeypatch, launcher, options, timeout):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('LOCAL_RANK', '3')
    monkeypatch.setattr(command_line, '_distribute_on_cpu', lambda cfg: None)
    options = [f'env_cfg.dist_cfg.timeout={seconds}' for seconds in options]
    cfg = loaded(CLASSIFIER, *options, arguments=['--launcher', launcher])
    assert cfg.env_cfg.dist_cfg.get('timeout') == timeout and os.environ['LOCAL_RANK'] == '3'


def test_a_place_that_a_config_does_not_have(tmp_path):
    (tmp_path / 'config.py').write_text('param_scheduler = [dict(end=3)]\nload_from = None')
    for option, message in (
        ('param_scheduler.9.end=4', 'Index 9 exceeds the length'),
        ('param_scheduler.end=4', 'list indices must be integers'),
        ('load_from.x=1', "load_from={'x': 1} in child config cannot inherit"),
    ):
        with pytest.raises(SystemExit, match=f'--cfg-options {option.partition("=")[0]}: .*{message}'):
            loaded(tmp_path / 'config.py', option)
    assert loaded(tmp_path / 'config.py', 'param_scheduler.0.end=4').param_scheduler[0].end == 4


@pytest.mark.parametrize(
    ('kind', 'good', 'bad'),
    [(positive, ['1', '12'], ['0', '-3', 'a']), (probability, ['0', '1', '.5'], ['1.01', '-1'])],
)
def test_types_of_arguments(kind, good, bad, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--value', type=kind)
    assert [parser.parse_args(['--value', text]).value for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(SystemExit):
            parser.parse_args(['--value', text])
    assert f'--value: {bad[0]} ' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('tool', 'option', 'name'),
    [
        ('infer.py', '--out', 'file/labels.csv'),
        ('infer.py', '--out', 'folder.csv'),
        ('infer.py', '--show-dir', 'file/pictures'),
        ('test.py', '--out', 'file/predictions.pkl'),
        ('export_onnx.py', '--out', 'file/model.onnx'),
        ('analysis_tools/audit_labels.py', '--out-dir', 'file'),
        ('analysis_tools/browse_dataset.py', '--out', 'file'),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tool, option, name, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder.csv').mkdir()
    monkeypatch.setattr('sys.argv', [tool, option, str(tmp_path / name)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    fault = 'is a folder, where a file' if name == 'folder.csv' else f'cannot be written into: {tmp_path}/file is no'
    assert f'argument {option}: ' in (said := capsys.readouterr().err) and fault in said


def test_a_temporary_folder_in_which_workers_would_end_is_refused(monkeypatch):
    monkeypatch.setattr(command_line, 'tempfile', SimpleNamespace(gettempdir=lambda: f'/{"é" * 37}'))
    assert loaded(CLASSIFIER)
    monkeypatch.setattr(command_line, 'tempfile', SimpleNamespace(gettempdir=lambda: f'/{"é" * 37}x'))
    with pytest.raises(SystemExit, match='has 76 characters in its name.* Set TMPDIR to a shorter one, such as /tmp'):
        loaded(CLASSIFIER)
    without_workers = [f'{split}_dataloader.{key}' for split in ('train', 'val', 'test') for key in OF_NO_WORKERS]
    assert loaded(CLASSIFIER, *without_workers)
    monkeypatch.setattr(command_line.torch.multiprocessing, 'get_sharing_strategy', lambda: 'file_system')
    assert loaded(CLASSIFIER)
