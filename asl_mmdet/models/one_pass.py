"""Loss, gradient and probability sums of AsymmetricLoss as elementwise arithmetic on the logits.

Legend: z logits, p = sigmoid(z), m probability margin (``clip``), p_m = max(p - m, 0), N rows (images, anchors or
points), C classes. ``wrong`` is the probability of what the label denies (1 - p for a positive, p for a negative),
``right`` is 1 - wrong, and s, which is -z for a positive and z for a negative, is the logit of ``wrong``. Written in
these, equations 4, 7 and 8 are the same for both kinds of labels but for the margin. In closed form, and without an
eps, they stay finite where autograd of ``pow`` and ``log`` does not.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# exp of it is a number of float32. Beyond it, probabilities are 0 and 1 to rounding, and -log(right) is s.
LARGEST_LOGIT = 80.0
# Elements of a row beyond which a CPU adds them up in float64.
WIDE_ROW = 128
# Elements from which on torch uses several threads for most operations.
SINGLE_THREADED = 32768
LOG_2, LOG2_E = 0.6931471805599453, 1.4426950408889634


class Setting(NamedTuple):
    """What does not change from call to call; a kernel is compiled for each.

    Fields:
        gamma_neg, clip: None where they come as tensors with every call.
        hard: the labels are 0, 1 or unknown, so that one logarithm serves both terms.
        by_rows: add up each row by itself. Only so does torch.compile make one kernel of many programs of it for a GPU:
            one sum of all it leaves to a single program, or reads everything once more for it. On a CPU it keeps the
            losses of class indices for a sum of all, a tensor of the logits' size.
    """

    gamma_pos: float
    gamma_neg: float | None
    clip: float | None
    alpha: float | None
    ignore_index: int
    detach_focusing: bool
    hard: bool
    by_rows: bool = False


def positive_term(logits: Tensor, gamma_pos: float, detach_focusing: bool = False) -> tuple[Tensor, Tensor]:
    """Loss -L+ of eq. 4 for positive labels, and its derivative with respect to the logit.

    Args:
        logits: any shape, float32 or float64.
        gamma_pos: focusing parameter, 0 or more.
        detach_focusing: hold (1 - p)^gamma_pos constant in the derivative.

    Returns:
        loss (not negative) and dloss/dz (not positive), both of the shape of ``logits``.
    """
    setting = Setting(gamma_pos, 0.0, 0.0, None, -1, detach_focusing, hard=True)
    return hard_terms(setting, -logits, torch.ones_like(logits), None, None)[:2]


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
    setting = Setting(0.0, None, None, None, -1, detach_focusing, hard=True)
    return hard_terms(setting, logits, torch.zeros_like(logits), gamma_neg, clip)[:2]


def hard_terms(
    setting: Setting,
    s: Tensor,
    y: Tensor,
    gamma_neg: float | Tensor | None,
    clip: float | Tensor | None,
    bounded: bool = False,
    rough: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Elements of eqs. 1, 2 and 7 where every label is 0 or 1, and their derivatives.

    Nothing is chosen by the label: each of the two terms has a factor that is 0 where it does not hold.

    Args:
        s: any shape, float32 or float64; overwritten where ``bounded``.
        y: labels, of the shape and dtype of ``s``.
        gamma_neg, clip: numbers, or tensors broadcastable to ``s``, where the setting has None.
        bounded: no ``s`` is to lie above LARGEST_LOGIT; far beyond it the loss is infinite or NaN.
        rough: in a kernel, loss and derivative within 1e-4 of their values suffice.

    Returns:
        loss, dloss/dz and ``right``, of the shape of ``s``.
    """
    gamma_pos, alpha, detach_focusing = setting.gamma_pos, setting.alpha, setting.detach_focusing
    gamma_neg = setting.gamma_neg if gamma_neg is None else gamma_neg
    clip = setting.clip if clip is None else clip
    excess = None
    if not bounded:
        s, unbounded = torch.clamp_max(s, LARGEST_LOGIT), s
        excess = unbounded - s
    wrong, right, odds = _probabilities(s, rough)
    positive = y if gamma_pos == 0 else y * power(wrong, gamma_pos)
    if is_zero(clip):
        log = log1p(odds, rough) if excess is None else log1p(odds, rough) + excess
        negative = 1 - y
        if not is_zero(gamma_neg):
            negative *= power(wrong, gamma_neg)
        focusing = positive + negative
        grad = (negative - positive).mul_(wrong)
        change = None if is_zero(gamma_neg) else negative.mul_(gamma_neg)
    else:
        # Of a positive, nothing lies above its margin.
        margin = y + clip
        p_m = (wrong - margin).relu_()
        # 1 - p_m is right + m above the margin, and does not matter below it.
        odds_m = p_m / margin.add_(right)
        log = log1p(torch.addcmul(odds_m, odds, y), rough)
        if excess is not None:
            log += excess * (torch.maximum(y, (clip == 0).to(y.dtype)) if torch.is_tensor(clip) else y)
        below = _power_below(p_m, gamma_neg)
        focusing = torch.addcmul(positive, below, p_m)
        if torch.is_tensor(gamma_neg) and not detach_focusing:
            odds_m += gamma_neg * log
        elif not detach_focusing:
            odds_m.add_(log, alpha=gamma_neg)
        grad = odds_m.mul_(below).mul_(right).sub_(positive).mul_(wrong)
        change = None
    if not detach_focusing:
        if gamma_pos > 0:
            change = -gamma_pos * positive if change is None else change.sub_(positive, alpha=gamma_pos)
        if change is not None:
            grad.addcmul_(change, right * log)
    loss = log.mul_(focusing)
    if alpha is not None:
        balance = alpha * y + (1 - alpha) * (1 - y)
        loss, grad = loss * balance, grad * balance
    return loss, grad, right


