"""Checkpoints that no kill, full disk or scheduler leaves half written."""

import errno
import inspect
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, broadcast, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint import check_start, newest_intact
from ..datasets.label_index import suggestion
from .exact_resume_hook import ExactResumeHook

# What schedulers send, and Ctrl-C.
STOPPING = (signal.SIGTERM, signal.SIGINT)
# Seconds in which one Ctrl-C may arrive several times, by way of a launcher.
ONE_INTERRUPT = 1.0


@register_backend('atomic_local')
class AtomicLocalBackend(LocalBackend):
    """Files become visible when they are complete: written beside as ``.NAME.partial``, synced, renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        target = Path(os.path.realpath(filepath))
        beside = target.with_name(f'.{target.name}.partial')
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise OSError(
                error.errno,
                f'{error.strerror}: {target} ({len(obj) / 1e6:.1f} MB) was not written. Earlier checkpoints are as '
                'they were; make room and go on from them with --resume',
            ) from error
        _sync_folder(target.parent)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folder
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Of file systems that sync files alone, as some of networks do.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with the same arguments, whose checkpoints survive what stops a run.

    A file appears under its name when it is complete, the marker ``last_checkpoint`` too, and older ones go after that,
    so there must be room for one more than ``max_keep_ckpts``. All this is for local folders.

    ``resume`` without ``load_from`` goes on from the checkpoint that ``last_checkpoint`` names or, where that is
    missing, truncated or damaged, from the newest intact one, with a warning that names them. A validation that was due
    with it and did not come to its end is made up for.

    SIGTERM or Ctrl-C to any process ends the run after its current step: a checkpoint is saved, and all processes exit,
    with status 143, or by a KeyboardInterrupt. Within an epoch that takes an ExactResumeHook, with which training goes
    on there; without one it goes on from the last epoch's. A validation is broken off where the state before it is
    saved; several processes finish it. More signals, as launchers send them, change nothing, except that a second
    Ctrl-C stops a single process at once.

    A validation of several processes measures what is saved: BN's running statistics are the first process's.

    Raises:
        CheckpointError: Before a resumed run starts, no checkpoint is intact, or the one found is of another model.
        OSError: A checkpoint cannot be written; no other was touched.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # mmengine hands what it does not know on to save_checkpoint, after an epoch.
        of_saving = inspect.signature(Runner.save_checkpoint).parameters.keys()
        if unknown := sorted(self.args.keys() - of_saving):
            known = of_saving | inspect.signature(CheckpointHook).parameters.keys()
            raise TypeError(f'{unknown[0]} is no argument of {type(self).__name__}{suggestion(unknown[0], known)}')
        self.training = False
        self.signal = 0
        self.interrupted_at = None
        self.saved_iter = None
        self.interrupted = None
        self.handlers = {}

    # ------------------------------------------------------------------------------------------------------ resuming

    def before_run(self, runner) -> None:
        if runner._resume and runner._load_from is None:
            folder = self.out_dir or runner.work_dir
            if folder != runner.work_dir:
                folder = os.path.join(folder, os.path.basename(runner.work_dir.rstrip(os.sep)))
            patterns = {re.sub(r'\{.*?\}', '*', self.filename_tmpl), 'iter_*.pth'}
            runner._load_from = newest_intact(runner.work_dir, folder, patterns)
            if runner._load_from:
                check_start(runner.model, runner._load_from, resume=True)

    def before_train(self, runner) -> None:
        self.training = True
        if self.backend_args is None and self.file_client_args is None:
            if type(get_file_backend(self.out_dir or runner.work_dir)) is LocalBackend:
                self.backend_args = dict(backend='atomic_local')
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            for left_over in Path(self.out_dir).glob('.*.partial'):
                left_over.unlink()
        resumed = Path(runner._load_from) if runner._resume and runner._load_from else None
        interruption = runner.message_hub.runtime_info.get('interruption')
        if resumed and resumed == Path(self.out_dir, interruption or ''):
            self.interrupted = resumed
        if is_main_process() and not _validated(runner):
            Path(runner.work_dir, 'last_validation').unlink(missing_ok=True)
        if resumed:
            self.saved_iter = runner.iter
            self.last_ckpt = str(resumed)  # or a new best of the validation below would not be noted in a checkpoint
        self._watch_signals(runner)
        if resumed and self._validation_was_missed(runner):
            runner.logger.info(f'The validation after iteration {runner.iter} did not come to its end; here it is')
            runner.val_loop.run()

    def _validation_was_missed(self, runner) -> bool:
        loop = runner.train_loop
        exact = _exact_resume_hook(runner)
        if runner.val_loop is None or (exact is not None and exact.position is not None):
            return False
        step, end = (loop.epoch, loop.max_epochs) if _has_epochs(loop) else (loop.iter, loop.max_iters)
        loop._decide_current_val_interval()
        due = step >= loop.val_begin and (step % loop.val_interval == 0 or step == end)
        return due and not _validated(runner)

    # -------------------------------------------------------------------------------------------------------- saving

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict, name: str | None = None) -> None:
        outdated = []
        if name is not None:
            runner.message_hub.update_info('interruption', name)
        else:
            name = self.filename_tmpl.format(step)
            if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
                kept = [*self.keep_ckpt_ids, step]
                outdated = [self.filename_tmpl.format(old) for old in kept[: -self.max_keep_ckpts]]
                self.keep_ckpt_ids = deque(kept[-self.max_keep_ckpts :])
                runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self.saved_iter = meta['iter']
        if is_main_process():
            AtomicLocalBackend().put_text(self.last_ckpt, Path(runner.work_dir, 'last_checkpoint'))
            self._remove(self.file_backend.join_path(self.out_dir, old) for old in outdated)
            if self.interrupted and str(self.interrupted) != self.last_ckpt:
                self._remove([str(self.interrupted)])
                self.interrupted = None

    def _remove(self, paths) -> None:
        for path in paths:
            if path and self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        if not self.save_best:
            return
        # Without the previous paths, mmengine does not remove what they name before it saves what takes their place.
        several = len(self.key_indicators) > 1
        previous = dict(self.best_ckpt_path_dict) if several else {None: self.best_ckpt_path}
        if several:
            self.best_ckpt_path_dict = dict.fromkeys(previous)
        else:
            self.best_ckpt_path = None
        super()._save_best_checkpoint(runner, metrics)
        best = self.best_ckpt_path_dict if several else {None: self.best_ckpt_path}
        if is_main_process():
            # Of another run, from which this one goes on, the best stays.
            self._remove(
                path
                for key, path in previous.items()
                if path and best[key] not in (None, path) and Path(path).parent == Path(self.out_dir)
            )
        best = {key: path or previous[key] for key, path in best.items()}
        if several:
            self.best_ckpt_path_dict = best
        else:
            self.best_ckpt_path = best[None]

    # ------------------------------------------------------------------------------------------------------- signals

    def _watch_signals(self, runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.signal, self.interrupted_at = 0, None
        for number in STOPPING:
            # Of a training that ended with an error.
            if owner := _owner(number):
                owner._unwatch_signals()
            # In the background of a shell Ctrl-C is ignored.
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self.handlers[number] = signal.signal(number, self._stop)
        loaders = [runner.train_dataloader] + ([] if runner.val_loop is None else [runner.val_dataloader])
        for loader in loaders:
            loader.worker_init_fn = partial(_heed_parent_alone, loader.worker_init_fn)
            if loader.num_workers and hasattr(signal, 'sigwaitinfo'):
                loader.multiprocessing_context = _StartingUndisturbed(loader.multiprocessing_context)

    def _unwatch_signals(self) -> None:
        for number, handler in self.handlers.items():
            if handler is not None:  # not one of Python's
                signal.signal(number, handler)
        self.handlers = {}

    def _stop(self, number: int, _) -> None:
        self.signal = number
        if number != signal.SIGINT or get_world_size() > 1:
            return
        if self.interrupted_at is None:
            self.interrupted_at = time.monotonic()
            # What is being logged at this moment must not be broken into, and the reader of a pipe may be gone.
            with suppress(OSError):
                os.write(2, b'\nStopping as soon as --resume can go on from there. Ctrl-C once more stops at once\n')
        elif time.monotonic() - self.interrupted_at > ONE_INTERRUPT:
            self._unwatch_signals()
            raise KeyboardInterrupt

    def _stopping(self, runner) -> bool:
        """Whether any process has got a signal and the step is whole; to be asked in all of them at the same step."""
        if _accumulates(runner.optim_wrapper):
            return False
        if get_world_size() > 1:
            flag = torch.tensor(float(self.signal))
            all_reduce(flag, 'max')
            if not flag:
                return False
            self.signal = int(flag)
        return bool(self.signal)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        loop = runner.train_loop
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        at_end = batch_idx + 1 == len(loop.dataloader) if _has_epochs(loop) else runner.iter + 1 == loop.max_iters
        if at_end or not self._stopping(runner):
            return
        meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
        if self.saved_iter != meta['iter'] and (_exact_resume_hook(runner) is not None or not _has_epochs(loop)):
            self._save_checkpoint_with_step(runner, meta['iter'], meta, f'iter_{meta["iter"]}.pth')
        self._exit(runner)

    def after_train_epoch(self, runner) -> None:
        super().after_train_epoch(runner)
        if _has_epochs(runner.train_loop) and self._stopping(runner):
            if self.saved_iter != runner.iter:
                meta = dict(epoch=runner.epoch + 1, iter=runner.iter)
                self._save_checkpoint_with_step(runner, meta['epoch'], meta, f'iter_{meta["iter"]}.pth')
            self._exit(runner)

    def before_val_epoch(self, runner) -> None:
        super().before_val_epoch(runner)
        if self.training:
            share_statistics(runner.model)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        # Several processes may have different numbers of batches here, and could not agree.
        if get_world_size() == 1 and self.saved_iter == runner.iter and self._stopping(runner):
            self._exit(runner)

    def after_val_epoch(self, runner, metrics: dict) -> None:
        super().after_val_epoch(runner, metrics)
        if not self.training:
            return
        if is_main_process():
            AtomicLocalBackend().put_text(str(runner.iter), Path(runner.work_dir, 'last_validation'))
        if self._stopping(runner) and self.saved_iter == runner.iter:
            self._exit(runner)

    def _exit(self, runner) -> None:
        saved = f'{self.last_ckpt} is saved' if self.last_ckpt else 'no checkpoint is saved yet'
        name, status = signal.Signals(self.signal).name, 128 + self.signal
        runner.logger.warning(f'{name}: {saved}; --resume goes on. Exit status {status}')
        runner.call_hook('after_run')
        self._unwatch_signals()
        if self.signal == signal.SIGINT:
            # A program that dies of it ends the loop of a shell, too, which a status alone does not.
            raise KeyboardInterrupt(f'{saved}; --resume goes on')
        sys.exit(status)

    def after_train(self, runner) -> None:
        super().after_train(runner)
        self.training = False
        self._unwatch_signals()


def share_statistics(model: nn.Module) -> None:
    """Gives all processes BN's running statistics of the first, which saves them; each has those of its own data."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            broadcast(module.running_mean)
            broadcast(module.running_var)


