"""Loss, gradient and probability sums of AsymmetricLoss in one pass over the logits.

Legend: z logits, p = sigmoid(z), q = 1 - p, m probability margin (``clip``), p_m = max(p - m, 0), N rows, C classes.

Everything here is elementwise arithmetic and sums, so that ``torch.compile`` turns a pass into one kernel, which reads
logits and targets once and writes the gradient once. Without a compiler the same functions run as they are, on a CPU
block after block of rows, so that what lies between two operations stays in the processor's cache.
"""

import functools
import math
import types
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Setting(NamedTuple):
    """What does not change from call to call; a kernel is compiled for each.

    Fields:
        gamma_neg, clip: None where they come as tensors with every call.
        hard: the labels are 0, 1 or unknown, so that one logarithm serves both terms; others are odd.
        statistics: None, 'total' or 'class', the probability sums that are wanted.
    """

    gamma_pos: float
    gamma_neg: float | None
    clip: float | None
    alpha: float | None
    ignore_index: int
    detach_focusing: bool
    hard: bool
    statistics: str | None


class Outcome(NamedTuple):
    """Of one pass.

    Fields:
        loss: 0-d, the weighted sum.
        grad: (N, C), its derivative with respect to the logits, of their dtype.
        odd: 0-d bool, whether there is an index out of range, a soft label outside [0, 1], or, where ``hard``, a known
            label that is neither 0 nor 1.
        sums: (4, C) or (4, 1), or empty: sum of p over positives, number of positives, the same two over negatives.
    """

    loss: Tensor
    grad: Tensor
    odd: Tensor
    sums: Tensor


