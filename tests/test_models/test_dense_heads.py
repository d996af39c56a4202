"""AsymmetricLoss inside mmdet's dense heads: equal to FocalLoss where it should be, and fed with awkward batches."""

import copy

import pytest
import torch
from mmdet.models.utils import filter_scores_and_topk
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.hub import get_config
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


# ------------------------------------------------------------- what mmdet's own tests ask of its heads with FocalLoss

RETINA_CFG = HEADS['RetinaHead']['train_cfg']
SAMPLED = dict(RETINA_CFG, sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, neg_pos_ub=-1))
VARIANTS = {
    'FCOS': ('FCOSHead', dict(HEADS['FCOSHead'], center_sampling=False)),
    'FCOS, centre sampling, normed boxes': ('FCOSHead', dict(HEADS['FCOSHead'], norm_on_bbox=True)),
    'ATSS': ('ATSSHead', HEADS['ATSSHead']),
    'RetinaNet': ('RetinaHead', HEADS['RetinaHead']),
    'RetinaNet, norms of their own': ('RetinaSepBNHead', dict(HEADS['RetinaHead'], num_ins=5)),
    # Anchors that the sampler leaves out have weight 0.
    'anchors, sampled': ('AnchorHead', dict(HEADS['RetinaHead'], train_cfg=SAMPLED)),
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_without_objects_only_the_background_counts_and_with_one_everything_does(variant):
    name, options = VARIANTS[variant]
    torch.manual_seed(0)
    head = dict(type=name, num_classes=4, in_channels=32, feat_channels=32, loss_cls=ASL, **options)
    head = MODELS.build(ConfigDict(copy.deepcopy(head)))
    assert head.cls_out_channels == 4
    feats = [torch.rand(1, 32, 256 // stride, 256 // stride) for stride in STRIDES]
    metas = [dict(img_shape=(256, 256), pad_shape=(256, 256), scale_factor=1.0)]
    outs = head(feats)
    one = InstanceData(bboxes=torch.tensor([[24.0, 24.0, 238.0, 152.0]]), labels=torch.tensor([2]))
    empty, full = (
        {
            key: sum(value).item() if isinstance(value, list) else value.item()
            for key, value in head.loss_by_feat(*outs, batch_gt_instances=[gt], batch_img_metas=metas).items()
        }
        for gt in (NOTHING, one)
    )
    assert empty.pop('loss_cls') > 0 and all(value == 0 for value in empty.values())
    assert all(value > 0 for value in full.values())


@pytest.mark.parametrize('avg_factor', [1.0, torch.tensor(3.0)])
def test_anchors_of_weight_zero_change_nothing(avg_factor):
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(50, 4), torch.randint(0, 5, (50,)), (torch.rand(50) < 0.5).float()
    for cfg in (ASL, dict(ASL, clip=0.05, gamma_neg=0.3)):
        loss = MODELS.build(cfg)
        whole = logits.clone().requires_grad_()
        value = loss(whole, labels, weights, avg_factor=avg_factor)
        value.backward()
        kept = logits[weights > 0].clone().requires_grad_()
        expected = loss(kept, labels[weights > 0], torch.ones(len(kept)), avg_factor=avg_factor)
        expected.backward()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(whole.grad[weights > 0], kept.grad)
        assert not whole.grad[weights == 0].any()
        nothing = loss(logits.clone().requires_grad_(), labels, torch.zeros(50), avg_factor=avg_factor)
        assert nothing == 0 and nothing.requires_grad


def test_scores_of_predictions_are_filtered_as_sigmoids():
    head = build('RetinaHead', ASL).eval()
    logits = torch.randn(7, 4)
    assert head.use_sigmoid_cls and head.cls_out_channels == 4
    scores, labels, kept, _ = filter_scores_and_topk(logits.sigmoid(), 0.5, 5)
    found = sorted(((logits[i, c].sigmoid().item(), c, i) for i in range(7) for c in range(4)), reverse=True)
    found = [entry for entry in found if entry[0] > 0.5][:5]
    assert labels.tolist() == [c for _, c, _ in found] and kept.tolist() == [i for *_, i in found]
    torch.testing.assert_close(scores, torch.tensor([score for score, *_ in found]))


@pytest.mark.parametrize('config', ['retinanet/retinanet_r18_fpn_1x_coco.py', 'atss/atss_r50_fpn_1x_coco.py'])
def test_a_single_stage_detector_of_mmdet_runs_in_its_three_modes(config):
    model = get_config(f'mmdet::{config}').model
    model.backbone.update(type='ResNet', depth=18, base_channels=8, init_cfg=None)
    model.neck.in_channels = [8, 16, 32, 64]
    model.bbox_head.loss_cls = ConfigDict(ASL)
    detector = MODELS.build(model)
    detector.init_weights()
    data = demo_mm_inputs(2, [[3, 128, 128], [3, 125, 130]])
    losses = detector(**detector.data_preprocessor(copy.deepcopy(data), True), mode='loss')
    total = sum(sum(value) if isinstance(value, list) else value for value in losses.values())
    total.backward()
    assert total.isfinite() and total > 0
    detector.eval()
    with torch.no_grad():
        data = detector.data_preprocessor(data, False)
        results = detector(**data, mode='predict')
        assert [type(result) for result in results] == [DetDataSample] * 2
        assert isinstance(detector(**data, mode='tensor'), tuple)


class QueryHead(torch.nn.Module):
    """The order of MaskFormerHead, which predicts by a softmax over C + 1 channels."""

    def __init__(self, channels):
        super().__init__()
        self.num_classes = 4
        self.cls_embed = torch.nn.Linear(2, channels)
        self.loss_cls = MODELS.build(dict(type='AsymmetricLoss'))


def test_queries_with_a_channel_for_background_are_refused():
    QueryHead(4)
    with pytest.raises(ValueError, match='QueryHead.loss_cls .* softmax with a channel for background'):
        QueryHead(5)