def _exact_resume_hook(runner) -> ExactResumeHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, ExactResumeHook)), None)


def _validated(runner) -> bool:
    """Whether the last validation that came to its end was after this iteration."""
    marker = Path(runner.work_dir, 'last_validation')
    return marker.is_file() and marker.read_text() == str(runner.iter)


def _has_epochs(loop) -> bool:
    return isinstance(loop, EpochBasedTrainLoop)


def _accumulates(optim_wrapper) -> bool:
    """Whether gradients wait for more batches before the optimizer steps; a checkpoint does not hold them."""
    return any(one._inner_count % one._accumulative_counts for one in optim_wrappers(optim_wrapper))


def optim_wrappers(optim_wrapper: OptimWrapper | OptimWrapperDict) -> list[OptimWrapper]:
    return list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]


# ------------------------------------------------------------------------------------------- processes that are forked
# By a metric, say: a pool ends its own by SIGTERM and waits for them, and Ctrl-C comes to all of them. They get back
# what SIGTERM does by default, and leave Ctrl-C to the parent. A handler of Python's would be too late in them: it does
# not see a signal just before a wait. Nor would one be seen that comes before all is set, hence the masks.

_forking = threading.local()


def _owner(number: int) -> SafeCheckpointHook | None:
    """The hook that handles this signal."""
    owner = getattr(signal.getsignal(number), '__self__', None)
    return owner if isinstance(owner, SafeCheckpointHook) else None


def _before_fork() -> None:
    if any(map(_owner, STOPPING)):
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def _after_fork() -> None:
    mask = vars(_forking).pop('mask', None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    for number in filter(_owner, STOPPING):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    _after_fork()


if hasattr(os, 'register_at_fork'):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


class _StartingUndisturbed(multiprocessing.context.BaseContext):
    """Starts processes as another context does, with the signals blocked until these have set what to do about them."""

    def __init__(self, context: multiprocessing.context.BaseContext | None) -> None:
        self.context = multiprocessing.get_context() if context is None else context

    def get_context(self, method: str | None = None) -> multiprocessing.context.BaseContext:
        return self.context.get_context(method)

    def Process(self, *args, **kwargs) -> multiprocessing.process.BaseProcess:
        process = self.context.Process(*args, **kwargs)

        def start() -> None:
            del process.start  # a new interpreter would be sent it
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        process.start = start
        return process


def _heed_parent_alone(worker_init_fn, worker_id: int) -> None:
    """Schedulers and terminals send signals to the worker processes, too, which the last batches still need."""
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        threading.Thread(target=_wait_for_parent, daemon=True).start()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
