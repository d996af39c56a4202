"""A model of one free logit a class, so that probabilities and gaps are known by hand, and real Runner runs of it."""

import math
from functools import partial

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from asl_mmdet.models import AsymmetricLoss


class Logits(BaseModel):
    """Gives every image its own logits, plus ``bias`` where that is to be trained."""

    def __init__(self, loss, num_classes, calls=1, trained=True):
        super().__init__()
        self.num_classes = num_classes
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.loss_cls = loss
        self.calls = calls
        self.trained = trained

    def forward(self, logits, targets, mode='tensor'):
        if self.trained:
            logits = logits + self.bias
        losses = [
            self.loss_cls(part, target) for part, target in zip(logits.chunk(self.calls), targets.chunk(self.calls))
        ]
        return dict(loss=sum(losses) + 0 * self.bias.sum())


class Batches(Dataset):
    """One item a batch: probabilities (n, C) as logits, and labels (n, C)."""

    metainfo = {}

    def __init__(self, batches):
        self.batches = [
            dict(logits=torch.tensor(p, dtype=torch.float64).logit().float(), targets=torch.tensor(y))
            for p, y in batches
        ]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def train_on(
    folder, batches, hooks, loss=None, epochs=1, calls=1, interval=1, work_dir='work', lr=0.0, model=None, **kwargs
):
    """Trains on batches of probabilities and labels with frozen logits; returns runner and scalars of every step."""
    work_dir = folder / work_dir
    model = model or Logits(loss or AsymmetricLoss(), num_classes=len(batches[0][1][0]), calls=calls)
    loader = dict(
        batch_size=1,
        num_workers=0,
        dataset=Batches(batches),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=lambda items: items[0],
    )
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        experiment_name=f'{folder.parent.name}-{folder.name}-{work_dir.name}',
        default_scope='mmdet',
        log_level='WARNING',
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=kwargs.pop('optim_wrapper', dict(optimizer=dict(type='SGD', lr=lr))),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=interval)),
        custom_hooks=hooks,
        **kwargs,
    )
    runner.train()
    history = runner.message_hub.log_scalars
    scalars = {key[6:]: list(value.data[0]) for key, value in history.items() if key.startswith('train/')}
    assert all(math.isfinite(value) for key in scalars if key != 'loss' for value in scalars[key])
    return runner, scalars


@pytest.fixture
def run_batches(tmp_path):
    """``train_on`` in the folder of the test."""
    return partial(train_on, tmp_path)
