import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS

from asl_mmdet.models.asl_single_label import ASLSingleLabel, asl_single_label


def reference(logits, target, gamma_pos, gamma_neg, eps):
    """The official code's arithmetic, row by row and class by class."""
    num_classes = logits.shape[1]
    rows = []
    for z, y in zip(logits, target.tolist()):
        log_p = z - z.exp().sum().log()
        total = 0
        for c in range(num_classes):
            weight = (1 - log_p[c].exp()) ** gamma_pos if c == y else log_p[c].exp() ** gamma_neg
            smoothed = (c == y) * (1 - eps) + eps / num_classes
            total = total - smoothed * weight * log_p[c]
        rows.append(total)
    return torch.stack(rows)


def loss_and_grad(function, logits):
    logits = logits.detach().requires_grad_()
    loss = function(logits)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


@pytest.mark.parametrize(
    'gamma_pos, gamma_neg, eps', [(0, 4, 0.1), (1, 2, 0.2), (0.5, 0.5, 0.1), (2, 0, 0), (0, 0, 0.3)]
)
def test_values_and_gradients_of_the_formula(gamma_pos, gamma_neg, eps):
    logits = 2 * torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 3, 4, 4, 0, 2])
    kwargs = dict(gamma_pos=gamma_pos, gamma_neg=gamma_neg, eps=eps)
    loss, grad = loss_and_grad(lambda z: asl_single_label(z, target, **kwargs), logits)
    expected, expected_grad = loss_and_grad(lambda z: reference(z, target, **kwargs), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-14)


