"""``one_pass`` as single operations, for where there is no compiler, and for small batches."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .one_pass import Outcome, Setting, add_counts, elements, focal, focal_with_margin, is_zero, log1p

# Elements of a block of rows. Threads meet after every operation, so that smaller blocks cost more on several of them,
# and larger ones leave the caches of a CPU.
BLOCK = 1 << 20


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
    rows, num_classes = logits.shape
    step = max(1, BLOCK // num_classes) if logits.is_cpu else max(rows, 1)
    if rows <= step:
        loss, grad, sums = _block(setting, logits, targets, weight, gamma_neg, clip, sums)
        return Outcome(loss * scale, grad.mul_(scale).to(logits.dtype), sums)
    grad = torch.empty_like(logits)
    losses = []
    for start in range(0, rows, step):
        part = slice(start, start + step)
        part_weight = weight[part] if weight is not None and weight.ndim == 2 and len(weight) == rows else weight
        loss, part_grad, sums = _block(setting, logits[part], targets[part], part_weight, gamma_neg, clip, sums)
        losses.append(loss)
        torch.mul(part_grad, scale, out=grad[part])
    return Outcome(torch.stack(losses).sum() * scale, grad, sums)


def _block(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
    sums: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    if logits.is_cpu and logits.numel():
        found = _negatives_and_positives(setting, logits, targets, weight, gamma_neg, clip, sums)
        if found is not None:
            return found
    loss, grad, counts = elements(setting, logits, targets, weight, gamma_neg, clip)
    return loss.sum(), grad, None if sums is None else add_counts(sums, counts())


def _negatives_and_positives(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
    sums: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The same for what most batches hold: all as negatives, then the few positives in their places.

    Returns:
        as ``_block``; None where there is an unknown or soft label, a logit that is not finite, a margin for each
        class, or a weight beside ``sums``.
    """
    index = _positives(targets, logits.shape[1], setting.ignore_index)
    if index is None or clip is not None or (weight is not None and sums is not None):
        return None
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    pos_weight, neg_weight = (1.0, 1.0) if setting.alpha is None else (setting.alpha, 1 - setting.alpha)
    gamma_neg = setting.gamma_neg if gamma_neg is None else gamma_neg
    clip = setting.clip

    wrong, right = torch.sigmoid(z), (-z).sigmoid_()
    if is_zero(clip):
        gain, grad = focal(right, wrong, _log_right(z), gamma_neg, setting.detach_focusing)
    else:
        p_m = F.softshrink(wrong, clip)
        log = log1p(-p_m, right, clip)
        gain, grad = focal_with_margin(right, wrong, p_m, log, gamma_neg, clip, setting.detach_focusing)
    if neg_weight != 1:
        gain.mul_(neg_weight)
        grad.mul_(neg_weight)
    of_positives = z.view(-1).index_select(0, index)
    right_of_positives, wrong_of_positives = torch.sigmoid(of_positives), torch.sigmoid(-of_positives)
    positive, slope = focal(
        right_of_positives, wrong_of_positives, _log_right(-of_positives), setting.gamma_pos, setting.detach_focusing
    )
    if pos_weight != 1:
        positive, slope = pos_weight * positive, pos_weight * slope
    gain.view(-1).scatter_(0, index, positive)
    grad.view(-1).scatter_(0, index, -slope)
    if weight is not None:
        gain.mul_(weight)
        grad.mul_(weight)

    total = 0 - gain.sum()  # not -0
    # A sum of logits is finite where all are.
    if not math.isfinite(total) or not math.isfinite(z.sum()):
        return None
    if sums is not None:
        right.view(-1).scatter_(0, index, right_of_positives)
        places = index % sums.shape[1]
        counted = torch.stack([right_of_positives, torch.ones_like(right_of_positives)])
        of_all = right.sum(0) if sums.shape[1] > 1 else right.sum()[None]
        of_all = torch.stack([of_all, torch.full_like(of_all, right.numel() / sums.shape[1])])
        batch = torch.cat([torch.zeros_like(of_all).index_add_(1, places, counted), of_all])
        sums = sums + batch
    return total, grad, sums


def _log_right(s: Tensor) -> Tensor:
    """log(1 - sigmoid(s)). For F.logsigmoid threads meet over a few hundred numbers even."""
    return F.softplus(s, threshold=40).neg_()


def _positives(targets: Tensor, num_classes: int, ignore_index: int) -> Tensor | None:
    """Their places among all N * C, (K,); None where a label is something else than positive or negative."""
    # numpy finds what is not 0 several times faster than torch. It has no bfloat16.
    labels = (targets.float() if targets.dtype == torch.bfloat16 else targets).detach().reshape(-1).numpy()
    if targets.ndim == 2:
        index = np.flatnonzero(labels != 0)
        return torch.from_numpy(index) if (labels[index] == 1).all() else None
    low, high = labels.min(), labels.max()
    if low < 0 or high > num_classes or low <= ignore_index <= high:
        return None
    rows = np.flatnonzero(labels < num_classes)
    return torch.from_numpy(rows * num_classes + labels[rows])
