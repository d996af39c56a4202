"""A resumed run equals one that was never interrupted, random numbers and places within an epoch included."""

import itertools
import random
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader, Dataset, get_worker_info

_DATA, _STEP = 0, 1


def seed_from(*numbers: int) -> None:
    """Seeds ``random``, numpy and torch, all devices in use, by what the numbers hash to; each must be 0 or more."""
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # For each kind of device not in use, torch.manual_seed notes the call stack, and looks at its files for that.
    torch.default_generator.manual_seed(int(words[2]))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(words[2]))
    elif get_device() not in ('cpu', 'cuda'):
        torch.manual_seed(int(words[2]))


class SeededBatches:
    """A data set's ``__getitems__``, by which torch's DataLoader reads a batch: each has random numbers of its own,
    whatever process reads it.

    A worker counts its batches, which torch deals out in turn. What it cannot know, the epoch and the batch that the
    epoch began with, lies in memory that the workers share, and that changes between epochs alone.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int) -> None:
        self.dataset = dataset
        self.seed = (_DATA, seed, rank)
        self.beginning = torch.zeros(3, dtype=torch.int64).share_memory_()  # how many so far, epoch, batch
        self.seen = 0
        self.count = 0

    def begin(self, epoch: int, batch: int) -> None:
        self.beginning.copy_(torch.tensor([self.beginning[0] + 1, epoch, batch]))

    def __call__(self, indices: Sequence[int]) -> list:
        beginning, epoch, batch = self.beginning.tolist()
        if beginning != self.seen:
            self.seen, self.count = beginning, 0
        worker = get_worker_info()
        batch += self.count if worker is None else worker.id + worker.num_workers * self.count
        self.count += 1
        seed_from(*self.seed, epoch, batch)
        if hasattr(type(self.dataset), '__getitems__'):
            return type(self.dataset).__getitems__(self.dataset, indices)
        return [self.dataset[index] for index in indices]


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a run's random numbers a function of its seed, and lets it go on within an epoch.

    Those of a step, dropout say, follow from seed, process and iteration, and those of a batch's augmentation from
    seed, process, epoch (or pass over the data) and the batch's place in it, so that neither the number of worker
    processes nor an interruption changes them. The order of the data comes back on resuming, also where the config has
    no seed.

    A checkpoint of SafeCheckpointHook that was saved within an epoch is continued there: the first epoch is the rest
    of that one, and its lines of the log count the batches of the rest. Where the batches have changed, by another
    batch size or number of processes, that epoch begins again, with a warning.

    In an IterBasedTrainLoop mmengine finds the place in the data, with ``InfiniteSampler`` and the default
    ``fast_forward_on_resume``.
    """

    # After DistSamplerSeedHook, which tells the sampler its epoch.
    priority = 'LOW'

    def __init__(self) -> None:
        self.position: tuple[int, int, int | None] | None = None  # batches done, of how many, of how many images
        self.sampler_seed = None
        self.batches = None
        self.first = 0
        self.whole = None

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            self.sampler_seed = checkpoint.get('sampler_seed')
            self.position = checkpoint.get('position_in_epoch')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['sampler_seed'] = self.sampler_seed
        checkpoint['position_in_epoch'] = self.position

    def before_train(self, runner) -> None:
        loader = runner.train_dataloader
        for sampler in _samplers(loader):
            if hasattr(sampler, 'seed'):
                if self.sampler_seed is None:
                    self.sampler_seed = sampler.seed
                sampler.seed = self.sampler_seed
        # mmengine's RepeatDataset and mmdet's MultiImageMixDataset are no Dataset; a list takes no attribute.
        if hasattr(loader.dataset, '__dict__'):
            self.batches = SeededBatches(loader.dataset, runner.seed, runner.rank)
            loader.dataset.__getitems__ = self.batches

    def before_train_epoch(self, runner) -> None:
        loop = runner.train_loop
        self.first = 0
        if isinstance(loop, IterBasedTrainLoop):
            self.first = _skipped(loop)
        elif self.position is not None:
            done, *batches = self.position
            length, size = batches
            if batches == _number_and_size(loop.dataloader):
                self.first, self.whole = done, loop.dataloader
                loop.dataloader = _rest(self.whole, done)
                print_log(f'Epoch {runner.epoch + 1} goes on after {done} of its {length} batches', 'current')
            else:
                runner.logger.warning(
                    f'The run was interrupted after {done} of {length} batches of epoch {runner.epoch + 1}, which now '
                    f'has {len(loop.dataloader)}, or batches of another size than {size}: the epoch begins again'
                )
        if self.batches is not None:
            self.batches.begin(runner.epoch, self.first)
        if isinstance(loop, IterBasedTrainLoop):
            for sampler in _samplers(loop.dataloader):
                if self.batches is not None and hasattr(sampler, 'set_epoch'):
                    sampler.set_epoch = partial(self._begin_pass, sampler)
            _forget_what_was_read(loop)

    def _begin_pass(self, sampler, epoch: int) -> None:
        """In place of ``sampler.set_epoch``, which is all that an IterBasedTrainLoop calls between two passes."""
        type(sampler).set_epoch(sampler, epoch)
        self.batches.begin(epoch, self.first)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        seed_from(_STEP, runner.seed, runner.rank, runner.iter)
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.position = self.first + batch_idx + 1, *_number_and_size(self.whole or runner.train_dataloader)

    def after_train_epoch(self, runner) -> None:
        self.position = None
        if self.whole is not None:
            runner.train_loop.dataloader, self.whole = self.whole, None


def _rest(loader: DataLoader, done: int) -> DataLoader:
    return DataLoader(
        loader.dataset,
        batch_sampler=list(itertools.islice(loader.batch_sampler, done, None)),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
    )


def _number_and_size(loader: DataLoader) -> list[int | None]:
    return [len(loader), getattr(loader.batch_sampler, 'batch_size', None)]


def _samplers(loader: DataLoader) -> list:
    return [loader.sampler, getattr(loader.batch_sampler, 'sampler', None)]


def _forget_what_was_read(loop: IterBasedTrainLoop) -> None:
    """mmengine 0.10.7 starts the workers, which read ahead, before a hook can tell them or the sampler a seed."""
    for sampler in _samplers(loop.dataloader):
        if isinstance(sampler, InfiniteSampler):
            sampler.indices = sampler._indices_of_rank()
    # Of mmdet's batch samplers. A bucket that is full already would never be given out.
    batch_sampler = loop.dataloader.batch_sampler
    for bucket in getattr(batch_sampler, '_aspect_ratio_buckets', None) or getattr(batch_sampler, '_buckets', ()):
        bucket.clear()
    loop.dataloader._iterator = None  # of persistent workers
    loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)


def _skipped(loop: IterBasedTrainLoop) -> int:
    """Batches that a resumed loop passes over without reading them; mmengine 0.10.7 reads them all again."""
    fast = getattr(loop.dataloader_iterator, '_resolve_sampler', lambda: None)() is not None
    return loop.iter if fast or getattr(loop, 'fast_forward_on_resume', False) else 0