def test_a_value_by_hand():
    # p = (1/2, 1/4, 1/4), y = 0, e = 0.3: s = (0.8, 0.1, 0.1); -0.8 log(1/2) - 2 * 0.1 * (1/4)^4 log(1/4)
    loss = ASLSingleLabel(eps=0.3)(torch.tensor([[math.log(2), 0, 0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.8 * math.log(2) + 0.2 / 256 * math.log(4), rel=1e-6)
    # The same with gamma_pos = 2: the first term times (1/2)^2.
    loss = ASLSingleLabel(gamma_pos=2, eps=0.3)(torch.tensor([[math.log(2), 0, 0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.2 * math.log(2) + 0.2 / 256 * math.log(4), rel=1e-6)
    # By default e = 0.1, gamma_pos = 0 and gamma_neg = 4.
    expected = (0.9 + 0.1 / 3) * math.log(2) + 0.2 / 3 / 256 * math.log(4)
    for default in (ASLSingleLabel(), asl_single_label):
        loss = default(torch.tensor([[math.log(2), 0, 0]]), torch.tensor([0]))
        assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('eps', [0, 0.1, 1])
def test_zero_gammas_are_cross_entropy_with_smoothing(eps):
    logits, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, -1, 1])
    loss = ASLSingleLabel(gamma_neg=0, eps=eps, reduction='sum')(logits, target)
    torch.testing.assert_close(
        loss, F.cross_entropy(logits, target, ignore_index=-1, label_smoothing=eps, reduction='sum')
    )


@pytest.mark.parametrize('gamma_pos', [0, 0.5, 1])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_logits_keep_finite_gradients(dtype, gamma_pos):
    logits = torch.tensor([[300.0, -300, 0], [-300, 300, 0], [0, 0, 300], [3e4, -3e4, 3e4]], dtype=dtype)
    target = torch.tensor([0, 0, 2, 1])
    loss, grad = loss_and_grad(lambda z: ASLSingleLabel(gamma_pos, reduction='none')(z, target), logits)
    assert loss.dtype == torch.float32 and loss.isfinite().all() and grad.isfinite().all()
    # The worst mistake is pushed at full strength: s_y = 0.9 + 0.1 / 3.
    assert grad[1, 0].item() == pytest.approx(-(0.9 + 0.1 / 3), rel=1e-2)
    assert grad.dtype == dtype


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(16, 9, generator=torch.Generator().manual_seed(1)).half()
    target = torch.arange(16) % 9
    expected = ASLSingleLabel()(logits.double(), target)
    with torch.autocast('cpu', torch.bfloat16):
        assert ASLSingleLabel()(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_ignored_rows_have_no_loss_and_count_in_the_mean():
    logits = torch.randn(4, 3)
    target = torch.tensor([0, -1, 2, -1])
    loss, grad = loss_and_grad(lambda z: ASLSingleLabel()(z, target), logits)
    torch.testing.assert_close(loss, ASLSingleLabel(reduction='sum')(logits[[0, 2]], target[[0, 2]]) / 4)
    assert torch.equal((grad != 0).any(1), torch.tensor([True, False, True, False]))
    other = ASLSingleLabel(ignore_index=255, reduction='none')(logits, torch.tensor([0, 255, 2, 1]))
    assert torch.equal(other == 0, torch.tensor([False, True, False, False]))


def test_contract_of_mmdet_losses():
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    weight = torch.tensor([1.0, 0, 2, 0.5])
    loss = ASLSingleLabel(loss_weight=2.0)
    rows = loss(logits, target, reduction_override='none')
    assert rows.shape == (4,)
    torch.testing.assert_close(loss(logits, target), rows.mean())
    torch.testing.assert_close(loss(logits, target, weight), (rows * weight).sum() / 4)
    torch.testing.assert_close(loss(logits, target, weight[:, None], avg_factor=3.0), (rows * weight).sum() / 3)
    torch.testing.assert_close(loss(logits, target, avg_factor=torch.tensor(3.0)), rows.sum() / 3)
    torch.testing.assert_close(loss(logits, target, reduction_override='sum'), rows.sum())
    assert loss(logits[:0], target[:0]).item() == 0
    assert loss(logits[:0], target[:0], avg_factor=1).item() == 0


def test_labels_that_go_unchecked_end_in_nan():
    logits = torch.zeros(3, 2)
    assert asl_single_label(logits, torch.tensor([0, 2, -2])).isnan().tolist() == [False, True, True]


def test_class_255_of_uint8_is_not_unknown():
    logits, target = torch.randn(2, 300), torch.tensor([255, 1])
    loss = ASLSingleLabel(reduction='none')
    assert loss(logits, target.to(torch.uint8)).equal(loss(logits, target)) and loss(logits, target).min() > 0
    with pytest.raises(ValueError, match='holds 255: class indices must lie in'):
        loss(logits[:, :10], target.to(torch.uint8))


def test_non_finite_logits_are_not_hidden():
    for bad in (math.nan, math.inf, -math.inf):
        assert not ASLSingleLabel()(torch.tensor([[bad, 0.0]]), torch.tensor([0])).isfinite()


def test_compiles_without_graph_breaks():
    loss = ASLSingleLabel(gamma_pos=1)
    compiled = torch.compile(loss, backend='aot_eager', fullgraph=True)
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, -1, 0])
    value, grad = loss_and_grad(lambda z: compiled(z, target, avg_factor=3.0), logits)
    expected, expected_grad = loss_and_grad(lambda z: loss(z, target, avg_factor=3.0), logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_softmax_heads_of_mmdet_take_it():
    head = MODELS.build(
        dict(
            type='Shared2FCBBoxHead',
            in_channels=4,
            fc_out_channels=8,
            roi_feat_size=1,
            num_classes=3,
            loss_cls=dict(type='ASLSingleLabel'),
        )
    )
    assert head.fc_cls.out_features == 4
    losses = head.loss(
        torch.randn(5, 4),
        None,
        torch.zeros(5, 4),
        torch.tensor([0, 3, 1, 3, 2]),
        torch.ones(5),
        torch.zeros(5, 12),
        torch.zeros(5, 12),
    )
    assert losses['loss_cls'].isfinite() and losses['loss_cls'] > 0


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(gamma_pos=-1), 'gamma_pos=-1'),
        (dict(gamma_neg=math.inf), 'gamma_neg=inf'),
        (dict(eps=1.1), r'eps=1.1 .* \[0, 1\]'),
        (dict(use_sigmoid=True), 'use_sigmoid=True.*AsymmetricLoss'),
        (dict(reduction='avg'), "reduction='avg'"),
        (dict(loss_weight=math.nan), 'loss_weight=nan'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ASLSingleLabel(**kwargs)


LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    'pred, target, kwargs, error, message',
    [
        (LOGITS, torch.tensor([0, 3]), {}, ValueError, r'target .* holds 3: .* \[0, 2\]'),
        (LOGITS, torch.tensor([0, -2]), {}, ValueError, 'target .* holds -2'),
        (LOGITS, torch.zeros(2), {}, TypeError, 'must be integer, got torch.float32'),
        (LOGITS, torch.tensor([True, False]), {}, TypeError, 'must be integer, got torch.bool'),
        (LOGITS, torch.zeros(2, 3, dtype=torch.int64), {}, ValueError, r'shape \(2,\), one class index .*got \(2, 3\)'),
        (LOGITS.long(), torch.tensor([0, 1]), {}, TypeError, 'floating-point logits, got torch.int64'),
        (LOGITS[:, :1], torch.tensor([0, 0]), {}, ValueError, r'C >= 2, got \(2, 1\)'),
        (LOGITS, torch.tensor([0, 1]), dict(weight=torch.zeros(2, 3)), ValueError, r'weight .* got \(2, 3\)'),
        (LOGITS, torch.tensor([0, 1]), dict(reduction_override='sum', avg_factor=2), ValueError, 'avg_factor'),
        (LOGITS, torch.tensor([0, 1]), dict(reduction_override='max'), ValueError, "reduction_override='max'"),
    ],
)
def test_bad_input_is_named(pred, target, kwargs, error, message):
    with pytest.raises(error, match=message):
        ASLSingleLabel()(pred, target, **kwargs)
