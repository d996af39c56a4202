"""The pass as plain arithmetic against the two terms and the float64 reference; as a kernel against both."""

import gc
import itertools
import warnings
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._inductor import metrics
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from asl_mmdet import AsymmetricLoss
from asl_mmdet.models import fused_pass as module
from asl_mmdet.models.asymmetric_loss import ProbabilityStatistics, asymmetric_loss
from asl_mmdet.models.eager_pass import eager_pass
from asl_mmdet.models.one_pass import LARGEST_LOGIT, Setting, exp, log1p, one_pass, power
from tests.test_models.test_asymmetric_loss import case, gamma, value_and_grad

ASL = Setting(0.0, 4.0, 0.05, None, -1, False, hard=False)


def assert_same(outcome, expected, rtol=1e-6, atol=1e-7):
    torch.testing.assert_close(tuple(outcome), tuple(expected), rtol=rtol, atol=atol)


@settings(max_examples=200)
@given(
    case,
    gamma,
    gamma,
    st.sampled_from([0.0, 1e-3, 0.05, 0.2, 0.9]),
    st.sampled_from([None, 0.25]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 'total', 'class']),
    st.sampled_from([torch.float64, torch.float32]),
    st.floats(0.01, 100),
    st.sampled_from([1, 20, 1000]),
)
def test_plain_pass_equals_the_two_terms(
    case, gamma_pos, gamma_neg, clip, alpha, detach_focusing, as_tensors, statistics, dtype, scale, block
):
    logits, target, _, _, weight = case
    if weight is not None:
        weight = weight.reshape(len(logits), max(weight.numel() // max(len(logits), 1), 1)).to(dtype)
    hard = target.ndim == 1 or bool(((target == 0) | (target == 1) | (target == -1)).all())
    setting = Setting(gamma_pos, gamma_neg, clip, alpha, -1, detach_focusing, hard)
    sums = None if statistics is None else torch.rand(4, logits.shape[1] if statistics == 'class' else 1).double()
    tensors = (None, None)
    if as_tensors:
        setting = setting._replace(gamma_neg=None, clip=None)
        tensors = (torch.full((logits.shape[1],), gamma_neg, dtype=dtype), torch.tensor(clip, dtype=dtype))
    inputs = (logits.to(dtype), target, weight, torch.tensor(scale, dtype=dtype), *tensors, sums)
    exact = 1e-6 if dtype == torch.float32 else 1e-12
    # With soft labels two terms of this size may cancel.
    atol = exact * max(1.0, scale)
    outcome = one_pass(setting, *inputs)
    with mock.patch('asl_mmdet.models.eager_pass.BLOCK', block):
        assert_same(outcome, eager_pass(setting, *inputs), 2 * exact, atol)
    assert outcome.loss.isfinite()
    if hard:
        assert_same(one_pass(setting._replace(hard=False), *inputs), outcome, 2 * exact, atol)


@pytest.mark.parametrize('gamma_neg', [0.0, 0.3, 1.0, 2.0, 4.0])
@pytest.mark.parametrize('clip', [0.0, 1e-3, 0.05, 0.7])
@pytest.mark.parametrize('hard', [True, False])
def test_no_logit_is_too_large(gamma_neg, clip, hard):
    logits = [0, 1e-8, 2.9444, 3, 17, 79, 81, 87, 87.5, 88, 88.5, 89, 104, 1e4, 1e10, 1e20]
    logits = torch.tensor([*logits, *(-z for z in logits)]).repeat(2, 1)
    target = torch.tensor([0.0, 1.0])[:, None].expand_as(logits).contiguous()
    setting = ASL._replace(gamma_pos=0.5, gamma_neg=gamma_neg, clip=clip, hard=hard)
    outcome = one_pass(setting, logits, target, None, torch.tensor(1.0), None, None, None)
    expected = eager_pass(setting, logits, target, None, torch.tensor(1.0), None, None, None)
    assert outcome.grad.isfinite().all()
    assert_same(outcome, expected)
    # One by one: where a logit is too large for a batch's first way, all of it goes the second.
    for z, y in zip(logits.split(1, 1), target.split(1, 1)):
        inputs = (z, y, None, torch.tensor(1.0), None, None, None)
        assert_same(one_pass(setting, *inputs), eager_pass(setting, *inputs))
    assert (outcome.grad[0][logits[0].sigmoid() <= clip] == 0).all()


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('hard', [True, False])
def test_logits_that_are_no_numbers_are_not_hidden(value, hard):
    logits = torch.tensor([[value, 0.5]])
    for target in (torch.zeros(1, 2), torch.ones(1, 2), -torch.ones(1, 2)):
        outcome = one_pass(ASL._replace(hard=hard), logits, target, None, torch.tensor(1.0), None, None, None)
        assert outcome.loss.isnan() and outcome.grad[0, 0].isnan() and outcome.grad[0, 1].isfinite()
        # The kernel makes numbers of NaN's bits.
        many, labels = logits.repeat(20, 20), target.repeat(20, 20)
        outcome = module.fused_pass(ASL, many, labels, None, torch.tensor(1.0), None, None, None)
        assert outcome.loss.isnan() and outcome.grad[:, ::2].isnan().all() and outcome.grad[:, 1::2].isfinite().all()


def test_odd_labels_are_poisonous():
    logits = torch.zeros(2, 3)
    for target, hard, odd in (
        (torch.tensor([[0.0, 1.0, 0.5], [0, 0, -1]]), True, True),
        (torch.tensor([[0.0, 1.0, 0.5], [0, 0, -1]]), False, False),
        (torch.tensor([[0.0, 1.0, 1.5], [0, 0, 0]]), False, True),
        (torch.tensor([[0.0, float('nan'), 1.0], [0, 0, 0]]), False, True),
        (torch.tensor([[0.0, float('inf'), 1.0], [0, 0, 0]]), True, True),
        (torch.tensor([[0, 2, 1], [0, 0, 0]]), True, True),
        (torch.tensor([[0, 255, 1], [0, 0, 0]], dtype=torch.uint8), True, True),
        (torch.tensor([3, -1]), True, False),
        (torch.tensor([4, 0]), True, True),
        (torch.tensor([-2, 0]), True, True),
    ):
        outcome = one_pass(ASL._replace(hard=hard), logits, target, None, torch.tensor(1.0), None, None, None)
        assert outcome.loss.isnan().item() is odd and outcome.grad.isnan().any().item() is odd


# ----------------------------------------------------------------------------------------------------------- the kernel


def batch(rows, classes, kind, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    logits = (3 * torch.randn(rows, classes, generator=generator)).to(dtype)
    labels = (torch.rand(rows, classes, generator=generator) < 0.1).float()
    labels[:, 0] = -1
    target = {
        'dense': labels,
        'integer': labels.to(torch.int8),
        'soft': labels * 0.9,
        'index': torch.randint(-1, classes + 1, (rows,), generator=generator),
    }[kind]
    return logits, target.where(target >= 0, -1) if kind == 'soft' else target


KERNELS = [
    ('dense', torch.float32, dict()),
    ('soft', torch.float32, dict()),
    ('index', torch.float32, dict(gamma_pos=1.0, gamma_neg=2.0, clip=0.0)),
    ('integer', torch.bfloat16, dict(gamma_neg=0.0, clip=0.0)),
    ('index', torch.float16, dict(gamma_pos=2.0, gamma_neg=2.0, clip=0.0, alpha=0.25)),
    ('dense', torch.float64, dict(gamma_neg=2.5, clip=0.01, detach_focusing=True)),
]


@pytest.mark.parametrize(
    'kind, dtype, kwargs, weighted',
    [
        # With and without weights is a kernel each.
        pytest.param(*kernel, weighted, marks=[pytest.mark.slow] * (not weighted and kernel[1] != torch.float32))
        for kernel, weighted in itertools.product(KERNELS, (False, True))
    ],
)
def test_kernel_equals_single_operations(kind, dtype, kwargs, weighted):
    # Of one thread, and of all.
    for rows in (37, 700):
        logits, target = batch(rows, 50, kind, dtype)
        weight = torch.rand(rows) if weighted else None
        fused, eager = (AsymmetricLoss(fused=choice, **kwargs) for choice in (True, False))
        found, wanted = ProbabilityStatistics(), ProbabilityStatistics()
        fused.observe(found)
        eager.observe(wanted)
        value, grad = value_and_grad(lambda z: fused(z, target, weight, avg_factor=7.0), logits, 3.0)
        expected, expected_grad = value_and_grad(lambda z: eager(z, target, weight, avg_factor=7.0), logits, 3.0)
        half = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-6)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(grad, expected_grad, rtol=half, atol=1e-7 if half == 1e-6 else 1e-3)
        torch.testing.assert_close(found.take(), wanted.take(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['dense', 'index'])
def test_sums_of_rows_are_the_sums(kind):
    """As on a GPU, and of class indices."""
    setting = ASL._replace(hard=True)
    for rows, classes in ((37, 50), (1, 9), (9, 1)):
        logits, target = batch(rows, classes, kind)
        for sums in (None, torch.rand(4, 1).double(), torch.rand(4, classes).double()):
            inputs = (logits, target, torch.rand(rows, 1), torch.tensor(0.5), None, None, sums)
            outcome = one_pass(setting._replace(by_rows=True), *inputs)
            assert outcome.loss.shape == (rows,)
            assert_same(outcome._replace(loss=outcome.loss.sum()), one_pass(setting, *inputs))


def test_a_kernel_is_made_for_the_number_of_classes_and_any_number_of_rows(monkeypatch):
    widths = []

    def compile(graph, inputs, options):
        widths.append(next(one.shape[1] for one in inputs if torch.is_tensor(one) and one.ndim == 2))
        return graph

    monkeypatch.setattr(torch._inductor, 'compile', compile)
    monkeypatch.setattr(module, 'ROWS', 64)
    module._KERNELS.clear()
    setting = ASL._replace(hard=True, by_rows=True)
    inputs = (None, torch.tensor(1.0), None, None, None)
    # The batch that is compiled has 64 rows, unless that is the number of classes.
    for rows, classes, kernels in ((40, 30, 1), (7, 30, 1), (300, 30, 1), (40, 64, 2), (64, 64, 2), (65, 64, 2)):
        logits, target = batch(rows, classes, 'index')
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = module.compiled_pass(setting, logits, target, *inputs)
        assert_same(found, eager_pass(ASL, logits, target, *inputs), 2e-6)
        assert len(module._KERNELS) == kernels
    assert [type(width) for width in widths] == [int, int] and widths == [30, 64]
    module._KERNELS.clear()


@pytest.mark.parametrize(
    'kind, classes, rows', [('index', 30, (40, 41, 300, 7)), ('dense', 32, (40, 16, 1000)), ('dense', 11, (7, 9, 41))]
)
def test_one_kernel_serves_all_numbers_of_rows(kind, classes, rows):
    loss = AsymmetricLoss(fused=True, gamma_neg=3.0)
    module._KERNELS.clear()
    torch._dynamo.utils.counters.clear()
    loss(*batch(rows[0], classes, kind))
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1
    assert not torch._dynamo.utils.counters['graph_break']
    with torch._dynamo.config.patch(error_on_recompile=True):
        for count in rows[1:]:
            logits, target = batch(count, classes, kind)
            value, grad = value_and_grad(lambda z: loss(z, target), logits)
            eager = AsymmetricLoss(fused=False, gamma_neg=3.0)
            expected, expected_grad = value_and_grad(lambda z: eager(z, target), logits)
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
            torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-8)
    assert len(module._KERNELS) == 1


def test_a_small_batch_is_a_matter_of_one_thread(monkeypatch):
    monkeypatch.setattr(module, '_KERNELS', {})
    loss, threads = AsymmetricLoss(fused=True), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for rows, parallel in ((128, [0]), (409, []), (410, [1]), (44_000, [])):
            with warnings.catch_warnings(), torch._inductor.config.patch(force_disable_caches=True):
                warnings.simplefilter('ignore')  # torch tells that its caches are off
                _, sources = run_and_get_code(loss, *batch(rows, 80, 'dense'))
            assert [source.count('omp parallel') for source in sources] == parallel
    finally:
        torch.set_num_threads(threads)


def test_a_kernel_keeps_none_of_what_it_was_compiled_with():
    logits = torch.randn(40, 1237, requires_grad=True)
    asymmetric_loss(logits, (torch.rand(40, 1237) < 0.1).float(), gamma_neg=3.0, fused=True)
    gc.collect()
    examples = [
        kept for kept in gc.get_objects() if type(kept) is torch.Tensor and kept.ndim == 2 and kept.shape[1] == 1237
    ]
    assert {len(tensor) for tensor in examples} <= {40}


def test_a_default_device_does_not_matter_to_the_kernel():
    logits, targets = torch.randn(200, 80), (torch.rand(200, 80) < 0.1).float()
    expected = asymmetric_loss(logits, targets, fused=False)
    with torch.device('meta'):
        loss = asymmetric_loss(logits, targets, fused=True)
    torch.testing.assert_close(loss, expected)


def test_rows_of_any_length_are_added_up_exactly():
    """One large loss and many small ones, of which float32 would lose some if they were added one by one."""
    for classes in (200, 30_000):
        logits = torch.full((2, classes), -7.0)
        logits[:, ::16] = -5.0
        logits[0, 0] = -80.0
        target = torch.tensor([0, classes])
        loss = AsymmetricLoss(fused=True, gamma_neg=1.0, clip=0.0, reduction='sum')
        expected = AsymmetricLoss(gamma_neg=1.0, clip=0.0, reduction='sum')(logits.double(), target).item()
        assert loss(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_values_that_a_hook_changes_need_no_new_kernel():
    logits, target = batch(60, 20, 'dense')
    loss, eager = AsymmetricLoss(fused=True), AsymmetricLoss(fused=False)
    statistics = ProbabilityStatistics(20)
    for one in (loss, eager):
        one.make_adaptive('gamma_neg', (20,), torch.device('cpu'))
    loss.observe(statistics)
    loss(logits, target)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for value in (0.0, 0.7, 3.0):
            for one in (loss, eager):
                one.gamma_neg.fill_(value)
            result, grad = value_and_grad(lambda z: loss(z, target), logits)
            expected, expected_grad = value_and_grad(lambda z: eager(z, target), logits)
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)
            torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-8)
    p = logits.double().sigmoid()
    sums = statistics.take() / 4
    positive, negative = (target == 1).double(), (target == 0).double()
    expected = torch.stack([(p * positive).sum(0), positive.sum(0), ((1 - p) * negative).sum(0), negative.sum(0)])
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)


