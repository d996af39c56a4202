"""Loss, gradient and probability sums of AsymmetricLoss in one pass over the logits, in two ways.

Legend: z logits, p = sigmoid(z), q = 1 - p, m probability margin (``clip``), p_m = max(p - m, 0), N rows (images,
anchors or points), C classes. Everything is computed from logits, without an eps: log(p) is logsigmoid(z), and the
gradients are the closed forms of equation 8, so they stay finite where autograd of ``pow`` and ``log`` does not.

``one_pass`` is elementwise arithmetic and sums, so that ``torch.compile`` turns it into one kernel, which reads logits
and targets once and writes the gradient once. ``eager_pass`` is for where there is no compiler, and for small batches.
"""

import functools
import math
import types
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements from which on a CPU gains by the kernel; below, an eager pass takes less than a millisecond.
WORTH_COMPILING = 8192
# Elements of an eager pass's block: with what is made of them, about what a core's cache holds.
BLOCK = 65536
# Kinds of devices on which torch.compile was tried and failed.
_WITHOUT_COMPILER: set[str] = set()


def positive_term(logits: Tensor, gamma_pos: float, detach_focusing: bool = False) -> tuple[Tensor, Tensor]:
    """Loss -L+ of eq. 4 for positive labels, and its derivative with respect to the logit.

    Args:
        logits: any shape, float32 or float64.
        gamma_pos: focusing parameter, 0 or more.
        detach_focusing: hold (1 - p)^gamma_pos constant in the derivative.

    Returns:
        loss (not negative) and dloss/dz (not positive), both of the shape of ``logits``.
    """
    return _positive_term(logits, torch.sigmoid(-logits), gamma_pos, detach_focusing)


def negative_term(
    logits: Tensor, gamma_neg: float | Tensor, clip: float | Tensor, detach_focusing: bool = False
) -> tuple[Tensor, Tensor]:
    """Loss -L- of eq. 7 for negative labels, and its derivative with respect to the logit (eq. 8).

    Args:
        logits: any shape, float32 or float64.
        gamma_neg: focusing parameter, 0 or more; as a tensor, broadcastable to ``logits``.
        clip: probability margin m of eq. 5, in [0, 1); as a tensor, broadcastable to ``logits``. Loss and derivative
            are exactly 0 where p <= m.
        detach_focusing: hold p_m^gamma_neg constant in the derivative.

    Returns:
        loss and dloss/dz (both not negative), of the shape of ``logits``.
    """
    return _negative_term(logits, torch.sigmoid(logits), torch.sigmoid(-logits), gamma_neg, clip, detach_focusing)


def _positive_term(z: Tensor, q: Tensor, gamma_pos: float, detach_focusing: bool) -> tuple[Tensor, Tensor]:
    log_p = F.logsigmoid(z)
    if gamma_pos == 0:
        return -log_p, -q
    focusing = power(q, gamma_pos)
    slope = -q if detach_focusing else gamma_pos * (1 - q) * log_p - q
    return -focusing * log_p, focusing * slope


def _negative_term(
    z: Tensor, p: Tensor, q: Tensor, gamma_neg: float | Tensor, clip: float | Tensor, detach_focusing: bool
) -> tuple[Tensor, Tensor]:
    if isinstance(clip, float) and clip == 0:
        p_m = p
        log_1_minus_p_m = F.logsigmoid(-z)
        share = torch.ones_like(q)
    else:
        p_m = (p - clip).clamp(min=0)
        # 1 - p_m is exact as q + m for large p, and log1p(-p_m) is exact for small p_m.
        log_of_large_p = torch.log((q + clip).clamp(max=1))
        share = q / (q + clip)
        if torch.is_tensor(clip):
            log_of_large_p = torch.where(clip > 0, log_of_large_p, F.logsigmoid(-z))
            share = torch.where(clip > 0, share, 1)
        log_1_minus_p_m = torch.where(z > 0, log_of_large_p, torch.log1p(-p_m))
    # Eq. 8 with (1 - p) / (1 - p_m) as `share`, which has a limit at p = 1 where both are 0.
    slope = share if detach_focusing else share - gamma_neg * q * (log_1_minus_p_m / p_m)
    focusing = p_m**gamma_neg if torch.is_tensor(gamma_neg) else power(p_m, gamma_neg)
    # p_m == 0, and not p_m <= 0 or the like: NaN has to come through.
    return -focusing * log_1_minus_p_m, (focusing * p * slope).masked_fill(p_m == 0, 0)


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
        sums: (4, C) or (4, 1), or empty: sum of p over positives, number of positives, the same two over all.
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
        gamma_neg, clip: 0-d or (C,), where the setting has None.
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
    counts = factor
    if weight is not None:
        weight = weight.to(z.dtype)
        counts = torch.where(weight != 0, factor, 0)
        factor = factor * weight

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
        counts = counts.expand_as(z)
        all_p = p * counts
        if is_positive is None:
            columns = (all_p * y, counts * y, all_p, counts)
        else:
            columns = (torch.where(is_positive, all_p, 0), torch.where(is_positive, counts, 0), all_p, counts)
        if setting.statistics == 'class':
            sums = torch.stack([column.sum(0) for column in columns])
        else:
            sums = torch.stack([column.sum() for column in columns])[:, None]
    # A long sum of float32 loses digits.
    total = loss.sum(dtype=torch.float64).to(z.dtype)
    return Outcome(total * scale, grad.to(logits.dtype), is_odd.any(), sums)


