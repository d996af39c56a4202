import copy
from collections import Counter

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from asl_mmdet.models.multi_tensor_ema import MultiTensorEMA


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def model_of_two_dtypes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3).double())
    return model.to(memory_format=torch.channels_last)


def moved(model):
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.add_(torch.randn(tensor.shape) if tensor.is_floating_point() else 1)
    return model


@pytest.mark.parametrize(
    'options', [{}, dict(update_buffers=True), dict(update_buffers=True, interval=2), dict(device=torch.device('cpu'))]
)
def test_it_is_mmengines_average(options):
    model = model_of_two_dtypes()
    theirs = ExponentialMovingAverage(model, momentum=0.3, **options)
    ours = MultiTensorEMA(model, momentum=0.3, **options)
    begun = copy.deepcopy(ours.state_dict())
    for _ in range(4):
        moved(model)
        for one in (theirs, ours):
            one.update_parameters(model)
        expected, state = theirs.state_dict(), ours.state_dict()
        assert list(state) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    assert not torch.equal(state['module.0.weight'], begun['module.0.weight'])


def test_all_tensors_of_a_dtype_take_one_operation():
    model = model_of_two_dtypes()
    ema = MODELS.build(dict(type='mmdet.MultiTensorEMA', model=model, update_buffers=True))
    ema.update_parameters(model)
    with Operations() as operations:
        ema.update_parameters(model)
    assert operations.counts['_foreach_lerp_'] == 2
    assert operations.counts['lerp_'] == operations.counts['copy_'] == 0


def test_what_modules_share_is_averaged_once():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    ema = MultiTensorEMA(model, momentum=0.25, update_buffers=True)
    ema.update_parameters(model)
    expected = torch.lerp(model[0].weight.detach(), model[0].weight.detach() + 4, 0.25)
    model[0].weight.data.add_(4)
    ema.update_parameters(model)
    assert torch.equal(ema.module[0].weight, expected)


def test_it_holds_no_tensor_of_the_model_between_steps():
    model = model_of_two_dtypes()
    ema = MultiTensorEMA(model)
    for _ in range(2):
        before = set(vars(ema))
        ema.update_parameters(model)
        assert set(vars(ema)) == before
