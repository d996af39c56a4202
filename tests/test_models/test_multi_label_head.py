import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS

from asl_mmdet.models.asl_single_label import asl_single_label
from asl_mmdet.models.asymmetric_loss import asymmetric_loss
from asl_mmdet.models.multi_label_head import MultiLabelLinearClsHead
from asl_mmdet.structures import MultiLabelDataSample

ASL = dict(type='AsymmetricLoss')
CE = dict(type='CrossEntropyLoss', use_sigmoid=True)
FOCAL = dict(type='FocalLoss', use_sigmoid=True)


def sample(label, unknown=(), **metainfo):
    return MultiLabelDataSample(
        metainfo=metainfo,
        gt_label=torch.tensor(label, dtype=torch.int64),
        gt_unknown=torch.tensor(unknown, dtype=torch.int64),
    )


def head_with_logits(logits, **kwargs):
    """A head whose logits are its features."""
    head = MultiLabelLinearClsHead(logits.shape[1], logits.shape[1], **kwargs)
    torch.nn.init.eye_(head.fc.weight)
    torch.nn.init.zeros_(head.fc.bias)
    return head


# ----------------------------------------------------------------------------------------------------------------- loss


def test_config_of_a_mmpretrain_user():
    head = MODELS.build(
        dict(
            type='MultiLabelLinearClsHead',
            num_classes=80,
            in_channels=2048,
            loss=dict(
                type='AsymmetricLoss', gamma_pos=0.0, gamma_neg=4.0, clip=0.05, disable_torch_grad_focal_loss=True
            ),
            thr=0.7,
            topk=3,
            init_cfg=dict(type='Normal', layer='Linear', std=0.01),
        )
    )
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        'fc.weight': (80, 2048),
        'fc.bias': (80,),
    }
    assert head.loss_module.gamma_neg == 4 and (head.thr, head.topk) == (0.7, 3)


def test_loss_is_summed_over_classes_and_averaged_over_images():
    # Trap 8: at zero logits each of the 80 binary terms of CE is log(2), whatever the labels.
    logits = torch.zeros(3, 80)
    loss = head_with_logits(logits, loss=CE).loss((logits,), [sample([1, 2]), sample([]), sample([79])])
    assert list(loss) == ['loss'] and loss['loss'].item() == pytest.approx(80 * math.log(2), rel=1e-6)
    head = head_with_logits(logits, loss=ASL)
    elements = head.loss((logits,), [sample([1, 2])] * 3, reduction_override='none')['loss']
    assert elements[0, :2].tolist() == pytest.approx([-(0.45**4) * math.log(0.55), math.log(2)], rel=1e-6)
    # ASL at zero logits, 3 positives of 80: p = 1/2, p_m = 0.45.
    asl = head_with_logits(logits, loss=ASL).loss((logits,), [sample([1, 2, 3])] * 3)['loss']
    assert asl.item() == pytest.approx(3 * math.log(2) - 77 * 0.45**4 * math.log(0.55), rel=1e-6)


@pytest.mark.parametrize('loss', [ASL, dict(ASL, ignore_index=255), CE, FOCAL])
def test_unknown_labels_have_no_loss_and_no_gradient(loss):
    logits = torch.tensor([[0.3, -1.2, 2.0], [1.5, 0.1, -0.7]])
    feats = logits.clone().requires_grad_()
    head = head_with_logits(logits, loss=loss)
    value = head.loss((feats,), [sample([0], unknown=[1]), sample([1, 2])])['loss']
    value.backward()
    assert torch.equal(feats.grad == 0, torch.tensor([[False, True, False], [False, False, False]]))
    for other in (-40.0, 0.0, 40.0):
        logits[0, 1] = other
        torch.testing.assert_close(head.loss((logits,), [sample([0], unknown=[1]), sample([1, 2])])['loss'], value)


