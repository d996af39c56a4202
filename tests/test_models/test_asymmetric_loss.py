"""Values by hand, mmdet's FocalLoss, torch's cross-entropy and a float64 autograd reference against AsymmetricLoss."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models import FocalLoss
from mmdet.registry import MODELS
from torch.utils._python_dispatch import TorchDispatchMode

from asl_mmdet import AsymmetricLoss
from asl_mmdet.hooks import AdaptiveAsymmetryHook
from asl_mmdet.models.asymmetric_loss import ProbabilityStatistics, asymmetric_loss, dtype_of_sums
from asl_mmdet.models.one_pass import negative_term, positive_term


def reference(logits, labels, gamma_pos, gamma_neg, clip, alpha=None):
    """Eqs. 4 to 7 as printed, by elements, float64, differentiable by autograd away from p = m, p = 0 and p = 1."""
    p, q = logits.double().sigmoid(), (-logits.double()).sigmoid()  # q = 1 - p without cancellation
    p_m, q_m = (p - clip).clamp(min=0), (q + clip).clamp(max=1)
    pos = -(q**gamma_pos) * p.log()
    neg = -(p_m**gamma_neg) * q_m.log()
    if alpha is not None:
        pos, neg = alpha * pos, (1 - alpha) * neg
    return labels * pos + (1 - labels) * neg


def value_and_grad(function, logits, grad_output=1.0):
    logits = logits.detach().clone().requires_grad_()
    value = function(logits)
    value.backward(torch.full_like(value, grad_output))
    return value.detach(), logits.grad


# -------------------------------------------------------------------------------------------------------------- values


def test_values_by_hand_at_p_one_half():
    # p = 0.5, p_m = 0.45: L- = 0.45^4 * ln(0.55), L+ = ln(0.5)
    zero = torch.zeros(1, 1)
    loss = AsymmetricLoss(reduction='sum')
    assert loss(zero, torch.tensor([[1.0]])).item() == pytest.approx(0.693147181, rel=1e-6)
    assert loss(zero, torch.tensor([[0.0]])).item() == pytest.approx(0.04100625 * 0.597837001, rel=1e-6)
    # gamma_pos = 2: 0.25 ln 2. Soft label 0.25 (eq. 2): a quarter of the one and three quarters of the other.
    loss = AsymmetricLoss(gamma_pos=2, gamma_neg=4, clip=0.05, reduction='sum')
    assert loss(zero, torch.tensor([[1.0]])).item() == pytest.approx(0.173286795, rel=1e-6)
    assert loss(zero, torch.tensor([[0.25]])).item() == pytest.approx(
        0.25 * 0.173286795 + 0.75 * 0.04100625 * 0.597837001, rel=1e-6
    )


def test_gradients_by_hand_at_p_one_half():
    # eq. 8 at p = 0.5, m = 0.05, gamma = 4: 0.45^4 (1/0.55 + 4 * 0.597837001 / 0.45) / 4
    _, grad = negative_term(torch.zeros(1), 4.0, 0.05)
    assert grad.item() == pytest.approx(0.04100625 * (1 / 0.55 + 4 * 0.597837001 / 0.45) / 4, rel=1e-6)
    _, grad = negative_term(torch.zeros(1), 4.0, 0.05, detach_focusing=True)
    assert grad.item() == pytest.approx(0.04100625 / 0.55 / 4, rel=1e-6)
    # d/dz of -(1 - p)^2 ln p at p = 0.5: 0.25 (-ln 2 - 0.5)
    _, grad = positive_term(torch.zeros(1), 2.0)
    assert grad.item() == pytest.approx(0.25 * (-0.693147181 - 0.5), rel=1e-6)
    _, grad = positive_term(torch.zeros(1), 2.0, detach_focusing=True)
    assert grad.item() == pytest.approx(-0.125, rel=1e-6)


def test_scale_of_the_reductions():
    # 128 images, 80 classes, 3 positives each, zero logits (defaults): 3 ln 2 + 77 * 0.0245150 an image.
    labels = torch.zeros(128, 80)
    labels[:, :3] = 1
    logits = torch.zeros(128, 80)
    an_image = 3 * 0.693147181 + 77 * 0.04100625 * 0.597837001
    assert AsymmetricLoss(reduction='sum')(logits, labels).item() == pytest.approx(128 * an_image, rel=1e-5)
    assert AsymmetricLoss()(logits, labels, avg_factor=128).item() == pytest.approx(an_image, rel=1e-5)
    assert AsymmetricLoss()(logits, labels).item() == pytest.approx(an_image / 80, rel=1e-5)
    assert AsymmetricLoss(loss_weight=2.5)(logits, labels).item() == pytest.approx(2.5 * an_image / 80, rel=1e-5)


@pytest.mark.parametrize('scale', [1, 10, 100])
def test_zero_gammas_are_binary_cross_entropy(scale):
    torch.manual_seed(0)
    logits, labels = scale * torch.randn(64, 20), (torch.rand(64, 20) < 0.2).float()
    loss = AsymmetricLoss(gamma_pos=0, gamma_neg=0, clip=0)
    value, grad = value_and_grad(lambda z: loss(z, labels, reduction_override='none'), logits)
    for dtype in (torch.float64, torch.float32):
        expected, expected_grad = value_and_grad(
            lambda z: F.binary_cross_entropy_with_logits(z, labels.to(dtype), reduction='none'), logits.to(dtype)
        )
        # torch's own value cancels near 0, ours does not: in float32 only an absolute bound holds there.
        atol = 1e-13 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(value.to(dtype), expected, rtol=1e-6, atol=atol)
        torch.testing.assert_close(grad.to(dtype), expected_grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('gamma', [2.0, 1.5])
@pytest.mark.parametrize('dense', [False, True])
def test_equal_gammas_with_alpha_are_mmdet_focal_loss(gamma, dense):
    torch.manual_seed(0)
    logits = 3 * torch.randn(50, 8)
    target = torch.randint(0, 9, (50,))
    weight = torch.rand(50)
    if dense:
        target = F.one_hot(target, 9)[:, :8]
    ours = AsymmetricLoss(gamma_pos=gamma, gamma_neg=gamma, clip=0, alpha=0.25, loss_weight=2.0)
    theirs = FocalLoss(gamma=gamma, alpha=0.25, loss_weight=2.0)
    for kwargs in (
        dict(),
        dict(weight=weight, avg_factor=7),
        dict(avg_factor=torch.tensor(3.0)),
        dict(weight=weight[:, None].expand(50, 8), reduction_override='none'),
    ):
        value, grad = value_and_grad(lambda z: ours(z, target, **kwargs), logits)
        expected, expected_grad = value_and_grad(lambda z: theirs(z, target, **kwargs), logits)
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=1e-8)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-8)


def draw_case(draw):
    rows, classes = draw(st.integers(0, 6)), draw(st.integers(1, 7))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    logits = draw(st.sampled_from([0.1, 1.0, 5.0, 12.0])) * torch.randn(rows, classes, generator=generator)
    kind = draw(st.sampled_from(['index', 'hard', 'soft']))
    if kind == 'index':
        target = torch.randint(-1, classes + 1, (rows,), generator=generator)
        labels = F.one_hot(target.clamp(min=0), classes + 1)[:, :classes].double()
        known = (target != -1).double()[:, None].expand(rows, classes)
    else:
        target = torch.rand(rows, classes, generator=generator)
        target = (target < 0.3).float() if kind == 'hard' else target
        known = (torch.rand(rows, classes, generator=generator) < 0.8).double()
        target = torch.where(known == 1, target, -1.0)
        labels = target.double() * known
    weight = draw(st.sampled_from([None, (rows,), (rows, 1), (rows, classes), (rows * classes,)]))
    if weight is not None:
        weight = torch.rand(weight, generator=generator) * (torch.rand(weight, generator=generator) < 0.7)
    return logits, target, labels, known, weight


case = st.composite(draw_case)()
gamma = st.sampled_from([0.0, 0.3, 1.0, 2.0, 3.7, 7.0])


@settings(max_examples=500, deadline=None)
@given(
    case,
    gamma,
    gamma,
    st.sampled_from([0.0, 0.05, 0.2, 0.9]),
    st.sampled_from([None, 0.25, 0.9]),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.floats(0.5, 100),
)
def test_random_cases_equal_the_float64_reference(case, gamma_pos, gamma_neg, clip, alpha, dtype, avg_factor):
    logits, target, labels, known, weight = case
    logits = logits.to(dtype)
    loss = AsymmetricLoss(gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip, alpha=alpha)
    value, grad = value_and_grad(lambda z: loss(z, target, weight, avg_factor=avg_factor), logits)

    elementwise = (
        known
        if weight is None
        else known * weight.double().reshape(len(logits), max(weight.numel() // max(len(logits), 1), 1))
    )
    mmdet_avg_factor = avg_factor + torch.finfo(torch.float32).eps
    expected, expected_grad = value_and_grad(
        lambda z: (reference(z, labels, gamma_pos, gamma_neg, clip, alpha) * elementwise).sum() / mmdet_avg_factor,
        logits.double(),
    )
    exact = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=max(exact, 3e-7), atol=exact)
    # autograd of the reference is NaN in places where the closed form is finite; those have a test of their own.
    fine = expected_grad.isfinite()
    rounding = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, exact)
    torch.testing.assert_close(grad.double()[fine], expected_grad[fine], rtol=rounding, atol=max(exact, 1e-7))
    assert grad.isfinite().all()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype


def test_float32_elements_are_exact_to_rounding_on_the_whole_axis():
    logits = torch.linspace(-30, 30, 2001)[:, None]
    for gamma_pos, gamma_neg, clip in [(0, 0, 0.05), (0, 4, 0.05), (0, 3, 1e-6), (1, 2, 0), (0.5, 0.5, 0.2)]:
        for term, double_term in [
            (positive_term(logits, gamma_pos), positive_term(logits.double(), gamma_pos)),
            (negative_term(logits, gamma_neg, clip), negative_term(logits.double(), gamma_neg, clip)),
        ]:
            for single, double in zip(term, double_term):
                # p - m cancels near p = m: an absolute error of 1e-7 there, to the power gamma.
                torch.testing.assert_close(single.double(), double, rtol=3e-6, atol=2e-7)


# --------------------------------------------------------------------------------------------- gradients and stability


@pytest.mark.parametrize(
    'gamma_pos, gamma_neg, clip', [(0, 0, 0), (0, 4, 0.05), (1, 2, 0), (0.5, 0.3, 0.2), (3, 7, 0.05)]
)
@pytest.mark.parametrize('index', [False, True])
def test_gradcheck(gamma_pos, gamma_neg, clip, index):
    torch.manual_seed(1)
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True) * 3
    target = torch.tensor([0, 4, 5, -1, 2, 5, 5]) if index else torch.rand(7, 5)
    loss = AsymmetricLoss(gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip, alpha=0.3)
    for reduction in ('none', 'mean', 'sum'):
        assert torch.autograd.gradcheck(lambda z: loss(z, target, reduction_override=reduction), logits)


def test_detached_focusing_is_autograd_with_a_constant_factor():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(20, 5).double(), (torch.rand(20, 5) < 0.3).double()

    def by_autograd(z):
        p = z.sigmoid()
        p_m = (p - 0.05).clamp(min=0)
        focusing = labels * (1 - p) ** 1.5 + (1 - labels) * p_m**3
        return -(focusing.detach() * (labels * p.log() + (1 - labels) * (1 - p_m).log())).sum()

    loss = AsymmetricLoss(gamma_pos=1.5, gamma_neg=3, clip=0.05, detach_focusing=True, reduction='sum')
    value, grad = value_and_grad(lambda z: loss(z, labels), logits)
    expected, expected_grad = value_and_grad(by_autograd, logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)
    official = AsymmetricLoss(
        gamma_pos=1.5, gamma_neg=3, clip=0.05, eps=1e-8, disable_torch_grad_focal_loss=True, reduction='sum'
    )
    assert torch.equal(value_and_grad(lambda z: official(z, labels), logits)[1], grad)


def test_no_margin_may_be_none_as_in_the_official_code():
    # At p = 1/2: (1/2)^4 log(2).
    assert AsymmetricLoss(clip=None)(torch.zeros(1, 1), torch.zeros(1, 1)).item() == pytest.approx(math.log(2) / 16)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_may_be_a_mask(dtype):
    logits, labels = torch.randn(6, 4, dtype=dtype), torch.randint(0, 2, (6, 4))
    mask = torch.rand(6, 4) < 0.5
    for one, other in zip(
        value_and_grad(lambda z: AsymmetricLoss()(z, labels, mask), logits),
        value_and_grad(lambda z: AsymmetricLoss()(z, labels, mask.float()), logits),
    ):
        assert torch.equal(one, other)


def test_double_backward_is_refused():
    logits = torch.randn(3, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match='differentiated once only.*without create_graph=True'):
        torch.autograd.grad(AsymmetricLoss()(logits, torch.ones(3, 2)), logits, create_graph=True)


def test_hard_positive_keeps_its_gradient():
    logits = torch.tensor([[-20.0, -1e4, -80.0]])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        loss = AsymmetricLoss(reduction='sum')
        value, grad = value_and_grad(lambda z: loss(z, torch.ones(1, 3)), logits.to(dtype))
        torch.testing.assert_close(grad.float(), torch.full((1, 3), -1.0))
        assert value.item() == pytest.approx(logits.to(dtype).float().abs().sum().item(), rel=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('gamma', [0.0, 0.1, 0.5, 1.0, 4.0])
@pytest.mark.parametrize('clip', [0.0, 0.05])
@pytest.mark.parametrize('autocast', [False, True])
def test_finite_for_every_finite_logit(dtype, gamma, clip, autocast):
    edge = math.log(0.05 / 0.95)
    logits = torch.tensor([0, 1e-8, 0.5, 5, 16, 17, 20, 60, 88, 89, 104, 1e3, 1e4, edge])
    logits = torch.cat([logits, -logits])[:, None].to(dtype)
    for label in (0.0, 1.0, 0.5):
        loss = AsymmetricLoss(gamma_pos=gamma, gamma_neg=gamma, clip=clip, reduction='sum')
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            value, grad = value_and_grad(lambda z: loss(z, torch.full(z.shape, label)), logits, grad_output=3.0)
        assert value.isfinite() and grad.isfinite().all()
        expected = reference(logits.clamp(-700, 700), label, gamma, gamma, clip)
        within = (logits.abs() < 30) & expected.isfinite()
        elements = loss(logits, torch.full(logits.shape, label), reduction_override='none')
        torch.testing.assert_close(elements[within].double(), expected[within], rtol=1e-5, atol=1e-6)


def test_fractional_gamma_at_clipped_and_saturated_logits():
    # autograd of pow gives NaN here: p_m = 0 for the clipped negative, 1 - p = 0 for the saturated positive.
    logits, labels = torch.tensor([[-5.0, 120.0]]), torch.tensor([[0.0, 1.0]])
    loss = AsymmetricLoss(gamma_pos=0.5, gamma_neg=0.5, clip=0.2, reduction='sum')
    value, grad = value_and_grad(lambda z: loss(z, labels), logits)
    assert value.item() == 0 and torch.equal(grad, torch.zeros(1, 2))


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    'target',
    [
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[-1.0, 0.0]]),
        torch.tensor([0]),
        torch.tensor([2]),
        torch.tensor([-1]),
    ],
)
def test_non_finite_logits_are_not_hidden(bad, target):
    value, grad = value_and_grad(lambda z: AsymmetricLoss()(z, target), torch.tensor([[bad, 0.0]]))
    assert not value.isfinite() and not grad.isfinite().all()


def test_grad_mode_of_the_caller_is_left_alone():
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = AsymmetricLoss(detach_focusing=True)
    with torch.no_grad():
        value = loss(logits, torch.zeros(2, 3))
        assert not torch.is_grad_enabled() and not value.requires_grad
    loss(logits, torch.zeros(2, 3))
    assert torch.is_grad_enabled()


def test_backward_twice_through_a_retained_graph_accumulates():
    logits = torch.randn(4, 3, requires_grad=True)
    loss = AsymmetricLoss(clip=0)(logits, torch.ones(4, 3))
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * once)


@pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
def test_compiles_without_graph_breaks(backend):
    torch.manual_seed(0)
    loss = AsymmetricLoss(gamma_pos=1, gamma_neg=2, clip=0.05, alpha=0.25, class_weight=[1.0, 2.0, 0.5])
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    logits, weight = torch.randn(6, 3), torch.rand(6)
    for target in (torch.randint(0, 4, (6,)), torch.rand(6, 3)):
        value, grad = value_and_grad(lambda z: compiled(z, target, weight, avg_factor=3.0), logits)
        expected, expected_grad = value_and_grad(lambda z: loss(z, target, weight, avg_factor=3.0), logits)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------------------------------- targets


class Recorder(TorchDispatchMode):
    """Dtypes of every tensor of one shape that an operation returns."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.dtypes = shape, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if torch.is_tensor(tensor) and tensor.shape == self.shape:
                self.dtypes.add(tensor.dtype)
        return out