def terms(
    z: Tensor,
    is_positive: Tensor | None,
    gamma_pos: float,
    gamma_neg: float | Tensor,
    clip: float | Tensor,
    detach_focusing: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses -L+ (eq. 4) and -L- (eq. 7) and their derivatives dL/dz (eq. 8), with p beside them.

    Args:
        z: float32 or float64.
        is_positive: where given, bool of the shape of ``z``, a term is right only where it applies.

    Returns:
        positive loss and derivative, negative loss and derivative, p; each of the shape of ``z``.
    """
    e = torch.exp(-z.abs())
    large = z >= 0
    r = 1 / (1 + e)
    p, q = torch.where(large, r, e * r), torch.where(large, e * r, r)

    # log(p) = min(z, 0) - log(1 + e) and log(q) = min(-z, 0) - log(1 + e), exact at either end.
    if isinstance(clip, float) and clip == 0:
        p_m, share = p, 1.0
        log_1_plus_e = torch.log1p(e)
        log_n = -z.clamp(min=0) - log_1_plus_e
    else:
        p_m = (p - clip).clamp(min=0)
        share = q / (q + clip)
        if isinstance(clip, float) and clip >= 0.02:
            # 1 - p_m is q + m for large p; written as 1 + x, both halves share one logarithm with that of p.
            x = torch.where(large, (q - (1 - clip)).clamp(max=0), -p_m)
            if is_positive is None:
                log_1_plus_e, log_n = torch.log1p(e), torch.log1p(x)
            else:
                log_1_plus_e = log_n = torch.log1p(torch.where(is_positive, e, x))
        else:
            log_1_plus_e = torch.log1p(e)
            log_n = torch.where(large, torch.log((q + clip).clamp(max=1)), torch.log1p(-p_m))
            if torch.is_tensor(clip):
                log_n = torch.where(clip > 0, log_n, -z.clamp(min=0) - log_1_plus_e)
                share = torch.where(clip > 0, share, 1.0)
    log_p = z.clamp(max=0) - log_1_plus_e

    focusing = power(q, gamma_pos)
    slope = -q if detach_focusing else gamma_pos * p * log_p - q
    positive, positive_slope = -focusing * log_p, focusing * slope

    if isinstance(gamma_neg, float) and gamma_neg >= 1 and gamma_neg == int(gamma_neg):
        below = power(p_m, gamma_neg - 1)
        focusing, ratio = below * p_m, below * log_n
        negative = -p_m * ratio
        negative_slope = focusing * share if detach_focusing else focusing * share - gamma_neg * q * ratio
    else:
        focusing = p_m**gamma_neg
        negative = -focusing * log_n
        slope = share if detach_focusing else share - gamma_neg * q * (log_n / p_m)
        # Eq. 8 is 0 up to the margin, also where powers of 0 are not. NaN comes back in one_pass.
        negative_slope = torch.where(p_m > 0, focusing * slope, 0)
    return positive, positive_slope, negative, p * negative_slope, p


def power(x: Tensor, exponent: float) -> Tensor | float:
    """x ** exponent, by multiplications for whole exponents up to 16."""
    if not (exponent == int(exponent) and exponent <= 16):
        return x**exponent
    result, square, left = 1.0, x, int(exponent)
    while left:
        if left % 2:
            result = result * square
        left //= 2
        square = square * square if left else square
    return result


def one_pass(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
) -> Outcome:
    """Eqs. 1, 2 and 7 for a batch: the sum of ``scale * weight * (-y L+ - (1 - y) L-)``.

    Args:
        logits: (N, C), any floating dtype; float16 and bfloat16 are computed in float32.
        targets: (N,) class indices with background C, or (N, C) labels; ``ignore_index`` is unknown. What is odd gives
            NaN.
        weight: broadcastable to (N, C).
        scale: 0-d, a factor on loss and gradient.
        gamma_neg, clip: broadcastable to (N, C), where the setting has None.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    gamma_neg = setting.gamma_neg if gamma_neg is None else gamma_neg
    clip = setting.clip if clip is None else clip
    pos_weight, neg_weight = (1.0, 1.0) if setting.alpha is None else (setting.alpha, 1 - setting.alpha)

    known = targets != setting.ignore_index
    if targets.ndim == 1:
        num_classes = logits.shape[1]
        is_odd = known & ((targets < 0) | (targets > num_classes))
        is_positive = torch.arange(num_classes, device=z.device) == targets[:, None]
        factor = torch.where(is_odd, math.nan, known.to(z.dtype))[:, None]
    elif setting.hard:
        is_positive = targets == 1
        is_odd = known & ~is_positive & (targets != 0)
        factor = torch.where(is_odd, math.nan, known.to(z.dtype))
    else:
        is_positive = None
        y = torch.where(known, targets.to(z.dtype), 0)
        is_odd = known & ~((y >= 0) & (y <= 1))
        factor = torch.where(is_odd, math.nan, known.to(z.dtype))
    counted = known if targets.ndim == 2 else known[:, None]
    if weight is not None:
        factor = factor * weight
        counted = counted & (weight != 0)

    positive, positive_slope, negative, negative_slope, p = terms(
        z, is_positive, setting.gamma_pos, gamma_neg, clip, setting.detach_focusing
    )
    if is_positive is not None:
        loss = torch.where(is_positive, pos_weight * positive, neg_weight * negative)
        grad = torch.where(is_positive, pos_weight * positive_slope, neg_weight * negative_slope)
    else:
        loss = y * (pos_weight * positive) + (1 - y) * (neg_weight * negative)
        grad = y * (pos_weight * positive_slope) + (1 - y) * (neg_weight * negative_slope)
    # Infinite and NaN logits become NaN, and sums instead of masks keep them from being hidden.
    nothing = z - z
    loss = (loss + nothing) * factor
    grad = (grad + nothing) * (factor * scale)

    sums = z.new_empty(0)
    if setting.statistics is not None:
        counts = counted.to(z.dtype).expand_as(z)
        positives = counts * (y if is_positive is None else is_positive.to(z.dtype))
        columns = (p * positives, positives, p * counts, counts)
        if setting.statistics == 'class':
            sums = torch.stack([column.sum(0) for column in columns])
        else:
            sums = torch.stack([column.sum() for column in columns])[:, None]
    # Row by row: a long sum of float32 loses digits.
    return Outcome(loss.sum(1).sum() * scale, grad.to(logits.dtype), is_odd.any(), sums)


def compiled_pass(setting: Setting, *tensors: Tensor | None) -> Outcome:
    """``one_pass`` as one kernel.

    Raises:
        Exception: whatever torch.compile raises without a working compiler.
    """
    signature = tuple(None if tensor is None else (tensor.dtype, tensor.ndim) for tensor in tensors)
    return _kernel(setting, signature)(*tensors)


@functools.cache
def _kernel(setting: Setting, signature: tuple) -> Callable[..., Outcome]:
    """torch keeps a limited number of kernels for one piece of code; here each signature has a piece of its own."""

    def run(*tensors):
        return one_pass(setting, *tensors)

    code = run.__code__.replace(co_name='asymmetric_loss_pass')
    own = types.FunctionType(code, run.__globals__, code.co_name, None, run.__closure__)
    # Sizes are symbols from the first call on: one kernel for all batches, and the same one after a restart.
    return torch.compile(own, dynamic=True, fullgraph=True)
