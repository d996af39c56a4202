"""What the command lines of the tools share; options are those of mmdet's tools."""

import argparse
import atexit
import errno
import gc
import importlib.util
import inspect
import logging
import os
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .checkpoint import CheckpointError
from .datasets import AnnotationError
from .datasets.detection import guard_detection_data, type_name
from .datasets.label_index import message_of, quoted, suggestion
from .evaluation.multi_label_metric import NothingToMeasureError
from .hooks import DataCheckHook, ExactResumeHook, NonFiniteError, NonFiniteHook

# Seconds for which a process waits for the others; torch's default is this for NCCL, but three times as long for gloo.
TIMEOUT = 600
# Linux has 107 characters for the name of a socket; Python appends /pymp-12345678/listener-12345678.
LONGEST_TEMPORARY_FOLDER = 75
# What is read at the top of a config, where its Runner is mmengine's: by that, by mmdet's tools, and here.
KNOWN_SETTINGS = (
    *(name for name in inspect.signature(Runner).parameters if name != 'cfg'),
    *('activation_checkpointing', 'compile', 'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg'),
    *('runner_type', 'strategy', 'sync_bn', 'tta_model', 'tta_pipeline'),
    *('allow_non_finite', 'allow_outside', 'check_data'),
)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/<name of the config>)')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the config: model.backbone.arch=l, a.b="[1,2]", a.b="[(1,2),(3,4)]"',
    )


def positive(text: str) -> int:
    """As the ``type`` of an argument: a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is below 1')
    return value


def probability(text: str) -> float:
    """As the ``type`` of an argument: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text} does not lie in [0, 1]')
    return value


def present_device(text: str) -> str:
    """As the ``type`` of an argument that names a device."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        # torch built without CUDA asserts.
        raise argparse.ArgumentTypeError(f'{text}: {str(error).splitlines()[0]}') from None
    return text


def file_to_write(text: str) -> Path:
    """As the ``type`` of an argument: a file that can be written, so that hours of work do not end in an error."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{text} is a folder, where a file is to be written')
    folder_to_write(path.parent)
    return path


def folder_to_write(text: str | Path) -> Path:
    """As the ``type`` of an argument: a folder that files can be written into, or that can be made."""
    if fault := _why_not_writable(Path(text)):
        raise argparse.ArgumentTypeError(f'{text} cannot be written into: {fault}')
    return Path(text)


class ConfigError(ValueError):
    """A config file cannot be read; the message is complete."""


def config_from_file(path: str | Path) -> Config:
    """
    Raises:
        ConfigError: it, one that it inherits from, or a file that they read is not there, or it fails.
    """
    if not Path(path).is_file():
        raise ConfigError(f'no config file {path}')
    try:
        return Config.fromfile(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f'{path}, or a config that it inherits from, has a _base_, or reads a file, that is missing: {error}'
        ) from error
    except Exception as error:  # a config is a program
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = '' if isinstance(error, SyntaxError) else f' ({last.filename}, line {last.lineno})'
        raise ConfigError(
            f'{path}, or a config that it inherits from, cannot be read: {type(error).__name__}: {error}{place}'
        ) from error


def read_config(path: str | Path, options: Mapping[str, object]) -> Config:
    """Config file with the overrides ``--cfg-options``; where these do not do, the program ends saying so."""
    suffixes = ('.py', '.yml', '.yaml', '.json')
    if Path(path).is_file() and Path(path).suffix not in suffixes:
        sys.exit(
            f'{path} is no config, whose name ends in {", ".join(suffixes)}. The config stands before the checkpoint'
        )
    try:
        cfg = config_from_file(path)
    except ConfigError as error:
        sys.exit(str(error))
    _check_keys(cfg, options)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:
        sys.exit(f'--cfg-options {textwrap.shorten(" ".join(options), 150)}: {error.args[0]}')
    return cfg


def one_or_more(setting: object) -> list:
    """The parts of a setting that may be one, or several in a list or tuple, or missing."""
    return [*setting] if isinstance(setting, (list, tuple)) else [setting] if setting else []


