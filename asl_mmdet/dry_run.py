"""A dry run of a config, ``tools/train.py --check``: all of it is built and tried in a few steps, nothing is kept."""

import contextlib
import difflib
import logging
import math
import os.path as osp
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import mmdet.registry
import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, VISUALIZERS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .checkpoint import CheckpointError, check_start, has_begun
from .command_line import KNOWN_SETTINGS, build_runner, one_or_more
from .datasets import AnnotationError, MultiLabelDataset
from .datasets.coco import read_coco_json
from .datasets.detection import leaf_configs, type_name
from .datasets.index_cache import cache_file
from .datasets.label_index import message_of, suggestion
from .evaluation.multi_label_metric import NothingToMeasureError
from .hooks import DataCheckHook, NonFiniteHook, RawAndEMAHook
from .hooks.data_check_hook import check_no_overlap, check_num_classes, leaf_datasets, name_pictures
from .hooks.non_finite_hook import data_samples, image_paths
from .hooks.safe_checkpoint_hook import optim_wrappers
from .models import AsymmetricLoss, ImageClassifier

# Steps are timed behind the first, until there are so many or they have taken so many seconds.
TIMED_STEPS = 6
TIMED_SECONDS = 15
LOCAL_BACKENDS = ('LocalVisBackend', 'TensorboardVisBackend')


class DryRunError(Exception):
    """The config cannot be trained; the message says in one line what was being done, and why it failed."""


def dry_run(cfg: Config) -> list[str]:
    """Builds data, model, optimizer, schedule, hooks and evaluators by the Runner, trains a few steps of the first
    epoch, evaluates one batch, and reads one of the test split. It writes to a temporary folder alone.

    Returns:
        Lines of the report; the last ones are what is suspicious.

    Raises:
        DryRunError: something of it fails, or a loss is not finite.
    """
    work_dir, cfg = cfg.work_dir, Config(cfg.to_dict())
    # Loaders and pycocotools print; the report alone is to be on stdout.
    with (
        tempfile.TemporaryDirectory(prefix='asl_mmdet-check-') as folder,
        contextlib.redirect_stdout(sys.stderr),
        contextlib.ExitStack() as before_folder_goes,
    ):
        not_started = _leave_no_traces(cfg, folder)
        before_folder_goes.callback(_close_log, folder)
        before_folder_goes.callback(_close_visualizer, cfg)
        with _doing('building the model, hooks and logger'):
            if not cfg.get('train_cfg') or not cfg.get('train_dataloader'):
                raise DryRunError('the config has no train_cfg or train_dataloader: there is nothing to train')
            runner = build_runner(cfg, 'train', 'val', 'test')
        with _doing('loading weights'):
            if cfg.get('load_from'):
                check_start(runner.model, cfg.load_from, cfg.get('resume'))
        has_data_check = any(isinstance(hook, DataCheckHook) for hook in runner.hooks)
        watched = _watched_metrics(runner)
        # What would write checkpoints and batches, and the second would name a file that is gone.
        runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, (CheckpointHook, NonFiniteHook))]
        loops = {}
        for split in ('train', 'val', 'test'):
            if split == 'test' and cfg.get('test_dataloader') and cfg.test_dataloader == cfg.get('val_dataloader'):
                with _doing('building the test metrics'):
                    runner.build_evaluator(cfg.test_evaluator)
                continue
            with _doing(f'building the {split} data'):
                loops[split] = getattr(runner, f'{split}_loop')
            if loops[split] is not None:
                name_pictures(loops[split].dataloader.dataset)
        trained = _train(runner)
        evaluated = _Batches(runner)
        if loops['val'] is not None:
            _evaluate(runner, evaluated)
        tested = _Batches(runner)
        if loops.get('test') is not None:
            with _doing('reading a batch of the test data'):
                runner.model.data_preprocessor(next(iter(loops['test'].dataloader)), False)

        seen = dict(train=trained.batches, val=evaluated, test=tested)
        lines = []
        for split, loop in loops.items():
            if loop is not None:
                lines += _describe_data(split, loop.dataloader, seen[split])
        if 'test' not in loops:
            lines.append('test        the same as val')
        lines += [
            *_describe_model(runner, trained),
            *_describe_evaluation(evaluated),
            *_describe_cost(loops, trained, evaluated),
        ]
        pictures = {split: _pictures(loop.dataloader.dataset) for split, loop in loops.items() if loop is not None}
        suspicious = [
            *_suspicious_settings(cfg),
            *_suspicious_data(loops, pictures, runner.model, has_data_check),
            *_suspicious_training(cfg, runner, trained),
            *_suspicious_metrics(watched, evaluated.metrics),
            *_suspicious_sizes(trained.model, seen),
            *_wrong_sizes(pictures, seen),
        ]
        if has_begun(work_dir):
            suspicious.append(f'{work_dir} holds checkpoints: training begins anew and replaces them; --resume goes on')
        if not_started:
            lines.append(f'not started {", ".join(not_started)}: they would write elsewhere')
    return lines + [f'suspicious  {one}' for one in suspicious]