def compiled_pass(setting: Setting, *tensors: Tensor | None) -> Outcome:
    """``one_pass`` as one kernel.

    Raises:
        Exception: whatever torch.compile raises without a working compiler.
    """
    tensors = [None if tensor is None else tensor.contiguous() for tensor in tensors]
    sizes = [None if tensor is None else (tensor.dtype, *(min(n, 2) for n in tensor.shape)) for tensor in tensors]
    device = tensors[0].device
    state = (device, torch.is_autocast_enabled(device.type), torch.is_inference_mode_enabled(), torch.get_num_threads())
    return _kernel(setting, (*sizes, *state))(*tensors)


@functools.cache
def _kernel(setting: Setting, signature: tuple) -> Callable[..., Outcome]:
    """torch keeps eight kernels for one piece of code; here all that it tells apart has a piece of its own."""

    def run(*tensors):
        return one_pass(setting, *tensors)

    code = run.__code__.replace(co_name='asymmetric_loss_pass')
    own = types.FunctionType(code, run.__globals__, code.co_name, None, run.__closure__)
    compiled = torch.compile(own, fullgraph=True)
    called = False

    def call(*tensors):
        nonlocal called
        if not called:
            # Sizes are symbols from the first call on: one kernel for all batches, and the same one after a restart.
            tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
            for tensor in tensors:
                for dim in range(0 if tensor is None else tensor.ndim):
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
            called = True
        return compiled(*tensors)

    return call