def test_index_targets_are_never_expanded():
    logits, target = torch.randn(11, 7, requires_grad=True), torch.randint(0, 8, (11,))
    loss = AsymmetricLoss(clip=0)
    loss.eval()  # the check for clipped negatives of the first training calls is not part of the loss
    with Recorder(logits.shape) as recorder:
        loss(logits, target).backward()
    assert recorder.dtypes == {torch.float32}
    with Recorder(logits.shape) as recorder:
        F.one_hot(target, 8)[:, :7].float()
    assert torch.int64 in recorder.dtypes


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize('kind', ['indices', 'labels', 'soft labels'])
@pytest.mark.parametrize('kwargs', [{}, dict(class_weight=[1.0, 2.0, 3.0], gamma_neg=0.5), dict(alpha=0.25, clip=None)])
def test_no_value_is_read_back_from_a_device(kwargs, kind, dtype):
    """Tensors on 'meta' have no values, and do not meet those of the CPU; the first calls look for bad targets."""
    loss = AsymmetricLoss(**kwargs).to('meta')
    for statistics in (ProbabilityStatistics(), ProbabilityStatistics(3)):
        loss.observe(statistics)
    with torch.device('meta'):
        logits = torch.zeros(8, 3, dtype=dtype, requires_grad=True)
        target = torch.zeros(8 if kind == 'indices' else (8, 3), dtype=torch.float32 if kind == 'soft labels' else int)
        weight, avg_factor = torch.ones(8), torch.ones(())
    with pytest.raises(RuntimeError, match='meta'):
        loss(logits, target, weight, avg_factor=avg_factor)
    loss._calls_left_to_check = 0
    for reduction in ('mean', 'none'):
        result = loss(logits, target, weight, None if reduction == 'none' else avg_factor, reduction_override=reduction)
        result.sum().backward()
        assert result.device.type == logits.grad.device.type == 'meta'
    assert statistics.sums.device.type == 'meta'


