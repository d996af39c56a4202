"""AsymmetricLoss against eqs. 4 to 8 in float64, written anew in numpy, over thousands of drawn cases.

The default suite takes a share of the cases, the slow test all of them; a failure names the seed of its case.
"""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from asl_mmdet import AsymmetricLoss

DTYPES = {torch.float64: 1e-10, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
EXTREME = [0.0, 1e-30, 1e-7, 5.0, 16.6, 17.4, 36.0, 37.5, 87.0, 88.8, 103.9, 104.1, 708.0, 745.2, 6e4, 1e30]
SHAPES = [(0, 1), (0, 7), (1, 1), (1, 80), (2, 3), (7, 5), (16, 20), (33, 9), (64, 1)]
LARGE = [(512, 80), (4096, 20), (3, 30000), (20000, 1)]


def reference(z, y, known, gamma_pos, gamma_neg, clip, alpha, detached):
    """Value and derivative (N, C) for each logit, by eqs. 4, 5 and 8; finite wherever z is.

    ``sure`` marks elements that are no closer to the corner p = m than what float32 resolves there.
    """
    p, q = np.exp(-np.logaddexp(0, -z)), np.exp(-np.logaddexp(0, z))
    log_p = -np.logaddexp(0, -z)
    positive = -(q**gamma_pos) * log_p
    d_positive = q**gamma_pos * ((0 if detached else gamma_pos) * p * log_p - q)
    p_m = np.maximum(p - clip, 0) if clip else p
    rest = np.minimum(q + clip, 1) if clip else q
    log_rest = np.log1p(-p_m) if clip else -np.logaddexp(0, z)
    negative = -(p_m**gamma_neg) * log_rest
    slope = np.divide(log_rest, p_m, out=np.full_like(z, -1.0), where=p_m > 0)  # of log(1 - p_m), -1 at p_m = 0
    d_negative = p_m**gamma_neg * (p * q / rest if clip else p) - (0 if detached else gamma_neg) * (
        p * q * p_m**gamma_neg * slope
    )
    if clip:
        d_negative = np.where(p > clip, d_negative, 0)
    if alpha is not None:
        positive, d_positive = alpha * positive, alpha * d_positive
        negative, d_negative = (1 - alpha) * negative, (1 - alpha) * d_negative
    sure = (abs(p - clip) > (1e-3 if gamma_neg < 1 else 2e-6)) | (y == 1) if clip else np.ones_like(y, dtype=bool)
    # 0 times an infinite loss is 0: a label of 1 has no part of the negative.
    value = np.where(y > 0, y * positive, 0) + np.where(y < 1, (1 - y) * negative, 0)
    slope = np.where(y > 0, y * d_positive, 0) + np.where(y < 1, (1 - y) * d_negative, 0)
    return value * known, slope * known, sure


def draw_case(seed, shapes):
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    rows, classes = draw.choice(shapes)
    dtype = draw.choice(list(DTYPES))
    logits = rng.normal(size=(rows, classes)) * draw.choice([0.01, 1, 4, 12])
    if draw.random() < 0.5:
        extreme = rng.choice(EXTREME, size=logits.shape) * rng.choice([-1, 1], size=logits.shape)
        logits = np.where(rng.random(logits.shape) < draw.choice([0.1, 1]), extreme, logits)
    logits = torch.from_numpy(logits).clamp(-65504, 65504).to(dtype)
    ignore_index = -1
    kind = draw.choice(['index', 'hard', 'soft', 'partial'])
    if kind == 'index':
        ignore_index = draw.choice([-1, 255 if classes < 255 else -2])
        target = rng.integers(0, classes + 1, rows)
        y = np.eye(classes + 1)[target][:, :classes] if rows * classes < 1e6 else None
        if y is None:
            y = np.zeros((rows, classes))
            y[np.flatnonzero(target < classes), target[target < classes]] = 1
        unknown = rng.random(rows) < 0.2
        known = np.broadcast_to(~unknown[:, None], logits.shape)
        target = torch.from_numpy(np.where(unknown, ignore_index, target)).to(draw.choice([torch.int64, torch.int32]))
    else:
        y = rng.random(logits.shape)
        y = y if kind == 'soft' else (y < draw.choice([0, 0.05, 0.5, 1])).astype(float)
        target, known = torch.from_numpy(y), np.ones(logits.shape, dtype=bool)
        if kind == 'partial':
            known = rng.random(logits.shape) < draw.choice([0, 0.1, 0.8])
            target = torch.from_numpy(np.where(known, y, -1))
        if kind == 'hard':
            target = target.to(draw.choice([torch.bool, torch.uint8, torch.int8, torch.int64, torch.float16, dtype]))
        elif kind == 'partial':
            target = target.to(draw.choice([torch.int8, torch.int64, torch.bfloat16, torch.float32]))
        else:
            target = target.float()
            y = target.double().numpy()
    weight = draw.choice([None, None, (rows,), (rows, 1), (rows, classes), (rows * classes,)])
    if weight is not None:
        weight = rng.random(weight) * (rng.random(weight) < draw.choice([0, 0.5, 1]))
        weight = torch.from_numpy(weight).to(draw.choice([torch.float32, torch.float64]))
    gammas = [0.0, 0.05, 0.3, 0.5, 0.99, 1.0, 1.5, 2.0, 3.0, 4.0, 7.0, 10.0, draw.uniform(0, 5)]
    options = dict(
        gamma_pos=draw.choice(gammas),
        gamma_neg=draw.choice(gammas),
        clip=draw.choice([0.0, 0.0, 0.01, 0.05, 0.2, 0.9]),
        alpha=draw.choice([None, None, 0.0, 0.25, 0.9, 1.0]),
        detach_focusing=draw.random() < 0.3,
        loss_weight=draw.choice([1.0, 0.0, 2.5]),
        reduction=draw.choice(['none', 'mean', 'sum']),
        class_weight=None if draw.random() < 0.7 else rng.random(classes).tolist(),
        ignore_index=ignore_index,
    )
    avg_factor = None
    if options['reduction'] == 'mean':
        avg_factor = draw.choice([None, 1.0, 37.5, torch.tensor(8.0)])
    return logits, target, y, known, weight, options, avg_factor, kind


def check_case(seed, shapes=SHAPES):
    """Value, gradient, their dtypes, and a finite gradient for every finite logit; returns what the case was like."""
    logits, target, y, known, weight, options, avg_factor, kind = draw_case(seed, shapes)
    rows, classes = logits.shape
    loss = AsymmetricLoss(**options)
    logits.requires_grad_()
    value = loss(logits, target, weight, avg_factor=avg_factor)
    rng = np.random.default_rng(seed)
    upstream = rng.uniform(0.5, 2, value.shape)
    (value * torch.from_numpy(upstream).to(value)).sum().backward()

    element, slope, sure = reference(
        logits.detach().double().numpy(),
        y,
        known,
        *(options[name] for name in ('gamma_pos', 'gamma_neg', 'clip', 'alpha', 'detach_focusing')),
    )
    factor = torch.ones(1, classes)
    if weight is not None:
        factor = weight.reshape(rows, -1 if rows else classes)
    if options['class_weight'] is not None:
        factor = factor * torch.tensor(options['class_weight'])
    factor = factor.expand(rows, classes).double().numpy() * options['loss_weight']
    if options['reduction'] == 'mean':
        factor = factor / (max(logits.numel(), 1) if avg_factor is None else float(avg_factor + 2**-23))
    expected, slope = element * factor, slope * factor * upstream
    single = DTYPES[min(logits.dtype, torch.float32, key=DTYPES.get)]
    assert value.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32), seed
    assert logits.grad.dtype == logits.dtype and logits.grad.isfinite().all() and value.isfinite().all(), seed
    scale = abs(factor).max(initial=0) * 2
    result = value.detach().double().numpy()
    if options['reduction'] == 'none':
        np.testing.assert_allclose(
            result[sure], expected[sure], rtol=5 * single, atol=scale * single, err_msg=str(seed)
        )
    else:
        # Beside the corner p = m a float32 is off by what it resolves there, once for each element at most.
        atol = 5 * single * abs(expected).sum() + scale * single * (1 + (~sure).sum() * 0.01)
        np.testing.assert_allclose(result, expected.sum(), rtol=0, atol=atol, err_msg=str(seed))
    tolerance = max(DTYPES[logits.dtype], 5 * single)
    # Below its least normal number a float16 holds multiples of 6e-8.
    atol = scale * 2 * single + (6e-8 if logits.dtype == torch.float16 else 0)
    gradient = logits.grad.double().numpy()
    np.testing.assert_allclose(gradient[sure], slope[sure], rtol=tolerance, atol=atol, err_msg=str(seed))
    assert not gradient[~known].any() and not gradient[factor == 0].any(), seed
    return kind, str(logits.dtype), 'empty' if not logits.numel() else ''


pytestmark = pytest.mark.filterwarnings('ignore:AsymmetricLoss.* all .* negatives:UserWarning')


def test_drawn_cases_equal_the_reference():
    for seed in range(1000):
        check_case(seed)


@pytest.mark.slow
def test_ten_thousand_drawn_cases_and_large_ones_equal_the_reference(capsys):
    counts = Counter(part for seed in range(12000) for part in check_case(seed) if part)
    large = Counter(part for seed in range(100) for part in check_case(seed, LARGE) if part)
    assert min(counts.values()) > 500
    with capsys.disabled():
        print(f'\nloss: 12,000 cases {dict(counts)}, and 100 large ones {dict(large)}')