def load_config(args: argparse.Namespace) -> Config:
    """``read_config`` for tools that run a Runner."""
    _check_launcher(args.launcher)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir or cfg.get('work_dir') is None:
        cfg.work_dir = args.work_dir or str(Path('work_dirs') / Path(args.config).stem)
    _check_work_dir(cfg.work_dir)
    if cfg.launcher != 'none' and cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout') is None:
        cfg.merge_from_dict({'env_cfg.dist_cfg.timeout': TIMEOUT})
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        _distribute_on_cpu(cfg)
    check_temporary_folder(cfg, 'train', 'val', 'test')
    return cfg


def _check_work_dir(folder: str) -> None:
    if fault := _why_not_writable(Path(folder)):
        sys.exit(f'{Path(folder).absolute()} cannot be the work dir: {fault}. --work-dir names another')


def _why_not_writable(folder: Path) -> str | None:
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        return None
    return f'{there} {"may not be written to" if there.is_dir() else "is no folder"}'


def _check_launcher(launcher: str) -> None:
    set_by = dict(pytorch=('RANK', 'torchrun'), slurm=('SLURM_PROCID', 'srun'), mpi=('OMPI_COMM_WORLD_RANK', 'mpirun'))
    variable, command = set_by.get(launcher, (None, None))
    if variable and variable not in os.environ:
        sys.exit(
            f'--launcher {launcher}: {variable} is not set, as {command} does for the processes that it starts. '
            'tools/dist_train.sh and tools/dist_test.sh begin with torchrun, slurm_train.sh with srun'
        )


def check_temporary_folder(cfg: Config, *splits: str) -> None:
    """Where the name of a socket is too long for the system, the workers of a loader end, and all wait for ever."""
    folder = tempfile.gettempdir()
    has_workers = any((cfg.get(f'{split}_dataloader') or {}).get('num_workers') for split in splits)
    by_sockets = torch.multiprocessing.get_sharing_strategy() == 'file_descriptor'
    if has_workers and by_sockets and len(os.fsencode(folder)) > LONGEST_TEMPORARY_FOLDER:
        sys.exit(
            f'{folder}, the folder of temporary files, has {len(os.fsencode(folder))} characters in its name. Workers '
            f'that load data make sockets in it, for whose names the system has room up to {LONGEST_TEMPORARY_FOLDER}. '
            'Set TMPDIR to a shorter one, such as /tmp'
        )


def _check_keys(cfg: Config, options: Mapping[str, object]) -> None:
    """A misspelt argument of a part fails when that is built; nobody would ask for one of the config itself."""
    if 'runner_type' in {*cfg, *options}:
        return  # it may read others
    known = sorted({*cfg, *KNOWN_SETTINGS})
    for key in options:
        top = key.partition('.')[0]
        if top not in known:
            sys.exit(
                f'--cfg-options {key}: the config has no {quoted(top)}{suggestion(top, known)}, and nothing reads one. '
                'Where code of yours does, give it a value in the config first'
            )


def make_resumable(cfg: Config) -> None:
    """SafeCheckpointHook in place of mmengine's CheckpointHook, and ExactResumeHook, where the config has neither."""
    # Without one, mmengine takes a CheckpointHook after every epoch.
    cfg.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1)) | (cfg.get('default_hooks') or {})
    checkpoint = cfg.default_hooks.checkpoint
    if checkpoint and checkpoint.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
        checkpoint.type = 'mmdet.SafeCheckpointHook'
    _add_hook(cfg, ExactResumeHook)


def stop_at_non_finite(cfg: Config) -> None:
    """NonFiniteHook, where the config has none and does not say ``allow_non_finite=True``."""
    if not cfg.get('allow_non_finite', False):
        _add_hook(cfg, NonFiniteHook)


def _add_hook(cfg: Config, kind: type) -> None:
    hooks = cfg.get('custom_hooks') or []
    if not any(_is_a(hook, kind) for hook in hooks):
        # A config may have another default scope, or none.
        cfg.custom_hooks = [*hooks, dict(type=f'mmdet.{kind.__name__}')]


