"""``one_pass`` as single operations, for where there is no compiler, and for small batches."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .one_pass import Outcome, Setting, add_counts, elements, focal, focal_with_margin, is_zero, log1p, one_pass

# Elements of a block of rows. Threads meet after every operation, so that smaller blocks cost more on several of them,
# and of larger ones the ten tensors leave the caches of a CPU.
BLOCK = 1 << 18


def eager_pass(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
    sums: Tensor | None,
) -> Outcome:
    """As ``one_pass``, on a CPU in blocks of rows."""
    if not logits.is_cpu:
        return one_pass(setting, logits, targets, weight, scale, gamma_neg, clip, sums).with_total()
    scale = scale.item()
    rows, num_classes = logits.shape
    step = max(1, BLOCK // num_classes)
    if rows <= step:
        total, slope, factor, sums = _block(setting, logits, targets, weight, gamma_neg, clip, sums)
        grad = slope.mul_(factor * scale).to(logits.dtype)
    else:
        total, grad = 0.0, torch.empty_like(logits)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            part_weight = weight[part] if weight is not None and weight.ndim == 2 and len(weight) == rows else weight
            loss, slope, factor, sums = _block(setting, logits[part], targets[part], part_weight, gamma_neg, clip, sums)
            total += loss
            torch.mul(slope, factor * scale, out=grad[part])
    return Outcome(slope.new_full((), total * scale), grad, sums)


def _block(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
    sums: Tensor | None,
) -> tuple[float, Tensor, float, Tensor | None]:
    """
    Returns:
        the sum of the loss, its derivative but for a constant factor, that factor, and the probability sums.
    """
    if logits.numel():
        found = _negatives_and_positives(setting, logits, targets, weight, gamma_neg, clip, sums)
        if found is not None:
            return found
    loss, grad, counts = elements(setting, logits, targets, weight, gamma_neg, clip)
    return loss.sum().item(), grad, 1.0, None if sums is None else add_counts(sums, counts())


def _negatives_and_positives(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
    sums: Tensor | None,
) -> tuple[float, Tensor, float, Tensor | None] | None:
    """The same for what most batches hold: all as negatives, then the few positives in their places.

    Returns:
        as ``_block``; None where there is an unknown or soft label, a logit that is not finite, a margin for each
        class, or a weight beside ``sums``.
    """
    index = _positives(targets, logits.shape[1], setting.ignore_index)
    if index is None or clip is not None or (weight is not None and sums is not None):
        return None
    z = (logits.float() if logits.dtype.itemsize == 2 else logits).contiguous()
    pos_weight, neg_weight = (1.0, 1.0) if setting.alpha is None else (setting.alpha, 1 - setting.alpha)
    gamma_neg = setting.gamma_neg if gamma_neg is None else gamma_neg
    clip = setting.clip

    wrong, right = torch.sigmoid(z), (-z).sigmoid_()
    if is_zero(clip):
        gain, slope, factor = focal(right, wrong, _log_right(z), gamma_neg, setting.detach_focusing)
    else:
        p_m = F.softshrink(wrong, clip)
        log = log1p(-p_m, right, clip)
        gain, slope, factor = focal_with_margin(right, wrong, p_m, log, gamma_neg, clip, setting.detach_focusing)
    if neg_weight != 1:
        gain.mul_(neg_weight)
        slope.mul_(neg_weight)
    s = torch.from_numpy(-_flat(z)[index])
    wrong_of_positives = torch.sigmoid(s)
    right_of_positives = torch.sigmoid(-s) if setting.gamma_pos or sums is not None else None
    positive, positive_slope, of_positive = focal(
        right_of_positives, wrong_of_positives, _log_right(s), setting.gamma_pos, setting.detach_focusing
    )
    _flat(gain)[index] = positive.numpy() * pos_weight
    _flat(slope)[index] = positive_slope.numpy() * (-pos_weight * of_positive / factor)
    if weight is not None:
        gain.mul_(weight)
        slope.mul_(weight)

    total = 0 - gain.sum().item()  # not -0
    # A sum of logits is finite where all are.
    if not math.isfinite(total) or not math.isfinite(z.sum().item()):
        return None
    if sums is not None:
        _flat(right)[index] = right_of_positives.numpy()
        places = torch.from_numpy(index % sums.shape[1])
        counted = torch.stack([right_of_positives, torch.ones_like(right_of_positives)])
        of_all = right.sum(0) if sums.shape[1] > 1 else right.sum()[None]
        of_all = torch.stack([of_all, torch.full_like(of_all, right.numel() / sums.shape[1])])
        batch = torch.cat([torch.zeros_like(of_all).index_add_(1, places, counted), of_all])
        sums = sums + batch
    return total, slope, factor, sums


def _flat(tensor: Tensor) -> np.ndarray:
    """The same memory. numpy reads and writes places in less time than torch."""
    return tensor.view(-1).numpy()


def _log_right(s: Tensor) -> Tensor:
    """log(1 - sigmoid(s)). For F.logsigmoid threads meet over a few hundred numbers even."""
    return F.softplus(s, threshold=40).neg_()


def _positives(targets: Tensor, num_classes: int, ignore_index: int) -> np.ndarray | None:
    """Their places among all N * C, (K,); None where a label is something else than positive or negative."""
    # numpy finds what is not 0 several times faster than torch. It has no bfloat16.
    labels = (targets.float() if targets.dtype == torch.bfloat16 else targets).detach().reshape(-1).numpy()
    if targets.ndim == 2:
        index = np.flatnonzero(labels != 0)
        return index if np.count_nonzero(labels[index] == 1) == len(index) else None
    low, high = labels.min(), labels.max()
    if low < 0 or high > num_classes or low <= ignore_index <= high:
        return None
    rows = np.flatnonzero(labels < num_classes)
    return rows * num_classes + labels[rows]
