"""A small Runner in which everything is random: order of the data, augmentation, dropout."""

import random

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset


class Noisy(Dataset):
    """Each item is its index and a number of each of the three random generators."""

    def __len__(self):
        return 12

    def get_data_info(self, index):
        return dict(width=1 + index % 2, height=1.5)

    def __getitem__(self, index):
        return torch.tensor([float(index), random.random(), np.random.rand(), torch.rand(()).item()])


class Dropping(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 0.1))
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, *inputs, mode):
        if mode != 'loss':
            return [self.weight.sum()]
        batch = torch.stack(inputs)
        self.seen.append(batch)
        return dict(loss=(self.dropout(batch) @ self.weight - 1).square().mean() / 100)


class Count(Evaluator):
    """Takes its metric from a list, and calls ``at`` in the midst of a validation."""

    def __init__(self, values=None, at=lambda: None):
        super().__init__([])
        self.values = list(values or [])
        self.runs = 0
        self.at = at

    def process(self, *args, **kwargs):
        self.at()

    def evaluate(self, size):
        self.runs += 1
        return dict(acc=self.values.pop(0) if self.values else 0.5)


def build_run(
    work_dir, workers=0, epochs=3, iters=None, seed=0, evaluator=None, hooks=(), batch_size=3, data=(), **kwargs
):
    loader = dict(
        dataset=Noisy(),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type='InfiniteSampler' if iters else 'DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'),
    )
    loader.update(data)
    settings = dict(
        train_cfg=dict(by_epoch=False, max_iters=iters, val_interval=100)
        if iters
        else dict(by_epoch=True, max_epochs=epochs),
        default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', interval=1)),
        param_scheduler=dict(type='OneCycleLR', eta_max=0.1, total_steps=iters or epochs * 4, by_epoch=False),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        experiment_name=f'noisy{random.SystemRandom().random()}',
    )
    if evaluator is not None:
        settings.update(
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            val_evaluator=evaluator,
            val_cfg=dict(),
        )
    settings.update(kwargs)
    return Runner(
        model=Dropping(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        custom_hooks=[dict(type='ExactResumeHook'), dict(type='EMAHook'), *hooks],
        default_scope='mmdet',
        randomness=dict(seed=seed),
        log_level='WARNING',
        **settings,
    )


def state(path):
    """What training is about, of a checkpoint."""
    content = torch.load(path, weights_only=False)
    return {name: content[name] for name in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')}


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_same(*pair)
    else:
        assert one == other
