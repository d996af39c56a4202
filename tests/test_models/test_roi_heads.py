"""AsymmetricLoss inside the box heads of R-CNN: a logit a class, none for background."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.hub import get_config

import asl_mmdet  # noqa: F401

register_all_modules()

ASL = dict(type='AsymmetricLoss', use_sigmoid=True, gamma_pos=1.0, gamma_neg=2.0, clip=0.0)
AS_BCE = dict(ASL, gamma_pos=0.0, gamma_neg=0.0)


def box_head(loss_cls):
    head = dict(
        type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=16, roi_feat_size=7, num_classes=3, loss_cls=loss_cls
    )
    return MODELS.build(ConfigDict(head))


def test_the_classification_loss_is_a_sum_of_binary_ones_and_background_has_no_logit():
    head = box_head(AS_BCE)
    assert head.fc_cls.out_features == 3
    logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, -2.0, -0.1], [-1.0, 4.0, 0.0], [3.0, -1.0, -1.0]])
    labels = torch.tensor([0, 3, 1, 2])  # 3 is background
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    losses = head.loss(logits, None, torch.zeros(4, 5), labels, weights, None, None)
    expected = F.binary_cross_entropy_with_logits(logits[:3], torch.eye(4)[labels[:3], :3], reduction='sum') / 3
    torch.testing.assert_close(losses['loss_cls'], expected)
    # Of the last box the class is wrong; of the second no class has p > 0.5, so that it is background.
    assert losses['acc'].item() == 75


def test_scores_are_sigmoids_and_background_is_left_out():
    head = box_head(ASL).eval()
    logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, -2.0, -0.1]])
    (result,) = head.predict_by_feat(
        (torch.tensor([[0.0, 0, 0, 9, 9], [0, 15, 15, 30, 30]]),),
        (logits,),
        (None,),
        [dict(img_shape=(32, 32))],
        ConfigDict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10),
    )
    scores, order = logits.sigmoid().flatten().sort(descending=True)
    torch.testing.assert_close(result.scores, scores)
    assert result.labels.tolist() == (order % 3).tolist()
    torch.testing.assert_close(
        head.loss_cls.get_activation(logits)[:, 3], 1 - torch.stack([logits[0, 0], logits[1, 2]]).sigmoid()
    )


@pytest.mark.parametrize(
    'head',
    [
        dict(type='SABLHead', num_classes=3, loss_cls=ASL),
        dict(type='DoubleConvFCBBoxHead', num_convs=1, num_fcs=1, num_classes=3, loss_cls=ASL),
        dict(type='MultiInstanceBBoxHead', num_shared_fcs=1, num_instance=2, num_classes=3, loss_cls=ASL),
    ],
    ids=lambda head: head['type'],
)
def test_heads_with_a_softmax_whatever_their_loss_are_refused(head):
    with pytest.raises(ValueError, match=f'{head["type"]}.loss_cls cannot be an AsymmetricLoss'):
        MODELS.build(ConfigDict(head))


def test_a_query_head_with_a_softmax_is_refused():
    head = get_config('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py').model.panoptic_head
    head.loss_cls = ConfigDict(ASL, class_weight=[1.0] * 81)
    with pytest.raises(ValueError, match='Mask2FormerHead.loss_cls cannot be an AsymmetricLoss: .* softmax'):
        MODELS.build(head)


def test_dense_and_query_heads_keep_their_own_sigmoid():
    head = MODELS.build(dict(type='FCOSHead', num_classes=3, in_channels=8, loss_cls=ASL))
    assert head.cls_out_channels == 3 and not head.loss_cls.custom_cls_channels
    assert MODELS.build(ConfigDict(type='DIIHead', num_classes=3, loss_cls=ASL)).fc_cls.out_features == 3


@pytest.mark.parametrize(
    'config', ['faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py']
)
def test_a_two_stage_detector_of_mmdet_trains_and_predicts(config):
    model = get_config(f'mmdet::{config}').model
    model.backbone.update(depth=18, base_channels=8, init_cfg=None)
    model.neck.in_channels = [8, 16, 32, 64]
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(fc_out_channels=16, loss_cls=ConfigDict(ASL))
    torch.manual_seed(0)
    detector = MODELS.build(model)
    detector.init_weights()
    data = demo_mm_inputs(2, [[3, 128, 128], [3, 125, 130]])
    losses = detector(**detector.data_preprocessor(copy.deepcopy(data), True), mode='loss')
    total = sum(sum(value) if isinstance(value, list) else value for key, value in losses.items() if 'loss' in key)
    total.backward()
    assert total.isfinite()
    for head in detector.modules():
        if hasattr(head, 'fc_cls'):
            assert head.fc_cls.out_features == 80 and head.fc_cls.bias.grad.any()
    detector.eval()
    with torch.no_grad():
        for result in detector(**detector.data_preprocessor(data, False), mode='predict'):
            # At the start p = 0.5 of all classes, under a softmax of 81 channels 0.012.
            assert len(result.pred_instances) and ((result.pred_instances.scores - 0.5).abs() < 0.2).all()
