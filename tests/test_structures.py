import time

import pytest
import torch
from mmengine.structures import BaseDataElement

from asl_mmdet.structures import MultiLabelDataSample, dense_targets, index_targets


def sample(label=None, negative=None, unknown=None, **metainfo):
    fields = dict(gt_label=label, gt_negative=negative, gt_unknown=unknown)
    return MultiLabelDataSample(
        metainfo=metainfo, **{k: torch.tensor(v, dtype=torch.int64) for k, v in fields.items() if v is not None}
    )


# ---------------------------------------------------------------------------------------------------------------- dense


def test_every_kind_of_label():
    targets, weights = dense_targets([sample([2, 0]), sample([]), sample([1], unknown=[3])], 4)
    assert targets.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, -1]]
    assert weights is None and targets.dtype == torch.float32


def test_untagged_classes_are_unknown_at_weight_0():
    samples = [sample([2], negative=[0], untagged_weight=0), sample([1])]
    targets, weights = dense_targets(samples, 4)
    assert targets.tolist() == [[0, -1, 1, -1], [0, 1, 0, 0]]
    assert weights is None


def test_untagged_classes_weigh_less_and_tagged_ones_1():
    samples = [
        sample([2], negative=[0], unknown=[4], untagged_weight=0.25),
        sample([1], untagged_weight=0),
        sample([0]),
    ]
    targets, weights = dense_targets(samples, 5)
    assert targets.tolist() == [[0, 0, 1, 0, -1], [-1, 1, -1, -1, -1], [1, 0, 0, 0, 0]]
    assert weights.tolist() == [[1, 0.25, 1, 0.25, 1], [1] * 5, [1] * 5]


def test_positive_wins_over_unknown_and_unknown_over_negative():
    targets, _ = dense_targets([sample([0], negative=[0, 1, 2], unknown=[0, 1])], 3)
    assert targets.tolist() == [[1, -1, 0]]


def test_empty_batch():
    targets, weights = dense_targets([], 3)
    assert targets.shape == (0, 3) and weights is None


def test_int32_indices():
    targets, _ = dense_targets([MultiLabelDataSample(gt_label=torch.tensor([1], dtype=torch.int32))], 2)
    assert targets.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    'samples, message',
    [
        ([sample([0]), sample([1, 3], img_path='b.jpg')], r'gt_label of b.jpg holds class 3, .* from 0 to 2'),
        ([sample([-1], img_path='a.jpg')], r'gt_label of a.jpg holds class -1'),
        ([sample([0], negative=[7])], r'gt_negative of a sample holds class 7'),
        ([sample([0], unknown=[9])], r'gt_unknown .* class 9'),
        ([sample([0], num_classes=80, img_path='a.jpg')], 'a.jpg has 80 classes.*num_classes=3.*num_classes=80'),
        ([sample(img_path='a.jpg')], 'a.jpg has no ground truth'),
        ([sample([0], untagged_weight=1.5)], r'untagged_weight=1.5 .* \[0, 1\]'),
        ([sample([0], untagged_weight=float('nan'))], 'untagged_weight=nan'),
    ],
)
def test_bad_samples_are_named(samples, message):
    with pytest.raises(ValueError, match=message):
        dense_targets(samples, 3)


@pytest.mark.parametrize('targets_of', [dense_targets, index_targets])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bool])
def test_a_dense_vector_is_refused(targets_of, dtype):
    with pytest.raises(TypeError, match=f'gt_label holds {dtype}'):
        targets_of([MultiLabelDataSample(gt_label=torch.ones(1, dtype=dtype))], 3)


def test_nothing_is_read_back_from_the_device():
    # Reading a value of a meta tensor, or an operation whose shape depends on values, raises.
    on_device = [
        MultiLabelDataSample(
            metainfo=dict(untagged_weight=0.5),
            gt_label=torch.ones(2, dtype=torch.int64, device='meta'),
            gt_unknown=torch.ones(1, dtype=torch.int64, device='meta'),
        )
    ]
    for samples in (on_device, [sample([1], negative=[2], untagged_weight=0.5)]):
        targets, weights = dense_targets(samples, 3, torch.device('meta'))
        assert targets.shape == weights.shape == (1, 3) and targets.device.type == 'meta'


class OnAnotherDevice(torch.Tensor):
    """A CPU tensor that says it lies elsewhere."""

    device = torch.device('meta')


def test_indices_on_a_device_end_in_nan_when_out_of_range():
    def targets_of(columns):
        there = torch.tensor(columns).as_subclass(OnAnotherDevice)
        return dense_targets([MultiLabelDataSample(gt_label=there), MultiLabelDataSample(gt_label=there)], 3)[0]

    assert targets_of([2, 0]).tolist() == [[1, 0, 1], [1, 0, 1]]
    for columns in ([3], [-1], [0, 1, 2, 3]):
        assert targets_of(columns).isnan().all()


def test_herbarium_sized_batch_takes_milliseconds():
    samples = [sample([i], untagged_weight=0.5) for i in range(128)]
    dense_targets(samples, 32093)
    start = time.perf_counter()
    dense_targets(samples, 32093)
    assert time.perf_counter() - start < 0.5


# ---------------------------------------------------------------------------------------------------------------- index


def test_the_one_class_of_each_image():
    target = index_targets([sample([4]), sample([0])], 5)
    assert target.tolist() == [4, 0] and target.dtype == torch.int64


@pytest.mark.parametrize(
    'wrong, message',
    [
        (sample([1, 2], img_path='a.jpg'), 'gt_label of a.jpg holds 2 classes.*AsymmetricLoss'),
        (sample([], img_path='a.jpg'), 'gt_label of a.jpg holds 0 classes'),
        (sample(negative=[1], img_path='a.jpg'), 'gt_label of a.jpg holds 0 classes'),
        (sample([5], img_path='a.jpg'), 'gt_label of a.jpg holds class 5'),
        (sample([0], num_classes=6), 'has 6 classes'),
    ],
)
def test_images_without_one_class_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        index_targets([sample([0]), wrong], 5)


# ----------------------------------------------------------------------------------------------------------------- move


def test_moving_leaves_ground_truth_alone():
    before = sample([1, 2], negative=[0], unknown=[3], img_path='a.jpg')
    before.pred_score = torch.zeros(4)
    before.gt_instances = BaseDataElement(boxes=torch.zeros(2))
    before.caption = ['a dog']
    after = before.to(torch.float64)
    assert isinstance(after, MultiLabelDataSample) and (after.img_path, after.caption) == ('a.jpg', ['a dog'])
    assert after.pred_score.dtype == after.gt_instances.boxes.dtype == torch.float64
    assert after.gt_label.tolist() == [1, 2] and after.gt_negative.tolist() == [0] and after.gt_unknown.tolist() == [3]
    assert {after.gt_label.dtype, after.gt_negative.dtype, after.gt_unknown.dtype} == {torch.int64}
    assert before.pred_score.dtype == torch.float32
