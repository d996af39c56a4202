"""``one_pass`` as a kernel of Triton's, for a GPU, and the factor of a backward pass. Imports Triton.

The formulas are those of ``one_pass.hard_terms``, which has their legend. torch.compile's kernel took three times as
long (docs/speed.md): it cannot look whether a label is soft, and so computes both terms of every one; rows of few
classes leave a part of its threads without work; its quotients, maxima and logarithms are several times as many
instructions.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from .one_pass import LARGEST_LOGIT, Outcome, Setting

# Elements that a program takes at a time, by so many warps: few enough for all threads of a GPU to be at work.
BLOCK = 512
WARPS = 4
# Programs up to which each takes one block, and blocks that it takes at most: more would be added up one by one.
PROGRAMS = 2048
STEPS = 16
SCALE_BLOCK = 4096
# Programs of a factor of 1, which have nothing to do; others take several blocks each.
SCALE_PROGRAMS = 2048
# A program counts so many rows of so many classes, a few rows at a time.
COUNTED_ROWS, COUNTED_CLASSES, ROWS_AT_A_TIME = 128, 128, 4

LARGEST = tl.constexpr(LARGEST_LOGIT)
LOG_2, LOG2_E = tl.constexpr(math.log(2)), tl.constexpr(math.log2(math.e))
# Losses end there, lest their multiples are infinite.
HUGE = tl.constexpr(1e38)
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


def triton_pass(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    scale: float | Tensor,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
    sums: Tensor | None,
) -> Outcome:
    """As ``one_pass``, on a GPU, for any number of elements but none; not for float64.

    Raises:
        ValueError: the shape of ``targets`` does not fit, or ``targets`` or ``weight`` lie on another device.
        RuntimeError: ``weight``, ``gamma_neg`` or ``clip`` do not broadcast.
    """
    rows, num_classes = logits.shape
    if targets.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(f'targets have shape {tuple(targets.shape)}, logits {tuple(logits.shape)}')
    # Triton would read pinned memory, and that of another GPU.
    if targets.device != logits.device or (weight is not None and weight.device != logits.device):
        raise ValueError(f'targets and weight have to lie on {logits.device}, as the logits')
    logits, targets = logits.contiguous(), targets.contiguous()
    gamma_neg, clip = (
        one if one is None else (one.expand(num_classes).contiguous() if one.ndim else one).to(logits.device)
        for one in (gamma_neg, clip)
    )
    grad = torch.empty_like(logits)
    blocks = _how_many(logits.numel(), BLOCK)
    steps = min(_how_many(blocks, PROGRAMS), STEPS)
    programs = _how_many(blocks, steps)
    losses = logits.new_empty(programs, dtype=torch.float32)
    weight_strides = (0, 0) if weight is None else weight.expand(rows, num_classes).stride()
    with torch.cuda.device(logits.device):
        _pass[(programs,)](
            logits,
            targets,
            weight,
            scale,
            gamma_neg,
            clip,
            grad,
            losses,
            logits.numel(),
            steps,
            *weight_strides,
            num_classes,
            setting.gamma_pos,
            setting.gamma_neg,
            setting.clip,
            setting.alpha,
            setting.ignore_index,
            setting.detach_focusing,
            targets.ndim == 1,
            torch.is_tensor(scale),
            weight_strides[1] != 0,
            gamma_neg is not None and gamma_neg.ndim > 0,
            clip is not None and clip.ndim > 0,
            BLOCK,
            # A thread takes neighbours of one row, at most 16 bytes of them.
            math.gcd(num_classes, 16 // logits.element_size()),
            num_warps=WARPS,
            # Triton 3.10 leaves it out unless it is asked for.
            enable_fp_fusion=True,
        )
        if sums is not None:
            counted = (_how_many(rows, COUNTED_ROWS), _how_many(num_classes, COUNTED_CLASSES))
            counts = logits.new_empty((counted[0], 4, num_classes), dtype=torch.float32)
            _count[counted](
                logits,
                targets,
                weight,
                counts,
                rows,
                *weight_strides,
                num_classes,
                setting.ignore_index,
                targets.ndim == 1,
                COUNTED_ROWS,
                COUNTED_CLASSES,
                ROWS_AT_A_TIME,
                enable_fp_fusion=True,
            )
            sums = sums + counts.sum(0, dtype=sums.dtype).sum_to_size(sums.shape)
    return Outcome(losses.sum(), grad, sums)


def scale_in_place(grad: Tensor, factor: Tensor) -> None:
    """``grad *= factor``, contiguous and not float64, on a GPU that looks by itself whether the factor is 1."""
    programs = min(_how_many(grad.numel(), SCALE_BLOCK), SCALE_PROGRAMS)
    with torch.cuda.device(grad.device):
        _scale[(programs,)](grad, factor, grad.numel(), SCALE_BLOCK, enable_fp_fusion=True)


def _how_many(size: int, part: int) -> int:
    return -(-size // part)


@triton.jit(do_not_specialize=['size', 'steps'])
def _pass(
    logits,
    targets,
    weight,
    scale,
    gamma_neg,
    clip,
    grad,
    losses,
    size,
    steps,
    weight_of_row,
    weight_of_class,
    CLASSES: tl.constexpr,
    GAMMA_POS: tl.constexpr,
    GAMMA_NEG: tl.constexpr,
    CLIP: tl.constexpr,
    ALPHA: tl.constexpr,
    IGNORE_INDEX: tl.constexpr,
    DETACH: tl.constexpr,
    INDICES: tl.constexpr,
    SCALE_IS_TENSOR: tl.constexpr,
    WEIGHT_OF_CLASS: tl.constexpr,
    GAMMA_OF_CLASS: tl.constexpr,
    CLIP_OF_CLASS: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * steps * BLOCK
    start_row = start // CLASSES
    start_column = (start - start_row * CLASSES).to(tl.int32)
    logits += start
    grad += start
    if INDICES:
        targets += start_row
    else:
        targets += start
    left = tl.minimum(size - start, steps * BLOCK).to(tl.int32)
    if SCALE_IS_TENSOR:
        scale = tl.load(scale).to(tl.float32)
    first = (tl.arange(0, BLOCK // NEIGHBOURS) * NEIGHBOURS)[:, None]
    neighbour = tl.arange(0, NEIGHBOURS)[None, :]
    total = tl.full((), float('nan'), tl.float32)
    for careful in tl.static_range(2):
        # At first for labels of 0 and 1 and logits up to LARGEST. All else makes the sum NaN, and it is made anew.
        if total != total:
            sums = tl.zeros((BLOCK // NEIGHBOURS, NEIGHBOURS), tl.float32)
            for step in range(steps):
                # What neighbours share is found once.
                offset = step * BLOCK + first
                inside = offset < left
                place = offset + neighbour
                z = tl.load(logits + place, mask=inside, other=0.0).to(tl.float32)
                row = (start_column + offset) // CLASSES
                column = start_column + offset - row * CLASSES

                factor = tl.where(inside, scale, 0.0)
                if weight is not None:
                    weights = weight + (start_row + row) * weight_of_row
                    if WEIGHT_OF_CLASS:
                        weights += (column + neighbour).to(tl.int64) * weight_of_class
                    factor *= tl.load(weights, mask=inside, other=0.0).to(tl.float32)
                gamma = _number(gamma_neg, column + neighbour, inside, GAMMA_NEG, GAMMA_OF_CLASS)
                margin = _number(clip, column + neighbour, inside, CLIP, CLIP_OF_CLASS)
                if INDICES:
                    target = tl.load(targets + row, mask=inside, other=CLASSES)
                    valid = (target >= 0) & (target <= CLASSES)
                    factor *= tl.where(target == IGNORE_INDEX, 0.0, tl.where(valid, 1.0, float('nan')))
                    is_positive = (target - column).to(tl.int32) == neighbour
                    label = tl.where(is_positive, 1.0, 0.0)
                else:
                    label = tl.load(targets + place, mask=inside, other=0.0).to(tl.float32)
                    is_positive = label == 1.0

                if careful:
                    # NaN for infinite and NaN logits.
                    factor = z * 0.0 + factor
                    if not INDICES:
                        known = label != IGNORE_INDEX
                        label = tl.where(known, label, 0.0)
                        valid = tl.where((label >= 0.0) & (label <= 1.0), 1.0, float('nan'))
                        factor *= tl.where(known, valid, 0.0)
                    s = tl.minimum(-z, LARGEST)
                    excess = tl.minimum(-z - s, HUGE) * LOG2_E
                    yes = z == z
                    positive, up = _terms(
                        s * LOG2_E, excess, yes, gamma, margin, GAMMA_POS, GAMMA_NEG, CLIP, ALPHA, DETACH
                    )
                    s = tl.minimum(z, LARGEST)
                    excess = tl.minimum(z - s, HUGE) * LOG2_E
                    negative, down = _terms(
                        s * LOG2_E, excess, ~yes, gamma, margin, GAMMA_POS, GAMMA_NEG, CLIP, ALPHA, DETACH
                    )
                    loss = label * positive + (1.0 - label) * negative
                    slope = (1.0 - label) * down - label * up
                else:
                    largest = tl.max(tl.abs(z), axis=1, keep_dims=True)
                    factor = tl.where(largest <= LARGEST, factor, float('nan'))
                    if not INDICES:
                        unusual = factor * tl.where(label == IGNORE_INDEX, 0.0, float('nan'))
                        factor = tl.where(is_positive | (label == 0.0), factor, unusual)
                    s = z * tl.where(is_positive, -LOG2_E, LOG2_E)
                    loss, slope = _terms(s, None, is_positive, gamma, margin, GAMMA_POS, GAMMA_NEG, CLIP, ALPHA, DETACH)
                    slope = tl.where(is_positive, -slope, slope)
                tl.store(grad + place, (slope * factor).to(grad.dtype.element_ty), mask=inside)
                sums += loss * factor
            total = tl.sum(sums)
    tl.store(losses + tl.program_id(0), total * LOG_2)


@triton.jit
def _number(tensor, column, inside, NUMBER: tl.constexpr, OF_CLASS: tl.constexpr):
    """gamma_neg or clip: a number, one of all classes, or one of each."""
    if NUMBER is not None:
        return NUMBER
    elif OF_CLASS:
        return tl.load(tensor + column, mask=inside, other=0.0).to(tl.float32)
    else:
        return tl.load(tensor).to(tl.float32)


@triton.jit
def _terms(
    s,
    excess,
    is_positive,
    gamma,
    margin,
    GAMMA_POS: tl.constexpr,
    GAMMA_NEG: tl.constexpr,
    CLIP: tl.constexpr,
    ALPHA: tl.constexpr,
    DETACH: tl.constexpr,
):
    """``hard_terms`` in base 2: the loss, but as a logarithm to base 2, and its derivative with respect to s.

    Args:
        s: logits of ``wrong`` times log2(e), at most LARGEST times that.
        excess: what they lie above that, or None for nothing.
    """
    odds = tl.exp2(s)
    right = libdevice.fast_dividef(1.0, 1.0 + odds)
    wrong = odds * right
    slope = wrong
    if CLIP == 0.0:
        log = _log2_of_1_and(odds)
        if excess is not None:
            log += excess
        focusing = tl.where(is_positive, _power(wrong, GAMMA_POS, GAMMA_POS), _power(wrong, gamma, GAMMA_NEG))
        if not DETACH:
            slope += tl.where(is_positive, GAMMA_POS * LOG_2, gamma * LOG_2) * (right * log)
        slope *= focusing
    else:
        p_m = tl.maximum(wrong - margin, 0.0)
        odds_m = libdevice.fast_dividef(p_m, right + margin)
        log = _log2_of_1_and(tl.where(is_positive, odds, odds_m))
        if excess is not None:
            log += tl.where(is_positive, excess, tl.where(margin == 0.0, excess, 0.0))
        focusing = _power(wrong, GAMMA_POS, GAMMA_POS)
        if not DETACH:
            if GAMMA_POS != 0.0:
                slope += GAMMA_POS * LOG_2 * (right * log)
            odds_m += gamma * LOG_2 * log
        below = _power_below(p_m, gamma, GAMMA_NEG)
        slope = tl.where(is_positive, slope * focusing, odds_m * below * (right * wrong))
        focusing = tl.where(is_positive, focusing, below * p_m)
    loss = log * focusing
    if ALPHA is not None:
        balance = tl.where(is_positive, ALPHA, 1.0 - ALPHA)
        loss *= balance
        slope *= balance
    return loss, slope


@triton.jit
def _power(x, gamma, GAMMA: tl.constexpr):
    """x^gamma for x from 0 to 1, by multiplications for whole numbers up to 16; GAMMA is gamma or None."""
    if GAMMA is None:
        return _any_power(x, gamma)
    elif (GAMMA > 16) or (GAMMA != GAMMA // 1):
        return _any_power(x, GAMMA)
    else:
        result = 1.0
        square = x
        for bit in tl.static_range(5):
            if (GAMMA // 2**bit) % 2 == 1:
                result = square * result
            square = square * square
        return result


@triton.jit
def _power_below(p_m, gamma, GAMMA: tl.constexpr):
    """p_m^(gamma - 1), and 0 where p_m is 0, also for a gamma of less than 1."""
    if GAMMA is None:
        return _quotient_below(_any_power(p_m, gamma), p_m)
    elif (GAMMA <= 1) or (GAMMA != GAMMA // 1):
        return _quotient_below(_power(p_m, gamma, GAMMA), p_m)
    else:
        return _power(p_m, GAMMA - 1, GAMMA - 1)


@triton.jit
def _quotient_below(power, p_m):
    return tl.where(p_m < TINY, 0.0, libdevice.fast_dividef(power, tl.maximum(p_m, TINY)))


@triton.jit
def _any_power(x, gamma):
    return tl.where(x == 0.0, tl.where(gamma == 0.0, 1.0, 0.0), tl.exp2(gamma * tl.log2(x)))


# AMD's library has no faster one than Triton.
_log2 = tl.log2 if torch.version.hip else libdevice.fast_log2f


@triton.jit
def _log2_of_1_and(x):
    """log2(1 + x) for x from 0 to 1e36, within 4e-7 of the value."""
    # log2(1 + x) / x, fitted on [0, 1/2] for the smallest relative error, 3e-8.
    series = 0.05579417198896408 * x - 0.1640300750732422
    series = series * x + 0.2661840617656708
    series = series * x - 0.3570956289768219
    series = series * x + 0.48061665892601013
    series = series * x - 0.7213390469551086
    series = series * x + 1.4426950216293335
    return tl.where(x < 0.5, series * x, _log2(1.0 + x))


@triton.jit(do_not_specialize=['rows'])
def _count(
    logits,
    targets,
    weight,
    counts,
    rows,
    weight_of_row,
    weight_of_class,
    CLASSES: tl.constexpr,
    IGNORE_INDEX: tl.constexpr,
    INDICES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_A_TIME: tl.constexpr,
):
    """What ``elements`` counts, of ROWS rows, by classes."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    of_positives = tl.zeros((AT_A_TIME, COLUMNS), tl.float32)
    positives = tl.zeros((AT_A_TIME, COLUMNS), tl.float32)
    of_all = tl.zeros((AT_A_TIME, COLUMNS), tl.float32)
    all_counted = tl.zeros((AT_A_TIME, COLUMNS), tl.float32)
    for step in range(ROWS // AT_A_TIME):
        row = (tl.program_id(0) * ROWS + step * AT_A_TIME).to(tl.int64) + tl.arange(0, AT_A_TIME)[:, None]
        inside = (row < rows) & (column < CLASSES)
        z = tl.load(logits + row * CLASSES + column, mask=inside, other=0.0).to(tl.float32)
        if INDICES:
            target = tl.load(targets + row, mask=row < rows, other=IGNORE_INDEX)
            y = tl.where(target == column, 1.0, 0.0)
            known = target != IGNORE_INDEX
            valid = (target >= 0) & (target <= CLASSES)
        else:
            y = tl.load(targets + row * CLASSES + column, mask=inside, other=IGNORE_INDEX).to(tl.float32)
            known = y != IGNORE_INDEX
            valid = (y >= 0.0) & (y <= 1.0)
        counted = tl.where(inside & known, tl.where(valid, 1.0, float('nan')), 0.0)
        if weight is not None:
            place = row * weight_of_row + column.to(tl.int64) * weight_of_class
            counted = tl.where(tl.load(weight + place, mask=inside, other=0.0) == 0.0, 0.0, counted)
        p = 1.0 / (1.0 + tl.exp2(-z * LOG2_E))
        positive = tl.where(known, y, 0.0) * counted
        of_positives += p * positive
        positives += positive
        of_all += p * positive + (1.0 - p) * (counted - positive)
        all_counted += counted
    place = counts + tl.program_id(0) * 4 * CLASSES + column
    tl.store(place, tl.sum(of_positives, axis=0)[None, :], mask=column < CLASSES)
    tl.store(place + CLASSES, tl.sum(positives, axis=0)[None, :], mask=column < CLASSES)
    tl.store(place + 2 * CLASSES, tl.sum(of_all, axis=0)[None, :], mask=column < CLASSES)
    tl.store(place + 3 * CLASSES, tl.sum(all_counted, axis=0)[None, :], mask=column < CLASSES)


@triton.jit(do_not_specialize=['size'])
def _scale(grad, factor, size, BLOCK: tl.constexpr):
    value = tl.load(factor)
    if value != 1.0:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        for block in range(start, size, step):
            offsets = block + tl.arange(0, BLOCK)
            inside = offsets < size
            products = tl.load(grad + offsets, mask=inside).to(tl.float32) * value.to(tl.float32)
            tl.store(grad + offsets, products.to(grad.dtype.element_ty), mask=inside)