def _is_a(hook: object, kind: type) -> bool:
    return isinstance(hook, dict) and hook.get('type') in (kind, kind.__name__, f'mmdet.{kind.__name__}')


def build_runner(cfg: Config, *splits: str) -> Runner:
    """The Runner of a config; the data that the detectors of these splits (train, val, test) read are checked first.

    DataCheckHook is added, where the config has none; with ``check_data=False`` it is left out.
    """
    _leave_out_tensorboard_where_missing(cfg)
    if cfg.get('check_data', True):
        _add_hook(cfg, DataCheckHook)
    elif cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not _is_a(hook, DataCheckHook)]
    for split in splits:
        if cfg.get(f'{split}_dataloader'):
            evaluators = one_or_more(cfg.get(f'{split}_evaluator'))
            guard_detection_data(cfg[f'{split}_dataloader'], evaluators, cfg.get('allow_outside', False))
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _leave_out_tensorboard_where_missing(cfg: Config) -> None:
    visualizer = cfg.get('visualizer') or {}
    backends = one_or_more(visualizer.get('vis_backends'))
    kept = [one for one in backends if type_name(one) != 'TensorboardVisBackend']
    if len(kept) < len(backends) and importlib.util.find_spec('tensorboard') is None:
        visualizer.vis_backends = kept
        message = 'TensorBoard is not installed: no event files are written. pip install tensorboard brings it'
        print_log(message, 'current', logging.WARNING)


@contextmanager
def exit_on_known_faults() -> Iterator[None]:
    """A fault of data, checkpoints or losses ends the program with its message alone, and exit status 1.

    So does a visualization backend whose package is not installed, a full disk, and, where gloo tells, another process
    that is gone or stands still. NCCL's watchdog writes a message of its own. Ctrl-C of which the log has told ends the
    program without a traceback. Processes that end together, done or stopped by a signal, leave their group at exit.
    """
    try:
        yield
        atexit.register(_leave_process_group)
    except SystemExit:
        atexit.register(_leave_process_group)
        raise
    except KeyboardInterrupt as stop:
        if stop.args:
            sys.excepthook = lambda *_: None
            atexit.register(_leave_process_group)
        raise
    except RuntimeError as error:
        if 'gloo/transport' not in str(error):
            raise
        rank, number = torch.distributed.get_rank(), torch.distributed.get_world_size()
        message = (
            f'Process {rank} of {number} ends, because another one has ended, or has not answered for as many seconds '
            f'as env_cfg.dist_cfg.timeout says. That one may have told why; --resume goes on from the last checkpoint. '
            f'gloo: {error}'
        )
        print_log(message, 'current', logging.ERROR)
        # What is left of a broken group may abort the process on its way out.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(1)
    except Exception as error:
        if not _is_known(error):
            raise
        print_log(message_of(error), 'current', logging.ERROR)
        sys.exit(1)


def _is_known(error: Exception) -> bool:
    if isinstance(error, (AnnotationError, CheckpointError, NonFiniteError, NothingToMeasureError)):
        return True
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # mmengine's backends say which package to install; other imports fail because of a defect.
    return isinstance(error, ImportError) and 'pip install' in str(error)


def _leave_process_group() -> None:
    """Ends gloo's threads, which let go of tensors late, and abort a process whose interpreter is on its way out.

    The group ends with the last model that is wrapped for it. Not for processes that fail: one that waits for another
    would wait here. https://github.com/pytorch/pytorch/issues/190489
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def _distribute_on_cpu(cfg: Config) -> None:
    """mmengine binds every process to a GPU when it starts the group and when it wraps the model; here, neither."""
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=cfg.env_cfg.dist_cfg.timeout))
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )
    if torch.distributed.get_rank() == 0:
        print_log(
            f'No GPU here: {torch.distributed.get_world_size()} processes on the CPU, backend gloo', logger='current'
        )
