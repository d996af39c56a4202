"""Checkpoints as mmengine's Runner writes them, and files that abuse what these need."""

import pickle
import sys

import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

from asl_mmdet.checkpoint import read_checkpoint


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, *inputs, mode):
        return dict(loss=(torch.stack(inputs) @ self.weight - 1).square().mean())


def test_runners_checkpoint_is_read_without_unrestricted_unpickling(tmp_path, monkeypatch):
    runner = Runner(
        model=Line(),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=[torch.tensor([1.0, 2.0])] * 4,
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='MultiStepLR', milestones=[1]),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='EMAHook')],
        default_scope='mmdet',
        experiment_name='line',
    )
    runner.train()
    path = tmp_path / 'epoch_1.pth'
    assert b'HistoryBuffer' in path.read_bytes()
    admitted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(admitted)

    load = torch.load
    modes = []

    def spy(*args, **kwargs):
        modes.append(kwargs['weights_only'])
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, 'load', spy)
    content = read_checkpoint(path)
    assert modes == [True]
    assert content['meta']['epoch'] == 1
    assert content['state_dict']['weight'].shape == (2,) and content['state_dict']['weight'].any()
    buffer = content['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    expected = MessageHub.get_current_instance().get_scalar('train/loss')
    assert buffer.mean() == expected.mean() and len(buffer.data[0]) == 2


class _Getattr:
    """Reaches code through the ``getattr`` that HistoryBuffer's pickles name."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(HistoryBuffer, '__init__'), (HistoryBuffer, '__subclasses__'), (torch.Tensor, 'mean'), (dict, 'pop')],
)
def test_getattr_reaches_nothing_but_the_statistics_of_history_buffers(tmp_path, owner, name):
    torch.save(dict(state_dict={}, log=_Getattr(owner, name)), tmp_path / 'crafted.pth')
    with pytest.raises(ValueError, match='crafted.pth.* cannot be read'):
        read_checkpoint(tmp_path / 'crafted.pth')


def test_statistics_of_history_buffers_are_reached(tmp_path):
    torch.save(dict(log=_Getattr(HistoryBuffer, 'mean')), tmp_path / 'log.pth')
    assert read_checkpoint(tmp_path / 'log.pth')['log'] is HistoryBuffer.mean


def test_runner_files_are_read_after_mmengine_has_loaded_one(tmp_path):
    path = tmp_path / 'history.pth'
    history = HistoryBuffer()
    history.update(2.5)
    torch.save(dict(state_dict=dict(weight=torch.ones(2)), message_hub=dict(loss=history)), path)
    CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert read_checkpoint(path)['message_hub']['loss'].current() == 2.5


@pytest.mark.parametrize('name', ['page.pth', 'page.safetensors'])
def test_files_that_are_no_checkpoint_are_named(tmp_path, name):
    (tmp_path / name).write_text('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
    with pytest.raises(ValueError, match=name):
        read_checkpoint(tmp_path / name)


def test_damaged_and_missing_files_are_named(tmp_path):
    torch.save(dict(weight=torch.zeros(1000)), tmp_path / 'cut.pth')
    content = (tmp_path / 'cut.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match='cut.pth.* damaged'):
        read_checkpoint(tmp_path / 'cut.pth')
    (tmp_path / 'empty.pth').touch()
    with pytest.raises(ValueError, match='empty.pth'):
        read_checkpoint(tmp_path / 'empty.pth')
    with pytest.raises(FileNotFoundError, match='absent.pth'):
        read_checkpoint(tmp_path / 'absent.pth')


def test_safetensors_names_its_package_where_it_is_absent(tmp_path, monkeypatch):
    (tmp_path / 'weights.safetensors').touch()
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(ImportError, match='pip install safetensors'):
        read_checkpoint(tmp_path / 'weights.safetensors')