def _probabilities(s: Tensor, rough: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``wrong``, ``right`` and their ratio from the logit of ``wrong``, which is overwritten outside a kernel."""
    if torch.compiler.is_compiling():
        odds = exp(s, rough)
        right = (1 + odds).reciprocal_()
        return odds * right, right, odds
    # For exp torch wakes its threads from 2048 elements on, which takes longer than both of these on a small batch.
    wrong, right = torch.sigmoid(s), s.neg_().sigmoid_()
    return wrong, right, wrong / right


def _power_below(p_m: Tensor, gamma: float | Tensor) -> Tensor:
    """p_m^(gamma - 1), and 0 where p_m is 0, also for a gamma of less than 1."""
    if not torch.is_tensor(gamma) and gamma > 1 and gamma == int(gamma):
        return power(p_m, gamma - 1)
    return torch.where(p_m < torch.finfo(p_m.dtype).tiny, 0, power(p_m, gamma) / p_m)


def exp(x: Tensor, rough: bool = False) -> Tensor:
    """exp(x) for x up to 88, in a kernel.

    In one for a CPU, float32 goes by the power of 2 next to the value and a polynomial, within 2e-7 of the value,
    or 1e-5 where ``rough``, and is 0 below 1e-38: torch's exp is a function that is called for every eight or sixteen
    numbers.
    """
    if not _in_kernel_of_cpu(x):
        return x.exp()
    x = torch.clamp_min(x, -88)
    exponent = torch.round(x * LOG2_E)
    if rough:
        part = _rough_exp2_near_0(x * LOG2_E - exponent)
    else:
        # log(2) in two parts, of which the first is exact when multiplied.
        part = _exp_near_0(x - exponent * 0.693145751953125 - exponent * 1.428606765330187e-06)
    return part * _power_of_2(exponent)


def log1p(x: Tensor, rough: bool = False) -> Tensor:
    """log(1 + x) for x from 0 to 1e36, which is overwritten outside a kernel.

    In a kernel, float32 goes by halving 1 + x into [3/4, 3/2) and a polynomial there, within 2.5e-7 of the value, or
    1e-5 where ``rough``: torch's log1p, exact to half of the former, takes more than half of the kernel's time.
    """
    if not _in_kernel(x):
        small = x.is_cpu and x.numel() < SINGLE_THREADED and x.is_contiguous()
        if small and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # In parts for which no threads are woken. That is done from 2048 elements on, takes longer than one thread
            # does for all of it, and milliseconds where other processes keep the cores busy.
            torch._foreach_log1p_(x.view(-1).unsafe_split(2048))
            return x
        return x.log1p_()
    exponent, r = _split(1 + x)
    near_0 = _rough_log1p_near_0 if rough else _log1p_near_0
    return near_0(torch.where(exponent == 0, x, r)) + exponent.to(torch.float32) * LOG_2


def power(x: Tensor, exponent: float | Tensor) -> Tensor | float:
    """x ** exponent for x from 0 to 1, and exponents of 0 or more.

    By multiplications for whole exponents up to 16, which torch does itself for 2 and 3; 1 gives ``x`` itself. In a
    kernel for a CPU, other powers of float32 go by logarithm and exponential, within 3e-7 of the value, and 1.5e-7 more
    for each power of e that it lies below 1, and an ``x`` below 1e-38 counts as that: with torch's pow a kernel takes
    twice as long.
    """
    if not torch.is_tensor(exponent) and exponent == int(exponent) and exponent <= 16:
        return _whole_power(x, int(exponent))
    if not _in_kernel_of_cpu(x):
        return x**exponent
    power_of_2, r = _split(x)
    # The larger part of the result's logarithm to base 2 gives up its whole number before it meets the smaller.
    large = exponent * power_of_2.to(torch.float32)
    whole = torch.round(large)
    rest = large - whole + exponent * (_log1p_near_0(r) * LOG2_E)
    more = torch.round(rest)
    return _exp_near_0((rest - more) * LOG_2) * _power_of_2(torch.clamp_min(whole + more, -127))


def _whole_power(x: Tensor, exponent: int) -> Tensor | float:
    if exponent in (2, 3):
        return x**exponent
    result, square = 1.0, x
    while exponent:
        if exponent % 2:
            result = square if isinstance(result, float) else result * square
        exponent //= 2
        square = square * square if exponent else square
    return result


def _in_kernel(x: Tensor) -> bool:
    return x.dtype == torch.float32 and torch.compiler.is_compiling()


def _in_kernel_of_cpu(x: Tensor) -> bool:
    return x.is_cpu and _in_kernel(x)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Exponent, int32, and r, from -1/4 to 1/2, of x = 2^exponent (1 + r)."""
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F400000) >> 23
    return exponent, (bits - (exponent << 23)).view(torch.float32) - 1


