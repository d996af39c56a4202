"""AsymmetricLoss inside mmdet's dense heads: equal to FocalLoss where it should be, and fed with awkward batches."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

import asl_mmdet  # noqa: F401

register_all_modules()

STRIDES = [8, 16, 32, 64, 128]
SQUARE_ANCHORS = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=STRIDES)
CODER = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
HEADS = dict(
    FCOSHead=dict(strides=STRIDES, center_sampling=True),
    ATSSHead=dict(
        anchor_generator=SQUARE_ANCHORS,
        bbox_coder=CODER,
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    ),
    RetinaHead=dict(
        anchor_generator=dict(SQUARE_ANCHORS, octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0]),
        bbox_coder=CODER,
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
    ),
)
FOCAL = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
ASL_AS_FOCAL = dict(type='AsymmetricLoss', use_sigmoid=True, gamma_pos=2.0, gamma_neg=2.0, alpha=0.25, clip=0.0)
ASL = dict(type='AsymmetricLoss', use_sigmoid=True, gamma_pos=1.0, gamma_neg=2.0, clip=0.0)
OBJECTS = InstanceData(
    bboxes=torch.tensor([[20.0, 30.0, 90.0, 110.0], [100.0, 10.0, 150.0, 60.0]]), labels=torch.tensor([2, 0])
)
NOTHING = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


def build(name, loss_cls):
    torch.manual_seed(0)
    cfg = dict(
        type=name, num_classes=4, in_channels=32, feat_channels=32, stacked_convs=1, loss_cls=loss_cls, **HEADS[name]
    )
    head = MODELS.build(ConfigDict(copy.deepcopy(cfg)))
    head.init_weights()
    return head


def losses_and_gradients(head, instances):
    generator = torch.Generator().manual_seed(1)
    feats = [torch.randn(len(instances), 32, 160 // s, 160 // s or 1, generator=generator) for s in STRIDES[:-1]]
    feats.append(torch.randn(len(instances), 32, 2, 2, generator=generator))
    metas = [dict(img_shape=(160, 160), pad_shape=(160, 160), scale_factor=1.0) for _ in instances]
    losses = head.loss_by_feat(*head(feats), batch_gt_instances=instances, batch_img_metas=metas)
    losses = {name: sum(value) if isinstance(value, (list, tuple)) else value for name, value in losses.items()}
    sum(losses.values()).backward()
    return losses, {name: parameter.grad for name, parameter in head.named_parameters()}


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize(
    'instances', [[OBJECTS, OBJECTS], [OBJECTS, NOTHING], [NOTHING, NOTHING]], ids=['both', 'one', 'none']
)
def test_a_head_cannot_tell_equal_gammas_from_focal_loss(name, instances):
    focal_losses, focal_gradients = losses_and_gradients(build(name, FOCAL), instances)
    losses, gradients = losses_and_gradients(build(name, ASL_AS_FOCAL), instances)
    assert losses['loss_cls'] > 0
    for key, value in focal_losses.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-7)
    for key, gradient in focal_gradients.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('instances', [[OBJECTS], [NOTHING]], ids=['objects', 'none'])
def test_asl_reaches_every_classification_weight(name, instances):
    losses, gradients = losses_and_gradients(build(name, ASL), instances)
    assert all(value.isfinite() for value in losses.values())
    classifier = {key: gradient for key, gradient in gradients.items() if 'cls' in key and gradient is not None}
    assert classifier and all(gradient.isfinite().all() and (gradient != 0).any() for gradient in classifier.values())
    if instances == [NOTHING]:
        bias = next(gradient for key, gradient in classifier.items() if key.endswith('cls.bias'))
        assert (bias > 0).all()  # background alone only pushes down


@pytest.mark.parametrize('name', HEADS)
def test_predictions_are_sigmoid_scores(name):
    head = build(name, ASL).eval()
    head.test_cfg = ConfigDict(
        nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.6), max_per_img=10
    )
    feats = [torch.randn(1, 32, 160 // s, 160 // s) for s in STRIDES[:-1]] + [torch.randn(1, 32, 2, 2)]
    metas = [dict(img_shape=(160, 160), scale_factor=(1.0, 1.0))]
    with torch.no_grad():
        result = head.predict_by_feat(*head(feats), batch_img_metas=metas)[0]
    assert len(result) == 10 and result.labels.max() < 4
    assert result.scores.max() < 0.1  # bias_prob = 0.01 at the start, under a softmax of 5 channels about 0.2