def test_a_changed_attribute_needs_one_more_kernel_for_all_its_values():
    logits, target = batch(60, 20, 'dense')
    loss = AsymmetricLoss(fused=True)
    loss(logits, target)
    for name, values in (('gamma_neg', (1.0, 2.5, 3.0)), ('clip', (0.1, 0.0, 0.2))):
        setattr(loss, name, values[0])
        loss(logits, target)
        before = len(module._KERNELS)
        for value in values:
            setattr(loss, name, value)
            eager = AsymmetricLoss(fused=False, gamma_neg=loss.gamma_neg, clip=loss.clip)
            result, grad = value_and_grad(lambda z: loss(z, target), logits)
            expected, expected_grad = value_and_grad(lambda z: eager(z, target), logits)
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)
            torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-8)
        assert len(module._KERNELS) == before


def test_values_may_change_between_the_passes():
    logits, target = batch(60, 20, 'dense')
    loss = AsymmetricLoss()
    loss.make_adaptive('gamma_neg', (), torch.device('cpu'))
    _, expected = value_and_grad(lambda z: loss(z, target), logits)
    logits.requires_grad_()
    value = loss(logits, target)
    loss.gamma_neg.fill_(1.0)
    for _ in range(2):
        (grad,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert torch.equal(grad, expected)


@pytest.mark.parametrize(
    'target, message',
    [
        (torch.tensor([0, 31]), 'holds 31: class indices'),
        (torch.tensor([0, -2]), 'holds -2: class indices'),
        (torch.full((2, 30), 1.5), 'holds 1.5: labels'),
        (torch.full((2, 30), 2), 'holds 2: labels'),
    ],
)
def test_bad_labels_are_named_by_the_kernel_too(target, message):
    with pytest.raises(ValueError, match=message):
        AsymmetricLoss(fused=True)(torch.zeros(2, 30), target)


# --------------------------------------------------------------------------------------------------------- the backward


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_a_kept_graph_gives_the_same_gradient_again(fused, dtype):
    logits, target = batch(30, 20, 'dense', dtype)
    logits.requires_grad_()
    loss = AsymmetricLoss(fused=fused)(logits, target, avg_factor=5.0)
    (first,) = torch.autograd.grad(2 * loss, logits, retain_graph=True)
    first = first.clone()
    (again,) = torch.autograd.grad(2 * loss, logits, retain_graph=True)
    (other,) = torch.autograd.grad(6 * loss, logits)
    torch.testing.assert_close(again, first, rtol=1e-3 if dtype == torch.float16 else 1e-6, atol=0)
    torch.testing.assert_close(other, 3 * first, rtol=4e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)


def test_the_usual_loss_scale_of_float16_does_not_overflow():
    logits, target = batch(30, 20, 'dense', torch.float16)
    loss = AsymmetricLoss()
    _, grad = value_and_grad(lambda z: loss(z, target, avg_factor=30.0), logits, 65536.0)
    _, exact = value_and_grad(lambda z: loss(z, target, avg_factor=30.0), logits.double(), 65536.0)
    assert grad.isfinite().all()
    torch.testing.assert_close(grad.double(), exact, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('kind', ['dense', 'index'])
def test_one_tensor_of_the_logits_size_is_kept_for_the_backward_pass(fused, kind):
    logits, target = batch(64, 50, kind)
    kept = {}
    logits.requires_grad_()

    def pack(tensor):
        if tensor.data_ptr() not in (logits.data_ptr(), target.data_ptr()):
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        AsymmetricLoss(fused=fused)(logits, target, torch.ones(64), avg_factor=3.0).backward()
    assert sum(kept.values()) <= logits.numel() + 2 * len(logits)


def peak_of_memory(function):
    """Bytes, of everything that is allocated within ``function``."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == '[memory]']
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes))


@pytest.mark.parametrize(
    'kind, dtype, weighted',
    [
        ('dense', torch.float32, False),
        ('index', torch.float32, True),
        pytest.param('index', torch.float32, False, marks=pytest.mark.slow),
        pytest.param('index', torch.bfloat16, True, marks=pytest.mark.slow),
        pytest.param('dense', torch.float16, False, marks=pytest.mark.slow),
    ],
)
def test_a_kernel_makes_no_tensor_of_the_logits_size_but_the_gradient(kind, dtype, weighted):
    logits, target = batch(1000, 80, kind, dtype)
    weight = torch.rand(1000) if weighted else None
    logits.requires_grad_()
    loss = AsymmetricLoss(gamma_pos=1.0, gamma_neg=2.0, clip=0.0, fused=True)

    def step():
        loss(logits, target, weight, avg_factor=3.0).backward()
        logits.grad = None

    step()
    rows = 2 * 4 * len(logits)
    assert peak_of_memory(step) <= logits.numel() * logits.element_size() + rows + 1000


class Allocated(TorchDispatchMode):
    """Counts the operations that return a new tensor of so many elements."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.count = numel, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_new = not func._schema.is_mutable and 'detach' not in str(func)
        if torch.is_tensor(result) and result.numel() == self.numel and is_new:
            self.count += 1
        return result


def test_the_backward_pass_makes_no_tensor():
    logits, target = batch(64, 50, 'dense')
    logits.requires_grad_()
    loss = AsymmetricLoss()(logits, target, avg_factor=3.0)
    with Allocated(logits.numel()) as mode:
        (2 * loss).backward()
    assert mode.count == 0 and logits.grad is not None


# ----------------------------------------------------------------------------------------------------------- the choice


@pytest.fixture
def no_compiler(monkeypatch):
    def fail(*args):
        raise RuntimeError('no g++\nlong story')

    monkeypatch.setattr(module, 'compiled_pass', fail)
    monkeypatch.setattr(module, '_WITHOUT_COMPILER', set())


def test_without_a_compiler_single_operations_serve_and_say_so_once(no_compiler):
    logits, target = batch(500, 40, 'dense')
    loss = AsymmetricLoss()
    with pytest.warns(UserWarning, match=r'torch.compile does not work on cpu here \(RuntimeError: no g\+\+\)'):
        value = loss(logits, target)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert loss(logits, target) == value == AsymmetricLoss(fused=False)(logits, target)
        loss(*batch(10, 10, 'dense'))


def test_a_kernel_that_is_insisted_on_fails_without_a_compiler(no_compiler):
    with pytest.raises(RuntimeError, match='no g'):
        AsymmetricLoss(fused=True)(*batch(10, 10, 'dense'))


def test_small_batches_do_without_a_kernel(no_compiler):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        AsymmetricLoss()(*batch(10, 10, 'dense'))


def test_the_function_takes_the_same_choice():
    logits, target = batch(37, 50, 'dense')
    values = [asymmetric_loss(logits, target, fused=fused, scale=0.5).item() for fused in (True, False)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[1] == pytest.approx(0.5 * asymmetric_loss(logits, target, reduction='none').sum().item(), rel=1e-6)


def test_a_mistake_of_the_caller_does_not_turn_the_kernel_off(monkeypatch):
    monkeypatch.setattr(module, '_WITHOUT_COMPILER', set())
    logits, target = batch(500, 40, 'dense')
    with pytest.raises(RuntimeError):
        asymmetric_loss(logits, target, torch.ones(7, 40))
    with pytest.raises(RuntimeError, match='torch.func'), warnings.catch_warnings():
        warnings.simplefilter('error')
        torch.func.grad(lambda z: asymmetric_loss(z, target))(logits)
    assert not module._WITHOUT_COMPILER


@pytest.mark.parametrize(
    ('fused', 'logits', 'expected'),
    [
        (None, dict(is_cuda=True), module._fused_where_possible),
        (True, dict(is_cuda=True), module.fused_pass),
        (False, dict(is_cuda=True), module.eager_pass),
        (None, dict(is_cuda=True, dtype=torch.float64), module.eager_pass),
        (True, dict(is_cuda=True, dtype=torch.float64), module.eager_pass),
        (None, dict(is_cuda=True, size=0), module.eager_pass),
        (True, dict(is_cpu=True, size=0), module.eager_pass),
        (None, dict(is_cpu=True, size=module.WORTH_COMPILING - 1), module.eager_pass),
        (None, dict(is_cpu=True, dtype=torch.float64), module._fused_where_possible),
        (True, dict(is_cpu=True, size=1), module.fused_pass),
        (None, dict(), module.eager_pass),
    ],
)
def test_the_way_is_chosen_by_device_size_and_dtype(fused, logits, expected):
    known = dict(is_cuda=False, is_cpu=False, dtype=torch.float32, size=module.WORTH_COMPILING) | logits
    size = known.pop('size')
    assert module.choose_pass(SimpleNamespace(numel=lambda: size, **known), fused) is expected


def test_a_kernel_for_another_device_is_refused():
    logits = torch.zeros(2, 3, device='meta')
    with pytest.raises(RuntimeError, match=r'fused=True: .* pred lies on meta; fused=None computes single operations'):
        module.fused_pass(ASL, logits, logits, None, 1.0, None, None, None)


def test_numbers_of_numpy_are_numbers(monkeypatch):
    monkeypatch.setattr(module, '_WITHOUT_COMPILER', set())
    logits, target = batch(500, 40, 'dense')
    numbers = dict(gamma_neg=2.0, clip=0.125, alpha=0.25, loss_weight=0.5)
    of_numpy = AsymmetricLoss(**{name: np.float32(value) for name, value in numbers.items()})
    for avg_factor in (500, np.float32(500), np.int64(500), torch.tensor(500)):
        found = of_numpy(logits, target, avg_factor=avg_factor)
        torch.testing.assert_close(found, AsymmetricLoss(**numbers)(logits, target, avg_factor=500.0))
    assert not module._WITHOUT_COMPILER


def test_transforms_that_triton_cannot_read_do_not_turn_the_kernel_off(monkeypatch):
    monkeypatch.setattr(module, '_WITHOUT_COMPILER', set())
    monkeypatch.setattr(module, 'fused_pass', lambda setting, logits, *_: logits.data_ptr())
    logits, target = batch(500, 40, 'dense')
    with pytest.raises(RuntimeError, match='torch.func'):
        torch.func.grad(lambda z: asymmetric_loss(z, target))(logits)
    assert not module._WITHOUT_COMPILER


def test_memory_that_runs_out_is_not_taken_for_a_missing_compiler(monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, 'compiled_pass', fail)
    monkeypatch.setattr(module, '_WITHOUT_COMPILER', set())
    with pytest.raises(torch.OutOfMemoryError):
        AsymmetricLoss()(*batch(500, 40, 'dense'))
    assert not module._WITHOUT_COMPILER


def test_no_variant_of_the_input_uses_up_the_kernels(monkeypatch):
    monkeypatch.setattr(torch._inductor, 'compile', lambda graph, inputs, options: graph)
    module._KERNELS.clear()
    threads = torch.get_num_threads()
    loss, eager = AsymmetricLoss(fused=True), AsymmetricLoss(fused=False)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for rows, classes in ((200, 8), (8, 200), (1, 9), (9, 1), (1, 1), (0, 5), (0, 1)):
                logits, target = batch(rows, classes, 'dense')
                for z, y in ((logits, target), (logits.T.contiguous().T, target.T.contiguous().T)):
                    for context in (torch.autocast('cpu'), torch.inference_mode(), torch.enable_grad()):
                        with context:
                            torch.testing.assert_close(loss(z, y), eager(z, y))
    finally:
        torch.set_num_threads(threads)
        module._KERNELS.clear()


@pytest.mark.parametrize('fused', [False, True])
def test_changing_a_gradient_does_not_spoil_a_kept_graph(fused):
    logits, target = batch(30, 20, 'dense')
    logits.requires_grad_()
    loss = AsymmetricLoss(fused=fused)(logits, target)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    expected = first.clone()
    first.mul_(2)
    loss.backward()
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize(
    'dtype, fused',
    [
        *itertools.product([torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32], [False]),
        *itertools.product([torch.bool, torch.uint8, torch.float16, torch.bfloat16], [True]),
        *[pytest.param(dtype, True, marks=pytest.mark.slow) for dtype in (torch.int8, torch.int16, torch.int32)],
    ],
)
def test_labels_and_indices_come_in_every_dtype(dtype, fused):
    logits, target = batch(30, 20, 'index')
    target = target.clamp(min=0)
    labels = (torch.arange(20) == target[:, None]).long()
    for labels in (labels,) if dtype.is_floating_point or dtype == torch.bool else (target, labels):
        loss = AsymmetricLoss(fused=fused)
        torch.testing.assert_close(loss(logits, labels.to(dtype)), loss(logits, labels), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match='holds 255: '):
        AsymmetricLoss(fused=fused)(logits, torch.full((30,), 255, dtype=torch.uint8))
    with pytest.raises(ValueError, match='holds 255: '):
        AsymmetricLoss(fused=fused)(logits, torch.full((30, 20), 255, dtype=torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bool, torch.int8, torch.int16])
def test_labels_of_every_dtype_are_read_many_at_a_time(dtype, monkeypatch):
    monkeypatch.setattr(module, '_KERNELS', {})
    logits, target = batch(30, 20, 'dense')
    with torch._inductor.config.patch(force_disable_caches=True):
        metrics.reset()
        AsymmetricLoss(fused=True)(logits, target.clamp(min=0).to(dtype))
    assert metrics.generated_cpp_vec_kernel_count == 1


@pytest.mark.parametrize('weight', [1.0, 300.0, 1e5])
def test_large_weights_do_not_overflow_float16(weight):
    logits = torch.tensor([[-5.0, 2.0, 0.0]], dtype=torch.float16)
    target, avg_factor = torch.tensor([[1, 0, 0]]), 64.0 * weight
    loss = AsymmetricLoss(gamma_pos=1.0, gamma_neg=2.0, clip=0.0, class_weight=[weight, weight, 1.0])
    _, grad = value_and_grad(lambda z: loss(z, target, avg_factor=avg_factor), logits, 1024.0)
    _, exact = value_and_grad(lambda z: loss(z, target, avg_factor=avg_factor), logits.double(), 1024.0)
    torch.testing.assert_close(grad.double(), exact, rtol=2e-3, atol=1e-6)


def test_small_gradients_of_float16_outlive_the_average():
    logits = torch.full((1, 1), -6.2146, dtype=torch.float16)  # p = 0.002
    loss = AsymmetricLoss(gamma_neg=2.0, clip=0.0)
    _, grad = value_and_grad(lambda z: loss(z, torch.zeros(1, 1), avg_factor=100.0), logits, 65536.0)
    _, exact = value_and_grad(lambda z: loss(z, torch.zeros(1, 1), avg_factor=100.0), logits.double(), 65536.0)
    assert grad.item() == pytest.approx(exact.item(), rel=0.02) and exact.item() > 1e-5


def test_a_sum_is_the_only_reduction_of_the_function():
    with pytest.raises(ValueError, match="reduction='mean' of asymmetric_loss"):
        asymmetric_loss(*batch(2, 3, 'dense'), reduction='mean')


def test_avg_factor_is_one_constant_number():
    logits, target = batch(3, 4, 'dense')
    loss = AsymmetricLoss()
    assert loss(logits, target, avg_factor=torch.tensor([2.0])).shape == ()
    with pytest.raises(ValueError, match='requires grad; pass avg_factor.detach()'):
        loss(logits, target, avg_factor=torch.tensor(2.0, requires_grad=True))
    with pytest.raises(ValueError, match=r'avg_factor of AsymmetricLoss is one constant number, got \(2,\)'):
        loss(logits, target, avg_factor=torch.ones(2))


@pytest.mark.parametrize('size', [0, 1, 2048, 2049, 32767, 32768])
def test_log1p_of_a_small_batch_is_taken_in_parts_and_in_place(size):
    x = torch.rand(size, generator=torch.Generator().manual_seed(0)) * 10
    expected = torch.from_numpy(np.log1p(x.double().numpy())).float()
    taken = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if 'log1p' in str(func):
                taken.extend(len(part) for part in (args[0] if isinstance(args[0], list) else [args[0]]))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Spy():
        found = log1p(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert found is x and sum(taken) == size
    assert max(taken, default=0) <= 2048 or size == 32768
    # Parts are views that autograd does not know of.
    y = torch.rand(4096, dtype=torch.float64, requires_grad=True)
    log1p(y * 1).sum().backward()
    torch.testing.assert_close(y.grad, 1 / (1 + y.detach()))


@pytest.mark.parametrize('rough, error', [(False, 2.5e-7), (True, 1e-5)])
def test_the_logarithm_of_the_kernel_is_exact_to_few_roundings_or_rough(rough, error):
    x = torch.logspace(-12, 34.5, 40001)
    found = torch.compile(lambda x: log1p(x, rough), fullgraph=True)(x)
    expected = x.double().log1p()
    assert ((found - expected) / expected).abs().max() < error


@pytest.mark.parametrize('rough, error', [(False, 2e-7), (True, 1e-5)])
def test_the_exponential_of_the_kernel_is_exact_to_few_roundings_or_rough(rough, error):
    compiled = torch.compile(lambda x: exp(x, rough), fullgraph=True)
    small = torch.logspace(-30, 0, 301)
    x = torch.cat([torch.linspace(-87.3, LARGEST_LOGIT, 40001), small, -small])
    expected = x.double().exp()
    assert ((compiled(x) - expected) / expected).abs().max() < error
    assert compiled(torch.tensor([-88.0, -104.0, -1e4, -1e30, -3e38] * 8)).tolist() == [0.0] * 40
    assert compiled(torch.zeros(40)).tolist() == [1.0] * 40


def test_powers_of_the_kernel_are_exact_to_few_roundings():
    compiled = torch.compile(lambda x, exponent: power(x, exponent), fullgraph=True)
    x = torch.cat([torch.logspace(-37.9, 0, 40001), 1 - torch.logspace(-7, -0.1, 20001)])
    for exponent in (0.1, 0.5, 1.0, 1.7, 3.3, 4.0, 7.7, 20.3):
        exponent = torch.tensor(exponent)
        expected = x.double() ** exponent.double()
        inexact = (compiled(x, exponent) - expected).abs() / expected / (3e-7 - 1.5e-7 * expected.log())
        assert inexact[expected > 1.2e-38].max() < 1
    assert compiled(torch.tensor([0.0, 1.0] * 16), torch.tensor(2.5)).tolist() == [0.0, 1.0] * 16
    assert compiled(torch.rand(32), torch.tensor(0.0)).tolist() == [1.0] * 32


def test_a_kernel_does_not_depend_on_the_batch_that_came_first():
    big, small = batch(300, 40, 'dense'), batch(2, 3, 'dense')
    values = []
    for first in (small, big):
        module._KERNELS.clear()
        torch._dynamo.reset()
        loss = AsymmetricLoss(fused=True)
        loss(*first)
        values.append(loss(*big).item())
    assert values[0] == values[1]


def test_a_reset_of_the_compiler_leaves_one_kernel_for_all_sizes():
    loss, steps = AsymmetricLoss(), AsymmetricLoss(fused=False)
    for n in (120, 130, 140):
        target = batch(n, 80, 'dense')
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            assert loss(*target).item() == pytest.approx(steps(*target).item(), rel=1e-6)
        if n == 120:
            torch._dynamo.reset()


def test_many_small_losses_keep_their_digits():
    logits = -4.6 + 0.01 * torch.randn(1000, 80, generator=torch.Generator().manual_seed(0))
    target = torch.full((1000,), 80)
    for fused in (True, False):
        loss = AsymmetricLoss(gamma_pos=2.0, gamma_neg=2.0, clip=0.0, alpha=0.25, fused=fused)
        assert loss(logits, target).item() == pytest.approx(loss(logits.double(), target).item(), rel=1e-6)