def _power_of_2(exponent: Tensor) -> Tensor:
    """2 ** exponent for whole numbers from -126; 0 for -127."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def _exp_near_0(r: Tensor) -> Tensor:
    """exp(r) = 1 + r + r^2 P(r), P fitted on [-log(2) / 2, log(2) / 2] for the smallest relative error, 3e-9."""
    r_2 = r * r
    series = (0.0013814611 * r + 0.00836871) * r_2 + (0.041668389 * r + 0.16666521)
    return (series * r + 0.49999994) * r_2 + r + 1


def _log1p_near_0(r: Tensor) -> Tensor:
    """log(1 + r) = r - r^2 / 2 + r^3 P(r), P fitted on [-1/4, 1/2] for the smallest relative error, 4e-8."""
    r_2 = r * r
    high = (0.055597178 * r - 0.12114131) * r_2 + (0.14904441 * r - 0.16788818)
    low = (0.1998232 * r - 0.24996361) * r_2 + (0.33333471 * r - 0.5)
    return (high * (r_2 * r_2) + low) * r_2 + r


def _rough_exp2_near_0(r: Tensor) -> Tensor:
    """2^r = 1 + r P(r), P fitted on [-1/2, 1/2] for the smallest relative error, 3e-6."""
    return ((0.0095805385 * r + 0.055906588) * r + 0.2402416) * (r * r) + (0.69312421 * r + 1)


def _rough_log1p_near_0(r: Tensor) -> Tensor:
    """log(1 + r) = r + r^2 P(r), P fitted on [-1/4, 1/2] for the smallest relative error, 8e-6."""
    r_2 = r * r
    high = (-0.106549 * r + 0.20492982) * r_2 + (-0.25588099 * r + 0.33349988)
    return (high * r - 0.49988952) * r_2 + r


def is_zero(value: float | Tensor) -> bool:
    return not torch.is_tensor(value) and value == 0


class Outcome(NamedTuple):
    """Of one pass.

    Fields:
        loss: 0-d, the weighted sum, or (N,), those of the rows. NaN where a logit is not finite, an index is out of
            range, or a label that is not unknown lies outside [0, 1], or, where ``hard``, is neither 0 nor 1.
        grad: (N, C), its derivative with respect to the logits, of their dtype.
        sums: those that were given to the pass, and this batch's; a new tensor, or None.
    """

    loss: Tensor
    grad: Tensor
    sums: Tensor | None

    def with_total(self) -> 'Outcome':
        """With the sum of all for the sums of the rows; torch's own is made for any number of them."""
        return self._replace(loss=self.loss.sum()) if self.loss.ndim else self


