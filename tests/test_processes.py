"""Training by several processes and by accumulated batches: the step of one process that is given the whole batch."""

import functools
import itertools

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch.nn.utils import parameters_to_vector

from asl_mmdet.structures import MultiLabelDataSample
from tests.conftest import ROOT, in_processes

SIZE = 64
CLASSIFIERS = dict(
    asymmetric={},
    single_label=dict(type='ASLSingleLabel', gamma_pos=0, gamma_neg=4),
    cross_entropy=dict(type='CrossEntropyLoss', use_sigmoid=True),
)
DETECTORS = ('fcos', 'atss')
# Of four images; their labels are those of the classifiers, too. Two have no positive.
BOXES = [
    ([[2, 2, 30, 30], [20, 10, 60, 50], [5, 30, 40, 62]], [0, 3, 5]),
    ([[10, 10, 50, 50]], [2]),
    ([], []),
    ([], []),
]


@functools.cache
def model_of(name):
    """In float64; the same in every process."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    if name in DETECTORS:
        cfg = Config.fromfile(ROOT / f'configs/{name}/{name}_tresnet-narrow_fpn_asl_shapes.py').model
    else:
        cfg = Config.fromfile(ROOT / 'configs/multi_label/tresnet-narrow_asl_shapes.py').model
        cfg.head.loss = CLASSIFIERS[name] or cfg.head.loss
    cfg.backbone.norm_eval = True
    model = MODELS.build(cfg)
    model.init_weights()
    return model.double().train()


@functools.cache
def data(name):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(len(BOXES), 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    samples = []
    for i, (boxes, labels) in enumerate(BOXES):
        if name in DETECTORS:
            shape = (SIZE, SIZE)
            sample = DetDataSample(metainfo=dict(img_shape=shape, pad_shape=shape, batch_input_shape=shape))
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=torch.tensor(labels).long()
            )
        else:
            sample = MultiLabelDataSample(gt_label=torch.tensor([i] if name == 'single_label' else labels).long())
        samples.append(sample)
    return images, samples


def gradient(name, batches, distributed=False):
    """Gradient of one step over batches, lists of image numbers, that are accumulated."""
    model = model_of(name)
    start = parameters_to_vector(model.parameters()).detach().clone()
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False) if distributed else model
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=len(batches))
    images, samples = data(name)
    for batch in batches:
        with wrapper.optim_context(wrapped):
            losses = wrapped(images[batch], [samples[i] for i in batch], mode='loss')
            wrapper.update_params(model.parse_losses(losses)[0])
    step = start - parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(start, model.parameters())
    assert step.isfinite().all() and step.abs().max() > 1e-4
    return step


def close(one, other):
    """To 2.4e-7 of the largest component: mmdet adds float32's epsilon, 1.2e-7, to what a sum is divided by."""
    return (one - other).abs().max() < 2 * torch.finfo(torch.float32).eps * other.abs().max()


# A rank without positives; then with another number of images than the other as well.
SHARES = [([0, 1], [2, 3]), ([0, 1, 2], [3]), ([0], [1, 2, 3]), ([3], [2, 0, 1])]


def gradients(rank):
    """By model and share."""
    names = (*CLASSIFIERS, *DETECTORS)
    by_share = {
        (name, i): gradient(name, [share[rank]], distributed=True) for name in names for i, share in enumerate(SHARES)
    }
    for name in names:
        batches = [[0], [1]] if rank == 0 else [[2], [3]]
        by_share[name, 'accumulated'] = gradient(name, batches, distributed=True)
        by_share[name, 'no positive'] = gradient(name, [[rank + 2]], distributed=True)
    return by_share


@pytest.fixture(scope='module')
def of_two(tmp_path_factory):
    """``gradients`` of one pair of processes."""
    first, second = in_processes(gradients, tmp_path_factory.mktemp('two'))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    return first


@pytest.mark.parametrize('name', [*CLASSIFIERS, *DETECTORS])
def test_two_processes_have_the_gradient_of_one(of_two, name):
    whole = gradient(name, [[0, 1, 2, 3]])
    for i, share in enumerate(SHARES):
        assert close(of_two[name, i], whole), share


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_accumulated_batches_have_the_gradient_of_one_batch(of_two, name):
    whole = gradient(name, [[0, 1, 2, 3]])
    for batches in itertools.permutations([[0, 1], [2, 3]]), [[[0], [1], [2], [3]]]:
        for order in batches:
            assert close(gradient(name, list(order)), whole)
    assert close(of_two[name, 'accumulated'], whole)


@pytest.mark.parametrize('name', DETECTORS)
def test_accumulated_batches_of_detectors_count_alike(of_two, name):
    """mmdet divides each batch by its own number of positives, so that a box in a batch of few counts more."""
    parts = [gradient(name, [batch]) for batch in ([0, 1], [2, 3])]
    accumulated = gradient(name, [[0, 1], [2, 3]])
    assert close(accumulated, sum(parts) / 2)
    assert not close(accumulated, gradient(name, [[0, 1, 2, 3]]))
    # Two processes share the positives of each batch, not of the step.
    assert close(of_two[name, 'accumulated'], sum(gradient(name, [batch]) for batch in ([0, 2], [1, 3])) / 2)


def test_batches_without_any_positive(of_two):
    """mmdet's FCOS divides by 1 in each process then, so that the loss is as much smaller as there are processes."""
    for name in (*CLASSIFIERS, 'atss'):
        assert close(of_two[name, 'no positive'], gradient(name, [[2, 3]]))
    assert close(of_two['fcos', 'no positive'], gradient('fcos', [[2, 3]]) / 2)