def test_untagged_negatives_weigh_less():
    logits = torch.tensor([[0.3, -1.2, 2.0]])
    samples = [
        MultiLabelDataSample(
            metainfo=dict(untagged_weight=0.25), gt_label=torch.tensor([0]), gt_negative=torch.tensor([1])
        )
    ]
    weight = torch.tensor([[1, 1, 0.25]])
    target = torch.tensor([[1.0, 0, 0]])
    expected = F.binary_cross_entropy_with_logits(logits, target, weight, reduction='sum')
    torch.testing.assert_close(head_with_logits(logits, loss=CE).loss((logits,), samples)['loss'], expected)
    torch.testing.assert_close(
        head_with_logits(logits, loss=ASL).loss((logits,), samples)['loss'], asymmetric_loss(logits, target, weight)
    )


def test_single_labels_by_softmax():
    logits = torch.tensor([[0.3, -1.2, 2.0], [1.5, 0.1, -0.7]])
    samples = [sample([2]), sample([1])]
    head = head_with_logits(logits, loss=dict(type='ASLSingleLabel', gamma_neg=2))
    torch.testing.assert_close(
        head.loss((logits,), samples)['loss'], asl_single_label(logits, torch.tensor([2, 1]), gamma_neg=2).mean()
    )
    ce = head_with_logits(logits, loss=dict(type='CrossEntropyLoss'))
    torch.testing.assert_close(ce.loss((logits,), samples)['loss'], F.cross_entropy(logits, torch.tensor([2, 1])))
    with pytest.raises(ValueError, match='gt_label of a.jpg holds 2 classes'):
        ce.loss((logits,), [sample([0, 1], img_path='a.jpg'), sample([1])])


def test_single_labels_by_sigmoid():
    # Appendix G: the loss of multi-label data, with one positive.
    logits = torch.tensor([[0.3, -1.2, 2.0], [1.5, 0.1, -0.7]])
    head = head_with_logits(logits, loss=ASL, topk=1)
    expected = asymmetric_loss(logits, torch.tensor([2, 1])) / 2
    torch.testing.assert_close(head.loss((logits,), [sample([2]), sample([1])])['loss'], expected)
    assert [p.pred_label.tolist() for p in head.predict((logits,))] == [[2], [0]]


def test_loss_sees_more_than_half_precision():
    logits = torch.full((1, 4), 12.0, dtype=torch.bfloat16)
    for loss in (CE, FOCAL, ASL):
        head = head_with_logits(logits, loss=loss)
        with torch.autocast('cpu', torch.bfloat16):
            value = head.loss((logits,), [sample([0, 1, 2, 3])])['loss']
        assert value.dtype == torch.float32
        expected = head.loss((logits.float(),), [sample([0, 1, 2, 3])])['loss']
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


# -------------------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize(
    'kwargs, expected',
    [
        (dict(), [[0, 2], []]),  # neither: 0.5
        (dict(thr=0.3), [[0, 1, 2], [0]]),
        (dict(thr=0.5), [[0, 2], []]),
        (dict(topk=1), [[2], [0]]),
        (dict(topk=2), [[2, 0], [0, 1]]),
        (dict(thr=0.5, topk=1), [[0, 2], []]),  # thr has precedence
        (dict(thr=0.0), [[0, 1, 2], [0, 1, 2]]),
    ],
)
def test_thr_and_topk_as_in_mmpretrain(kwargs, expected):
    scores = torch.tensor([[0.5, 0.4, 0.9], [0.31, 0.2, 0.1]])
    predictions = head_with_logits(scores, **kwargs).predict((scores.logit(),))
    assert [p.pred_label.tolist() for p in predictions] == expected
    torch.testing.assert_close(torch.stack([p.pred_score for p in predictions]), scores)


@pytest.mark.parametrize('loss', [dict(type='ASLSingleLabel'), dict(type='CrossEntropyLoss')])
def test_softmax_losses_predict_the_most_probable_class(loss):
    logits = torch.tensor([[0.0, 1.0, -1.0], [0.1, 0.0, 0.0]])
    predictions = head_with_logits(logits, loss=loss).predict((logits,))
    torch.testing.assert_close(torch.stack([p.pred_score for p in predictions]), logits.softmax(1))
    assert [p.pred_label.tolist() for p in predictions] == [[1], [0]]