def _leave_no_traces(cfg: Config, folder: str) -> list[str]:
    """Everything goes to ``folder``; returns the visualization backends that are taken out."""
    # mmengine warns of every frozen parameter.
    cfg.work_dir, cfg.log_level, cfg.resume = folder, 'ERROR', False
    cfg.experiment_name = f'check_{time.time_ns()}'
    backends = one_or_more((cfg.get('visualizer') or {}).get('vis_backends'))
    kept = [backend for backend in backends if type_name(backend) in LOCAL_BACKENDS]
    if cfg.get('visualizer'):
        # Of one name there is one visualizer in a process, with the folder that it was made for.
        cfg.visualizer.name = cfg.experiment_name
    if backends:
        cfg.visualizer.vis_backends = [{key: value for key, value in one.items() if key != 'save_dir'} for one in kept]
    for split in ('train', 'val', 'test'):
        for evaluator in one_or_more(cfg.get(f'{split}_evaluator')):
            if evaluator.get('outfile_prefix'):
                evaluator.outfile_prefix = osp.join(folder, split)
        if cfg.get(f'{split}_dataloader'):
            # Worker processes that end with the program leave their sockets behind.
            cfg[f'{split}_dataloader'].persistent_workers = False
            for dataset in leaf_configs(cfg[f'{split}_dataloader'].dataset):
                kind = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
                path = osp.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
                if kind and issubclass(kind, MultiLabelDataset) and dataset.get('cache', True) is True:
                    dataset.cache = folder
                    if osp.isfile(beside := cache_file(path, True)):
                        shutil.copy(beside, cache_file(path, folder))
    return [str(backend.get('type')) for backend in backends if backend not in kept]


def _close_visualizer(cfg: Config) -> None:
    """Ends TensorBoard's thread, which would write into a folder that is being removed."""
    # It outlives a Runner whose construction failed, and is found by its name alone.
    kind = cfg.visualizer.type if cfg.get('visualizer') else Visualizer
    kind = VISUALIZERS.get(kind) if isinstance(kind, str) else kind
    if kind and kind.check_instance_created(cfg.experiment_name):
        kind.get_instance(cfg.experiment_name).close()


def _close_log(folder: str) -> None:
    """Windows removes no file that is open; mmengine writes to what its loggers have."""
    logger = MMLogger.get_current_instance()
    for handler in [*logger.handlers]:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).is_relative_to(osp.abspath(folder)):
            logger.removeHandler(handler)
            handler.close()


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    """Any error becomes a DryRunError."""
    try:
        yield
    except DryRunError:
        raise
    except (AnnotationError, CheckpointError) as error:
        raise DryRunError(f'{what}: {message_of(error)}') from error
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ['no message']
        # The last line of what a worker process sends is the error.
        message = lines[-1] if 'Traceback (most recent call last)' in str(error) else ' '.join(lines)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f'{Path(frame.filename).parent.name}/{Path(frame.filename).name}, line {frame.lineno}'
        hint = _registered_name_like(message)
        raise DryRunError(f'{what}: {type(error).__name__}: {message[:1000]}{hint} ({place})') from error