class _NoFloat64(TorchDispatchMode):
    """A device 'meta' that, as Apple's GPUs ('mps'), has no float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for one in torch.utils._pytree.tree_leaves(results):
            if torch.is_tensor(one) and one.is_meta and one.dtype == torch.float64:
                raise TypeError(f'float64 on a device that has none: {func}')
        return results


@pytest.mark.parametrize('per_class', [False, True])
@pytest.mark.parametrize('shape', [(8,), (8, 3)], ids=['indices', 'labels'])
def test_a_device_without_float64_is_asked_for_none(shape, per_class, monkeypatch):
    assert dtype_of_sums(torch.device('cuda')) == torch.float64
    assert dtype_of_sums(torch.device('mps')) == torch.float32
    for module in ('models.asymmetric_loss', 'hooks.adaptive_asymmetry_hook'):
        monkeypatch.setattr(f'asl_mmdet.{module}.dtype_of_sums', lambda device: torch.float32)
    loss = AsymmetricLoss(gamma_neg=4, gamma_pos=1, clip=0.05).to('meta')
    loss._calls_left_to_check = 0
    model = torch.nn.ModuleDict(dict(loss=loss, fc=torch.nn.Linear(1, 3, device='meta')))
    model.num_classes = 3
    hook = AdaptiveAsymmetryHook(per_class=per_class)
    runner = SimpleNamespace(model=model, optim_wrapper=None)
    with _NoFloat64():
        hook.before_run(runner)
        hook.before_train(runner)
        watched = ProbabilityStatistics()
        for of_hook, statistics in hook._watched.values():
            hook._adapt(of_hook, statistics.take())  # of no batch
        for _ in range(2):
            logits = torch.zeros(8, 3, device='meta', requires_grad=True)
            loss(logits, torch.zeros(shape, dtype=int, device='meta')).backward()
            assert logits.grad.dtype == torch.float32
            for of_hook, statistics in hook._watched.values():
                hook._adapt(of_hook, statistics.take())
            loss.observe(watched)  # two at once
        assert watched.take().dtype == torch.float32
        with pytest.raises(TypeError, match='float64'):
            torch.zeros((), dtype=torch.float64, device='meta')


def test_unknown_labels_contribute_nothing():
    logits = torch.randn(2, 3)
    loss = AsymmetricLoss(clip=0, reduction='sum')
    target = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    value, grad = value_and_grad(lambda z: loss(z, target), logits)
    kept = loss(logits[:1, [0, 2]], target[:1, [0, 2]])
    torch.testing.assert_close(value, kept)
    assert torch.equal(grad == 0, target == -1)
    value, grad = value_and_grad(lambda z: AsymmetricLoss(ignore_index=255)(z, torch.tensor([255, 3])), logits)
    assert torch.equal(grad[0], torch.zeros(3)) and (grad[1] != 0).any()


@pytest.mark.parametrize(
    'target',
    [
        torch.tensor([[1, 0], [0, 0]]),
        torch.tensor([[True, False], [False, False]]),
        torch.tensor([[1, 0], [0, 0]], dtype=torch.uint8),
        torch.tensor([0, 2]),
        torch.tensor([0, 2], dtype=torch.int32),
    ],
)
def test_dtypes_of_targets(target):
    logits = torch.tensor([[0.3, -0.2], [1.0, 2.0]])
    expected = AsymmetricLoss()(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(AsymmetricLoss()(logits, target), expected, rtol=1e-6, atol=0)


def test_one_class_and_no_rows():
    loss = AsymmetricLoss(gamma_pos=1, gamma_neg=2, clip=0)
    target = torch.tensor([0, 1])
    dense = loss(torch.tensor([[0.5], [1.5]]), torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(loss(torch.tensor([[0.5], [1.5]]), target), dense)
    for target in (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)):
        for kwargs in (dict(), dict(avg_factor=0), dict(avg_factor=torch.tensor(0.0)), dict(reduction_override='sum')):
            value, grad = value_and_grad(lambda z: loss(z, target, torch.zeros(0), **kwargs), torch.zeros(0, 4))
            assert value.item() == 0 and grad.shape == (0, 4)


def test_class_weight_scales_both_terms_of_a_class():
    logits, target = torch.randn(5, 3), torch.randint(0, 4, (5,))
    plain = AsymmetricLoss(clip=0)(logits, target, torch.full((5,), 2.0), reduction_override='none')
    weighted = AsymmetricLoss(clip=0, class_weight=[1, 0, 3])(
        logits, target, torch.full((5,), 2.0), reduction_override='none'
    )
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 0.0, 3.0]))
    assert list(AsymmetricLoss(class_weight=[1.0, 2.0]).state_dict()) == []


def test_class_weight_of_as_many_classes_as_rows_in_blocks_of_rows(monkeypatch):
    monkeypatch.setattr('asl_mmdet.models.eager_pass.BLOCK', 3)
    # With alpha = 1 negatives have no loss, and at p = 1/2 a positive of the last class has 4 log(2).
    loss = AsymmetricLoss(alpha=1, clip=0, class_weight=[1, 2, 4], reduction='sum', fused=False)
    assert loss(torch.zeros(3, 3), torch.tensor([[0.0, 0, 1]] * 3)).item() == pytest.approx(12 * math.log(2))


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(gamma_pos=-1), 'gamma_pos=-1'),
        (dict(gamma_neg=math.nan), 'gamma_neg=nan'),
        (dict(clip=1.0), r'clip=1.0 .* \[0, 1\)'),
        (dict(clip=-0.1), 'clip=-0.1'),
        (dict(alpha=1.5), 'alpha=1.5'),
        (dict(use_sigmoid=False), 'use_sigmoid=False'),
        (dict(reduction='avg'), "reduction='avg'"),
        (dict(loss_weight=math.inf), 'loss_weight=inf'),
        (dict(class_weight=[1.0, -2.0]), r'class_weight=\[1.0, -2.0\]'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AsymmetricLoss(**kwargs)


@pytest.mark.parametrize('name', ['gamma_pos', 'gamma_neg', 'clip', 'alpha', 'loss_weight', 'ignore_index'])
def test_what_is_no_number_is_named(name):
    for value in ('four', [1.0], *([] if name in ('clip', 'alpha') else [None])):
        with pytest.raises(TypeError, match=rf'{name}=\W*{value[0] if isinstance(value, list) else value}'):
            AsymmetricLoss(**{name: value})


LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    'pred, target, kwargs, error, message',
    [
        (LOGITS, torch.tensor([0, 4]), {}, ValueError, r'target .* holds 4: .* \[0, 3\] \(3 is background\)'),
        (LOGITS, torch.tensor([0, -2]), {}, ValueError, 'target .* holds -2'),
        (
            LOGITS,
            torch.tensor([[0, 1, 2], [0, 0, 0]]),
            {},
            ValueError,
            r'target .* holds 2: labels must lie in \[0, 1\]',
        ),
        (LOGITS, torch.full((2, 3), -0.5), {}, ValueError, 'target .* holds -0.5'),
        (LOGITS, torch.full((2, 3), math.nan), {}, ValueError, 'target .* holds nan'),
        (LOGITS, torch.zeros(2, 4), {}, ValueError, r'target .* \(2,\) .* \(2, 3\) .* got \(2, 4\)'),
        (LOGITS, torch.zeros(3, dtype=torch.int64), {}, ValueError, r'got \(3,\) of torch.int64'),
        (LOGITS, torch.zeros(2), {}, TypeError, 'must be integer, got torch.float32'),
        (LOGITS, [0, 1], {}, ValueError, 'got list'),
        (
            LOGITS.long(),
            torch.zeros(2, 3),
            {},
            TypeError,
            r'pred .* floating-point logits, got \(2, 3\) of torch.int64',
        ),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), {}, ValueError, r'pred .* shape \(N, C\)'),
        (LOGITS, torch.zeros(2, 3), dict(weight=torch.zeros(3)), ValueError, r'weight .* got \(3,\)'),
        (LOGITS, torch.zeros(2, 3), dict(weight=0.5), ValueError, r'weight .* a tensor of .* got float'),
        (LOGITS, torch.zeros(2, 3), dict(weight=torch.zeros(2, requires_grad=True)), ValueError, r'weight.detach\(\)'),
        (LOGITS, torch.zeros(2, 3, requires_grad=True), {}, ValueError, r'target.detach\(\)'),
        (LOGITS, torch.zeros(2, 3), dict(reduction_override='sum', avg_factor=2), ValueError, 'avg_factor'),
        (LOGITS, torch.zeros(2, 3), dict(reduction_override='max'), ValueError, "reduction_override='max'"),
    ],
)
def test_bad_input_is_named(pred, target, kwargs, error, message):
    with pytest.raises(error, match=message):
        AsymmetricLoss()(pred, target, **kwargs)


def test_class_weight_of_another_length_or_kind_is_named():
    with pytest.raises(TypeError, match=r"class_weight=\['four'\] .* one number for each class"):
        AsymmetricLoss(class_weight=['four'])
    with pytest.raises(ValueError, match='class_weight .* 2 entries, but pred has 3'):
        AsymmetricLoss(class_weight=[1.0, 2.0])(LOGITS, torch.zeros(2, 3))


def test_ignore_index_that_is_a_label_is_refused_for_labels_only():
    loss = AsymmetricLoss(ignore_index=0)
    assert loss(LOGITS, torch.tensor([0, 0])).item() == 0
    with pytest.raises(ValueError, match='ignore_index=0'):
        loss(LOGITS, torch.zeros(2, 3))
    with pytest.raises(ValueError, match='ignore_index=1'):
        asymmetric_loss(torch.zeros(2, 3), torch.zeros(2, 3), ignore_index=1)


def test_values_that_go_unchecked_end_in_nan():
    for target in (torch.tensor([0, 4]), torch.tensor([-2, 0]), torch.tensor([[2.0, 0, 0], [0, 0, 0]])):
        assert asymmetric_loss(LOGITS, target).isnan()


# -------------------------------------------------------------------------------------------------- traps of detectors


def test_one_warning_when_every_negative_is_clipped():
    at_start = torch.full((6, 4), math.log(0.01 / 0.99))  # bias_prob = 0.01
    loss = AsymmetricLoss(gamma_pos=1, gamma_neg=2, clip=0.05)
    with pytest.warns(UserWarning, match=r'all 23 negatives .* clip=0.05 .* 0.01\).* clip=0.0') as record:
        for _ in range(3):
            loss(at_start, torch.tensor([4, 4, 4, 4, 4, 1]))
    assert len(record) == 1


@pytest.mark.parametrize(
    'loss, logit',
    [(AsymmetricLoss(clip=0.0), -4.6), (AsymmetricLoss(clip=0.05), 0.0), (AsymmetricLoss(clip=0.05).eval(), -4.6)],
)
def test_no_warning_otherwise(loss, logit):
    logits = torch.full((6, 4), -4.6)
    logits[0, 0] = logit
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loss(logits, torch.full((6,), 4))
        loss(logits, torch.zeros(6, 4))
        loss(logits, torch.full((6, 4), -1.0))
        loss(logits[:0], torch.zeros(0, 4))


def test_a_confident_positive_does_not_hide_clipped_negatives():
    logits = torch.full((2, 3), -4.6)
    logits[0, 1] = 5.0
    for target in (torch.tensor([1, 3]), torch.tensor([[0.0, 1, 0], [0, 0, 0]])):
        with pytest.warns(UserWarning, match='all 5 negatives'):
            AsymmetricLoss()(logits, target)


@pytest.mark.parametrize('head', ['FCOSHead', 'ATSSHead', 'RetinaHead', 'GFLHead'])
def test_head_without_use_sigmoid_is_refused_at_build(head):
    cfg = dict(type=head, num_classes=4, in_channels=32, feat_channels=32, loss_cls=dict(type='AsymmetricLoss'))
    if head in ('ATSSHead', 'RetinaHead', 'GFLHead'):
        cfg['anchor_generator'] = dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]
        )
    with pytest.raises(
        ValueError, match=r"loss_cls is an AsymmetricLoss.*lacks use_sigmoid=True.*type='AsymmetricLoss'"
    ):
        MODELS.build(cfg)
    cfg['loss_cls']['use_sigmoid'] = True
    assert MODELS.build(cfg).cls_out_channels == 4


def test_config_written_for_mmpretrain_works():
    loss = MODELS.build(
        dict(
            type='AsymmetricLoss',
            gamma_pos=0.0,
            gamma_neg=4.0,
            clip=0.05,
            reduction='mean',
            loss_weight=1.0,
            use_sigmoid=True,
            eps=1e-8,
        )
    )
    logits, labels = torch.randn(4, 6), (torch.rand(4, 6) < 0.3).float()
    expected = reference(logits, labels, 0, 4, 0.05).sum() / 4
    assert loss(logits, labels, avg_factor=4).item() == pytest.approx(expected.item(), rel=1e-6)


def test_targets_with_quality_scores_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match='got tuple; a head that gives quality scores .* keeps its own loss'):
        AsymmetricLoss()(torch.zeros(2, 3), (torch.zeros(2, dtype=torch.long), torch.zeros(2)))


@pytest.mark.parametrize('shape', [(2, 3, 8, 8), (2, 192, 3)])
def test_heads_of_heat_maps_and_grids_are_told_to_keep_their_loss(shape):
    with pytest.raises(ValueError, match='got .*CenterNet, or grids, as YOLOv3, keeps its own loss'):
        AsymmetricLoss()(torch.zeros(shape), torch.zeros(shape))