def test_predictions_are_added_to_the_samples():
    samples = [sample([1], img_path='a.jpg'), sample([0], img_path='b.jpg')]
    predictions = head_with_logits(torch.zeros(2, 3)).predict((torch.zeros(2, 3),), samples)
    assert predictions[0] is samples[0] and samples[1].pred_score.tolist() == [0.5] * 3
    assert samples[0].gt_label.tolist() == [1] and samples[1].img_path == 'b.jpg'


def test_confident_scores_do_not_tie_in_half_precision():
    logits = torch.tensor([[10.0, 9.0, 8.0]], dtype=torch.bfloat16)
    head = head_with_logits(logits)
    with torch.autocast('cpu', torch.bfloat16):
        score = head.predict((logits,))[0].pred_score
    assert score.dtype == torch.float32 and score.tolist() == sorted(set(score.tolist()), reverse=True)


# ------------------------------------------------------------------------------------------------------------- features


def test_feature_maps_are_averaged_and_the_last_feature_counts():
    head = MultiLabelLinearClsHead(2, 3)
    last = torch.randn(4, 3, 5, 7)
    torch.testing.assert_close(head((torch.randn(4, 9, 2, 2), last)), head.fc(last.mean((2, 3))))
    torch.testing.assert_close(head(last), head.fc(last.mean((2, 3))))
    pooled = last.mean((2, 3))
    assert head.pre_logits((pooled,)) is pooled


def test_bottleneck_has_the_official_keys():
    head = MultiLabelLinearClsHead(9, 16, bottleneck_features=4)
    head.init_weights()
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        'fc.embedding_generator.0.weight': (4, 16),
        'fc.embedding_generator.0.bias': (4,),
        'fc.FC.weight': (9, 4),
        'fc.FC.bias': (9,),
    }
    x = torch.randn(2, 16)
    state = head.state_dict()
    embedding = x @ state['fc.embedding_generator.0.weight'].T + state['fc.embedding_generator.0.bias']
    torch.testing.assert_close(head((x,)), embedding @ state['fc.FC.weight'].T + state['fc.FC.bias'])


@pytest.mark.parametrize('bottleneck_features', [None, 300])
def test_initialisation_is_normal_with_deviation_0_01(bottleneck_features):
    head = MultiLabelLinearClsHead(200, 300, bottleneck_features=bottleneck_features)
    head.init_weights()
    for name, value in head.state_dict().items():
        assert value.std().item() == pytest.approx(0.01, rel=0.1) if name.endswith('weight') else not value.any()


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(num_classes=0), 'num_classes=0'),
        (dict(in_channels=0), 'in_channels=0'),
        (dict(bottleneck_features=0), 'bottleneck_features=0'),
        (dict(thr=1.5), r'thr=1.5 .* \[0, 1\]'),
        (dict(topk=4), r'topk=4 .* \[1, num_classes=3\]'),
        (dict(topk=0), 'topk=0'),
        (dict(loss=dict(type='AsymmetricLoss', reduction='sum')), "reduction='sum' of AsymmetricLoss: .*loss_weight=N"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiLabelLinearClsHead(**{**dict(num_classes=3, in_channels=8), **kwargs})


@pytest.mark.parametrize('shape', [(2, 5), (2, 5, 4, 4), (2, 8, 3)])
def test_features_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=rf'in_channels=8 .* shape \({shape[0]}, {shape[1]}'):
        MultiLabelLinearClsHead(3, 8)((torch.zeros(shape),))


@pytest.mark.parametrize('loss', [ASL, CE, dict(type='ASLSingleLabel')])
def test_data_set_of_another_number_of_classes_is_named(loss):
    head = MultiLabelLinearClsHead(3, 8, loss=loss)
    with pytest.raises(ValueError, match='a.jpg has 80 classes, .* num_classes=3; set model.head.num_classes=80'):
        head.loss((torch.zeros(1, 8),), [sample([1], num_classes=80, img_path='a.jpg')])


def test_the_config_is_left_as_it_was():
    cfg = dict(ASL, clip=0.1)
    before = copy.deepcopy(cfg)
    MultiLabelLinearClsHead(3, 8, loss=cfg)
    assert cfg == before