def eager_pass(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
) -> Outcome:
    """``one_pass`` by the two terms above, one operation after the other.

    On a CPU it goes from block to block of rows, so that what lies between two operations stays in the cache.
    """
    rows, num_classes = logits.shape
    step = max(1, BLOCK // num_classes) if logits.device.type == 'cpu' else max(rows, 1)
    grad = torch.empty_like(logits)
    loss, sums = 0, 0
    for start in range(0, max(rows, 1), step):
        part = slice(start, start + step)
        part_weight = weight[part] if weight is not None and weight.ndim == 2 and len(weight) == rows else weight
        part_loss, part_grad, *known = elements(setting, logits[part], targets[part], part_weight, gamma_neg, clip)
        loss = loss + part_loss.sum()
        sums = sums + probability_sums(setting.statistics, *known, part_weight)
        grad[part] = part_grad.mul_(scale)
    return Outcome(loss * scale, grad, loss.new_zeros((), dtype=torch.bool), sums)


def elements(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weighted loss and gradient by elements, probabilities, labels without what is unknown, and what is known."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    gamma_neg = setting.gamma_neg if gamma_neg is None else gamma_neg
    clip = setting.clip if clip is None else clip
    pos_weight, neg_weight = (1.0, 1.0) if setting.alpha is None else (setting.alpha, 1 - setting.alpha)
    loss, grad = _negative_term(z, p, q, gamma_neg, clip, setting.detach_focusing)
    if setting.alpha is not None:
        loss, grad = neg_weight * loss, neg_weight * grad
    known = targets != setting.ignore_index
    if targets.ndim == 1:
        num_classes = z.shape[1]
        y = targets
        known = known[:, None]
        # A label out of range turns into NaN rather than into a plausible number.
        valid = ~known | ((targets >= 0) & (targets <= num_classes))[:, None]
        index = targets.clamp(0, num_classes - 1)[:, None]  # (N, 1)
        is_positive = index == targets[:, None]
        terms = _positive_term(z.gather(1, index), q.gather(1, index), setting.gamma_pos, setting.detach_focusing)
        for total, term in zip((loss, grad), terms):
            total.scatter_(1, index, torch.where(is_positive, pos_weight * term, total.gather(1, index)))
        factor = known.to(z.dtype).masked_fill(~valid, math.nan)  # (N, 1)
    else:
        y = targets.to(z.dtype).masked_fill(~known, 0)
        y = y.masked_fill((y < 0) | (y > 1), math.nan)
        for total, term in zip((loss, grad), _positive_term(z, q, setting.gamma_pos, setting.detach_focusing)):
            total.lerp_(pos_weight * term, y)
        factor = known
    # Infinite and NaN logits become NaN, and products instead of masks keep them from being hidden.
    nothing = z - z
    factor = factor if weight is None else factor * weight
    return loss.add_(nothing).mul_(factor), grad.add_(nothing).mul_(factor), p, y, known


def probability_sums(statistics: str | None, p: Tensor, y: Tensor, known: Tensor, weight: Tensor | None) -> Tensor:
    """As in ``Outcome``; ``y`` are indices (N,) or labels (N, C)."""
    if statistics is None:
        return p.new_empty(0)
    counted = known.to(p.dtype) if weight is None else (known & (weight != 0)).to(p.dtype)
    all_p = p * counted
    if y.ndim == 2:
        positive_p, positives = (all_p * y).sum(0), (counted * y).sum(0)
    else:
        index = y.clamp(0, p.shape[1] - 1)[:, None]
        is_class = (index == y[:, None]).to(p.dtype)
        picked = (is_class * term.expand_as(p).gather(1, index) for term in (all_p, counted))
        positive_p, positives = (p.new_zeros(p.shape[1]).index_add_(0, index[:, 0], term[:, 0]) for term in picked)
    sums = torch.stack([positive_p, positives, all_p.sum(0), counted.expand_as(p).sum(0)])
    return sums if statistics == 'class' else sums.sum(1, keepdim=True)


def fused_pass(
    setting: Setting, logits: Tensor, targets: Tensor, weight: Tensor | None, scale: Tensor, *asymmetry: Tensor | None
) -> Outcome:
    """``one_pass`` as one kernel of torch.compile's.

    Labels of floating point are taken for 0 and 1 on a CPU, where a look at the outcome costs nothing, and passed over
    once more if they are not.
    """
    tensors = (logits, targets, weight, scale, *asymmetry)
    hard = targets.ndim == 1 or not targets.is_floating_point()
    on_cpu = logits.device.type == 'cpu'
    outcome = compiled_pass(setting._replace(hard=hard or on_cpu), *tensors)
    if on_cpu and not hard and outcome.odd:
        outcome = compiled_pass(setting._replace(hard=False), *tensors)
    return outcome


def _fused_where_possible(setting: Setting, logits: Tensor, *tensors: Tensor | None) -> Outcome:
    device = logits.device.type
    if device not in _WITHOUT_COMPILER:
        try:
            return fused_pass(setting, logits, *tensors)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Where the caller is at fault, this raises too.
            outcome = eager_pass(setting, logits, *tensors)
            _WITHOUT_COMPILER.add(device)
            warnings.warn(
                f'AsymmetricLoss: torch.compile does not work on {device} here ({type(error).__name__}: '
                f'{str(error).strip().splitlines()[0] if str(error).strip() else ""}), so the loss runs as single '
                'operations, several times slower. A C++ compiler (CPU) or Triton (GPU) mends that; fused=False '
                'chooses this way without a word.'
            )
            return outcome
    return eager_pass(setting, logits, *tensors)


def choose_pass(logits: Tensor, fused: bool | None) -> Callable[..., Outcome]:
    if torch.compiler.is_compiling():
        return one_pass
    if fused is None:
        # By size and device alone, so that a resumed run computes what an uninterrupted one does.
        worth_it = logits.device.type == 'cuda' or (logits.device.type == 'cpu' and logits.numel() >= WORTH_COMPILING)
        return _fused_where_possible if worth_it and logits.numel() else eager_pass
    return fused_pass if fused and logits.numel() else eager_pass