def _registered_name_like(message: str) -> str:
    """A suggestion for the name that mmengine's message says no registry has."""
    unknown = re.search(r'(\w+) is not in the \S+ registry', message)
    if unknown is None:
        return ''
    registries = [one for one in vars(mmdet.registry).values() if isinstance(one, Registry)]
    owners = [owner for one in registries for owner in (one, one.parent) if owner is not None]
    return suggestion(unknown[1], sorted({name for owner in owners for name in owner.module_dict}))


# ---------------------------------------------------------------------------------------------------------- what is run


class _Batches:
    """What the data preprocessor gives the model: the first batch from now on."""

    def __init__(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.inputs: list[str] = []
        self.labels: list[list[int]] | None = None
        self.images = 0
        self.sizes: set[tuple[int, ...]] = set()  # (H, W) before they were padded to one
        self.read: dict[str, tuple[int, int]] = {}  # (H, W) of each picture as loaded, by its path
        self.seconds = math.nan
        self.metrics: dict[str, float] = {}
        self._handle = model.data_preprocessor.register_forward_hook(self._see)

    def _see(self, module: nn.Module, args: tuple, output: object) -> None:
        self._handle.remove()
        for tensor in _tensors(output.get('inputs') if isinstance(output, dict) else output):
            kind = str(tensor.dtype).removeprefix('torch.')
            self.inputs.append(f'{tuple(tensor.shape)} {kind} in [{tensor.min():.3g}, {tensor.max():.3g}]')
        samples = list(data_samples(output))
        self.images = len(samples)
        self.sizes = {tuple(sample.img_shape[:2]) for sample in samples if 'img_shape' in sample}
        self.read = {
            one.img_path: tuple(one.ori_shape[:2]) for one in samples if 'img_path' in one and 'ori_shape' in one
        }
        labels = [_labels(sample) for sample in samples]
        if labels and all(one is not None for one in labels):
            self.labels = [one.tolist() for one in labels]


def _tensors(value: object) -> Iterator[Tensor]:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _labels(sample: BaseDataElement) -> Tensor | None:
    """Positive classes of a classifier's image, or the class of each box of a detector's."""
    if sample.get('gt_label') is not None:
        return sample.gt_label
    return sample.gt_instances.labels if 'labels' in sample.get('gt_instances', {}) else None


class _Enough(Exception):
    pass


class _Watch(Hook):
    """Looks at the first steps of a training, and ends it behind the last."""

    def __init__(self, runner: Runner) -> None:
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.batches = _Batches(runner)
        self.began = self.ended = time.perf_counter()
        self.seconds: list[float] = []
        self.waited: list[float] = []
        self.losses: list[dict[str, float]] = []
        self.lr: list[float] = []
        self.initial_lr = math.nan
        self.optimized: set[nn.Parameter] = set()
        self.gradients: dict[str, bool] = {}  # of the first step, whether any number in it is not 0
        self.uncalled = {name for name, module in self.model.named_modules() if isinstance(module, AsymmetricLoss)}

    def before_train(self, runner) -> None:
        groups = [group for wrapper in optim_wrappers(runner.optim_wrapper) for group in wrapper.param_groups]
        self.lr = sorted({float(group['lr']) for group in groups})
        self.initial_lr = max(float(group.get('initial_lr', group['lr'])) for group in groups)
        self.optimized = {parameter for group in groups for parameter in group['params']}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(partial(self._see_gradient, name))
        for name in self.uncalled:
            self.model.get_submodule(name).register_forward_hook(partial(self._see_call, name))
        self.ended = time.perf_counter()

    def _see_gradient(self, name: str, gradient: Tensor) -> None:
        if not self.losses:
            self.gradients[name] = self.gradients.get(name, False) or bool(gradient.any())

    def _see_call(self, name: str, *_) -> None:
        self.uncalled.discard(name)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self.began = time.perf_counter()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        losses = {name: torch.as_tensor(value).item() for name, value in (outputs or {}).items() if 'loss' in name}
        wrong = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if wrong:
            name, value = next(iter(wrong.items()))
            images = ', '.join(image_paths(data_batch)) or 'the batch names none'
            raise DryRunError(f'step {len(self.losses) + 1}: {name} is {value}. Images: {images}')
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.losses.append(losses)
        self.waited.append(self.began - self.ended)
        self.seconds.append(time.perf_counter() - self.ended)
        self.ended = time.perf_counter()
        timed = self.seconds[1:]
        last = batch_idx + 1 == len(runner.train_dataloader)
        if last or len(timed) == TIMED_STEPS or sum(timed) > TIMED_SECONDS or self.seconds[0] > 2 * TIMED_SECONDS:
            raise _Enough


def _train(runner: Runner) -> _Watch:
    watch = _Watch(runner)
    runner.register_hook(watch, priority='LOWEST')
    try:
        with _doing('training'), contextlib.suppress(_Enough):
            runner.train()
    except DryRunError as error:
        # DataCheckHook looks at the data before the watch sees that training begins.
        if not watch.lr and not isinstance(error.__cause__, AnnotationError):
            message = str(error).removeprefix('training: ')
            raise DryRunError(f'building the optimizer and its schedule: {message}') from error
        raise
    return watch


def _evaluate(runner: Runner, seen: _Batches) -> None:
    """One batch through the hooks of an evaluation, the model and the metrics; what follows on it is left out."""
    loop = runner.val_loop
    with _doing('evaluating a batch'):
        batch = next(iter(loop.dataloader))
        runner.call_hook('before_val')
        runner.call_hook('before_val_epoch')
        runner.model.eval()
        began = time.perf_counter()
        loop.run_iter(0, batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seen.seconds = time.perf_counter() - began
        # All images of a batch may be without labels.
        with contextlib.suppress(NothingToMeasureError):
            seen.metrics = loop.evaluator.evaluate(len(loop.dataloader.dataset))


# --------------------------------------------------------------------------------------------------------- what is told


def _describe_data(split: str, loader: DataLoader, seen: _Batches) -> list[str]:
    classes = _classes(loader.dataset)
    lines = [
        f'{split:12}{len(loader.dataset):,} images in {len(loader):,} batches of '
        f'{_batch_size(loader) or "varying size"}, {loader.num_workers} workers'
        + (f'; {len(classes):,} classes' if classes else '')
    ]
    lines += [f'{"":12}{one}' for part in leaf_datasets(loader.dataset) for one in _filtered(part)]
    lines += [f'{"":12}inputs {one}' for one in seen.inputs]
    if seen.labels is not None:
        per_image = [len(labels) for labels in seen.labels]
        counts = Counter(label for labels in seen.labels for label in labels)
        names = [
            f'{classes[label] if classes and label < len(classes) else label} {count}'
            for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
        shown = ', '.join(names[:15]) + (f', and {len(names) - 15} more classes' if len(names) > 15 else '')
        lines.append(
            f'{"":12}positives in a batch {sum(per_image)}, {min(per_image)} to {max(per_image)} an image: '
            f'{shown or "none"}'
        )
    return lines


def _filtered(dataset: BaseDataset) -> list[str]:
    """How many images mmdet leaves out of a data set in COCO's format."""
    reads_coco = getattr(type(dataset), 'load_data_list', None) is CocoDataset.load_data_list
    filters = reads_coco and not dataset.test_mode and dataset.filter_cfg and dataset._indices is None
    if not filters or not osp.isfile(dataset.ann_file):
        return []
    total = len(read_coco_json(dataset.ann_file, ('images',))['images'])
    left_out = total - len(dataset)
    settings = ', '.join(f'{key}={value}' for key, value in dataset.filter_cfg.items())
    return [f'{left_out:,} of {total:,} images left out by filter_cfg=dict({settings})'] if left_out else []


def _describe_model(runner: Runner, trained: _Watch) -> list[str]:
    parameters = list(trained.model.parameters())
    sizes = [sum(one.numel() for one in parameters if one.requires_grad or not only) for only in (False, True)]
    wrappers = optim_wrappers(runner.optim_wrapper)
    optimizers = ', '.join(f'{type(wrapper.optimizer).__name__} in {type(wrapper).__name__}' for wrapper in wrappers)
    lr = ' to '.join(f'{value:.3g}' for value in sorted({trained.lr[0], trained.lr[-1]}))
    initial = f'{trained.initial_lr:.3g}'
    initial = f' (initially {initial})' if initial != f'{trained.lr[-1]:.3g}' else ''
    schedulers = runner.param_schedulers or []
    schedulers = schedulers.values() if isinstance(schedulers, dict) else [schedulers]
    schedule = ', '.join(type(one).__name__ for part in schedulers for one in part) or 'no schedule'
    first, last = trained.losses[0], trained.losses[-1]
    terms = ', '.join(f'{name} {value:.4g}' for name, value in first.items())
    return [
        f'{"model":12}{type(trained.model).__name__} on {next(iter(parameters)).device}: {sizes[0]:,} parameters, '
        f'{sizes[1]:,} of them trainable',
        f'{"optimizer":12}{optimizers}, lr {lr} at the first step{initial}, {schedule}',
        f'{"losses":12}{terms}'
        + (f'; after {len(trained.losses) - 1} steps loss {last["loss"]:.4g}' if 'loss' in last else ''),
    ]


def _describe_evaluation(evaluated: _Batches) -> list[str]:
    if math.isnan(evaluated.seconds):
        return [f'{"evaluation":12}none: the config has no val_cfg']
    names = list(evaluated.metrics)
    shown = ', '.join(names[:8]) + (' ...' if len(names) > 8 else '')
    return [
        f'{"evaluation":12}a batch of {evaluated.images} images gives {shown or "no metric: nothing was found in it"}'
    ]


def _describe_cost(loops: dict, trained: _Watch, evaluated: _Batches) -> list[str]:
    lines = [f'{"memory":12}{_peak_memory():.2f} GiB at most in this process']
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        lines[0] += (
            f', {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of the GPU '
            f'({torch.cuda.max_memory_reserved() / 2**30:.2f} reserved, of {total / 2**30:.1f})'
        )
    timed, waited = trained.seconds[1:] or trained.seconds, trained.waited[1:] or trained.waited
    step = float(np.median(timed))
    warm = f'median of {len(timed)} behind the first' if len(trained.seconds) > 1 else 'the first one alone, too long'
    lines.append(f'{"time":12}{step:.3f} s a step ({warm}), {float(np.median(waited)):.3f} s of it waiting for data')
    loop, epoch = loops['train'], ''
    if isinstance(loop, EpochBasedTrainLoop):
        epoch = f'{_duration(step * len(loop.dataloader))} an epoch, '
    total, evaluation = step * loop.max_iters, ''
    if loops['val'] is not None:
        interval = max(int(getattr(loop, 'val_interval', 1)), 1)
        length = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
        begin = max(int(getattr(loop, 'val_begin', 1)), 1)
        number = len([i for i in range(interval, length + 1, interval) if i >= begin])
        number += bool(isinstance(loop, EpochBasedTrainLoop) and length % interval)
        once = evaluated.seconds * len(loops['val'].dataloader)
        evaluation = f', {number} evaluations of {_duration(once)} each (from its first batch)'
        total += number * once
    lines.append(f'{"":12}{epoch}{loop.max_iters:,} steps{evaluation}: {_duration(total)} in all')
    return lines


def _suspicious_settings(cfg: Config) -> list[str]:
    if 'runner_type' in cfg:
        return []  # it may read others
    suspicious = []
    for key in cfg:
        # A config's own names, as test_pipeline is one in mmdet's, are for its other parts.
        of_its_own = key in KNOWN_SETTINGS or key.startswith('_') or 'pipeline' in key
        if not of_its_own and (meant := difflib.get_close_matches(key, KNOWN_SETTINGS, 1, 0.82)):
            suspicious.append(f'nothing reads {key!r} of the config: did you mean {meant[0]!r}?')
    return suspicious


def _suspicious_data(loops: dict, pictures: dict, model: nn.Module, has_data_check: bool) -> list[str]:
    suspicious = []
    for split, loop in loops.items():
        if loop is None:
            continue
        counts = _class_counts(loop.dataloader.dataset)
        classes = _classes(loop.dataloader.dataset)
        if counts is not None and split in ('train', 'val') and counts.any():
            empty = [classes[column] for column in np.flatnonzero(counts == 0)]
            if empty:
                shown = ', '.join(empty[:10]) + (f', and {len(empty) - 10} more' if len(empty) > 10 else '')
                suspicious.append(f'{split}: no image has {shown}')
        elif counts is not None and split != 'test':
            suspicious.append(f'{split}: no image has any label')
        if not has_data_check or split == 'test':
            with _suspected(suspicious):
                check_num_classes(model, loop.dataloader.dataset)
    parts = [one for one in leaf_datasets(loops['train'].dataloader.dataset) if isinstance(one, MultiLabelDataset)]
    if parts and all(part.statistics()['positive_negative_ratio'] == math.inf for part in parts):
        suspicious.append(
            'train: no class of any image counts as negative, so that the model learns to find all of them everywhere: '
            'list negatives, or let untagged classes count as such, with untagged_weight above 0'
        )
    if loops['val'] is not None:
        files = [
            {part.ann_file for part in leaf_datasets(loops[split].dataloader.dataset) if _is_of_detector(part)}
            for split in ('train', 'val')
        ]
        both = sorted(set.intersection(*files))
        suspicious += [f'train and val both read {path}' for path in both] or _shared_pictures(pictures)
    if not has_data_check and loops['val'] is not None:
        with _suspected(suspicious):
            check_no_overlap(loops['train'].dataloader.dataset, loops['val'].dataloader.dataset)
    return suspicious


def _shared_pictures(pictures: dict[str, dict]) -> list[str]:
    real = cache(osp.realpath)
    train, val = (
        {osp.join(real(osp.dirname(path)), osp.basename(path)) for path in pictures[split]}
        for split in ('train', 'val')
    )
    both = sorted(train & val)
    return [f'{len(both):,} of {len(val):,} images of val are also in train, such as {both[0]}'] if both else []


def _pictures(dataset: BaseDataset) -> dict[str, tuple[int, int]]:
    """Height and width by path, as the annotations of a detector have them."""
    infos = (
        part.get_data_info(i) for part in leaf_datasets(dataset) if _is_of_detector(part) for i in range(len(part))
    )
    return {info['img_path']: (info.get('height'), info.get('width')) for info in infos if 'img_path' in info}


def _is_of_detector(dataset: BaseDataset) -> bool:
    # Of a multi-label file, one split may be held out, and DataCheckHook compares the images.
    return bool(dataset.ann_file) and not isinstance(dataset, MultiLabelDataset)


@contextlib.contextmanager
def _suspected(suspicious: list[str]) -> Iterator[None]:
    try:
        yield
    except AnnotationError as error:
        suspicious.append(str(error))


def _suspicious_training(cfg: Config, runner: Runner, trained: _Watch) -> list[str]:
    suspicious = []
    named = dict(trained.model.named_parameters())
    trainable = [name for name, parameter in named.items() if parameter.requires_grad]
    unused = [name for name in trainable if name not in trained.gradients]
    if unused:
        suspicious.append(
            f'{len(unused)} of {len(trainable)} trainable parameters got no gradient: {_some(unused)}; with several '
            'processes that needs find_unused_parameters=True'
        )
    left_out = [name for name in trainable if named[name] not in trained.optimized]
    if left_out:
        suspicious.append(f'the optimizer does not have {len(left_out)} trainable parameters: {_some(left_out)}')
    for name in sorted(trained.uncalled):
        head = trained.model.get_submodule(name.rpartition('.')[0])
        later = getattr(head, 'initial_epoch', 0)
        suspicious.append(
            f'no step called {name}, an AsymmetricLoss: {type(head).__name__} '
            + (
                f'may call it later, after initial_epoch={later}, and then fail with targets that it does not take: '
                'leave this head the loss of its own config'
                if later
                else 'has a loss of its own'
            )
        )
    for name, module in trained.model.named_modules():
        if isinstance(module, AsymmetricLoss) and name.rpartition('.')[2] == 'initial_loss_cls':
            suspicious.append(
                f'{name}: AsymmetricLoss takes logits, and TOODHead gives it probabilities: leave this head the losses '
                'of its own config'
            )
        if isinstance(module, AsymmetricLoss) and module.warned_of_clipping:
            suspicious.append(
                f'{name}: all negatives of a batch have p <= clip={float(module.clip):g}, so that nothing is learnt of '
                'them; detectors want clip=0.0'
            )
    if trained.gradients and not any(trained.gradients.values()):
        suspicious.append('every gradient is 0: nothing is learnt from this batch')
    if not trained.initial_lr:
        suspicious.append('the learning rate is 0')
    elif not trained.lr[0]:
        suspicious.append('the learning rate of some parameters is 0 at the first step')
    required = {name: [p.requires_grad for p in child.parameters()] for name, child in trained.model.named_children()}
    frozen = [name for name, gradients in required.items() if gradients and not any(gradients)]
    if frozen:
        suspicious.append(f'wholly frozen: {", ".join(frozen)}')
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    batch = _batch_size(runner.train_dataloader)
    if base and batch:
        batch *= max(getattr(wrapper, '_accumulative_counts', 1) for wrapper in optim_wrappers(runner.optim_wrapper))
    if base and batch and base != batch and not cfg.auto_scale_lr.get('enable'):
        suspicious.append(
            f'the learning rate is meant for {base} images a step, and one process takes {batch}: train with '
            + (f'{base // batch} processes, or with --auto-scale-lr' if base % batch == 0 else '--auto-scale-lr')
        )
    return suspicious


def _watched_metrics(runner: Runner) -> list[tuple[str, str]]:
    """Settings of hooks that name a metric of the validation, with its name."""
    watched = []
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            names = [hook.save_best] if isinstance(hook.save_best, str) else hook.save_best or ()
            watched += [(f'save_best of {type(hook).__name__}', name) for name in names if name != 'auto']
        elif isinstance(hook, RawAndEMAHook) and hook.metric:
            watched.append((f'metric of {type(hook).__name__}', hook.metric))
    return watched


def _suspicious_metrics(watched: list[tuple[str, str]], metrics: dict[str, float]) -> list[str]:
    return [
        f'{setting} is {name!r}, none of the metrics of a batch{suggestion(name, [*metrics])}: {_some([*metrics])}. '
        'The run ends at its first validation where it stays so'
        for setting, name in watched
        if metrics and name.removeprefix('raw/').removeprefix('ema/') not in metrics
    ]


def _suspicious_sizes(model: nn.Module, seen: dict[str, _Batches]) -> list[str]:
    return [
        f'{split}: images of a batch have {len(batch.sizes)} sizes, so that scores depend on how they are padded to '
        'one: put a Resize to one size into the pipeline'
        for split, batch in seen.items()
        if isinstance(model, ImageClassifier) and len(batch.sizes) > 1
    ]


def _wrong_sizes(pictures: dict[str, dict], seen: dict[str, _Batches]) -> list[str]:
    suspicious = []
    for split, listed in pictures.items():
        read = seen[split].read
        wrong = {
            path: listed[path] for path, size in read.items() if listed.get(path) not in (None, (None, None), size)
        }
        if wrong:
            path, (height, width) = next(iter(wrong.items()))
            turned = ', the other way round, as EXIF data turn it' if read[path] == (width, height) else ''
            suspicious.append(
                f'{split}: {path} has {read[path][1]} x {read[path][0]} pixels{turned}, and width {width}, height '
                f'{height} in the annotations, which boxes are cut off by ({len(wrong)} of {len(read)} images)'
            )
    return suspicious


def _batch_size(loader: DataLoader) -> int | None:
    # With a batch sampler, as mmdet's, the loader itself has none.
    return getattr(loader.batch_sampler, 'batch_size', None)


def _classes(dataset) -> Sequence[str]:
    return (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()


def _class_counts(dataset) -> np.ndarray | None:
    """(C,) images of each class, or None where the data sets do not tell."""
    parts = leaf_datasets(dataset)
    classes = _classes(dataset)
    if not parts or not classes or any(len(_classes(part)) != len(classes) for part in parts):
        return None
    total = np.zeros(len(classes), dtype=np.int64)
    for part in parts:
        if isinstance(part, MultiLabelDataset):
            total += part.statistics()['positives']
            continue
        if type(part).get_cat_ids is BaseDataset.get_cat_ids:
            return None
        for i in range(len(part)):
            labels = np.unique(np.asarray(part.get_cat_ids(i), dtype=np.int64))
            total[labels[(0 <= labels) & (labels < len(classes))]] += 1
    return total


def _peak_memory() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == 'darwin' else 2**20)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 10 else f'{seconds:.1f} s'


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (' ...' if len(names) > 5 else '')