def elements(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
) -> tuple[Tensor, Tensor, Callable[[], tuple[Tensor, ...]]]:
    """Elements of eqs. 1, 2 and 7, weighted, their derivatives, and a function for those of the probability sums.

    Args:
        logits: (N, C), any floating dtype; float16 and bfloat16 are computed in float32, in a kernel to 1e-4.
        targets: (N,) class indices with background C, or (N, C) labels; ``ignore_index`` is unknown.
        weight: broadcastable to (N, C).
        gamma_neg, clip: broadcastable to (N, C), where the setting has None.

    Returns:
        (N, C) each. The function returns ``right`` of positives, the number of positives, and the same two of all.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Neighbours in half precision lie 5e-4 of their value apart, or more.
    rough = logits.dtype != z.dtype
    hard = setting.hard or targets.ndim == 1
    if targets.ndim == 1:
        known = targets != setting.ignore_index
        num_classes = logits.shape[1]
        valid = (targets >= 0) & (targets <= num_classes)
        # As int32 a kernel compares as many at a time as it has logits; what that would wrap is not valid.
        classes = torch.arange(num_classes, dtype=torch.int32, device=z.device)
        is_positive = classes == targets.to(torch.int32)[:, None]
        if setting.ignore_index >= 0:
            is_positive = is_positive & known[:, None]
    else:
        # Small integers and halves are compared 2 to 8 times slower in a kernel.
        y = targets.to(z.dtype)
        known = y != setting.ignore_index
        if hard:
            is_positive = y == 1
            valid = y * (y - 1) == 0
        else:
            valid = (y >= 0) & (y <= 1)
            y = torch.where(known, y, 0)
    counted = torch.where(known, torch.where(valid, 1.0, math.nan), 0.0).to(z.dtype)
    counted = counted[:, None] if targets.ndim == 1 else counted
    # Infinite and NaN logits become NaN, and sums instead of masks keep them from being hidden.
    factor = counted + (z - z)
    if weight is not None:
        weight = weight.to(z.dtype)
        counted = torch.where(weight != 0, counted, 0)
        factor = factor * weight

    if hard:
        s = torch.where(is_positive, -z, z)
        loss, grad, right = hard_terms(setting, s, is_positive.to(z.dtype), gamma_neg, clip, rough=rough)
    else:
        positive, positive_slope, _ = hard_terms(setting, -z, torch.ones_like(z), 0.0, 0.0, rough=rough)
        negative, negative_slope, _ = hard_terms(setting, z, torch.zeros_like(z), gamma_neg, clip, rough=rough)
        loss = y * positive + (1 - y) * negative
        grad = y * positive_slope + (1 - y) * negative_slope

    def counts() -> tuple[Tensor, ...]:
        of_all = counted.expand_as(z)
        if hard:
            positives = is_positive.to(z.dtype) if weight is None else is_positive * of_all
            return right * positives, positives, right * of_all, of_all
        p, positives = torch.sigmoid(z), y * of_all
        return p * positives, positives, p * positives + (1 - p) * (of_all - positives), of_all

    return loss * factor, grad * factor, counts


def one_pass(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    scale: float | Tensor,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
    sums: Tensor | None,
) -> Outcome:
    """Eqs. 1, 2 and 7 for a batch: the sum of ``scale * weight * (-y L+ - (1 - y) L-)``.

    Elementwise arithmetic and sums only, so that torch.compile turns it into one kernel, which reads logits and targets
    once and writes the gradient once.

    Args:
        scale: a factor on loss and gradient; 0-d as a tensor.
        sums: (4, C), or (4, 1) for all classes together: sum of ``right`` over positives, number of positives, the same
            two over all. The others are those of ``elements``.
    """
    loss, grad, counts = elements(setting, logits, targets, weight, gamma_neg, clip)
    if sums is not None:
        of_batch = counts()
        if setting.by_rows and sums.shape[1] == 1:
            of_batch = tuple(_sum_of_rows(count) for count in of_batch)
        sums = add_counts(sums, of_batch)
    if setting.by_rows:
        total = _sum_of_rows(loss)
    else:
        # A kernel of a CPU adds up thousands of numbers one by one, and in float32 loses digits of many small ones.
        total = loss.sum(dtype=torch.float64).to(loss.dtype)
    return Outcome(total * scale, (grad * scale).to(logits.dtype), sums)


def _sum_of_rows(x: Tensor) -> Tensor:
    # Of 128 numbers a CPU adds up at most 16 one by one. In float64 a row of 80 takes a quarter more time.
    dtype = torch.float64 if _in_kernel_of_cpu(x) and x.shape[1] > WIDE_ROW else x.dtype
    return x.sum(1, dtype=dtype).to(x.dtype)


def add_counts(sums: Tensor, counts: tuple[Tensor, ...]) -> Tensor:
    """``sums`` of ``one_pass`` and what ``elements`` has counted."""
    if sums.shape[1] == 1:
        return sums + torch.stack([count.sum() for count in counts])[:, None]
    return sums + torch.stack([count.sum(0) for count in counts])
