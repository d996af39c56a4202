"""``one_pass`` as single operations, for where there is no compiler, and for small batches."""

import itertools
import math

import torch
from torch import Tensor

from .one_pass import Outcome, Setting, add_counts, elements, hard_terms, one_pass

# Elements of a block of rows. Threads meet after every operation, so that smaller blocks cost more on several of them,
# and of larger ones the ten tensors leave the caches of a CPU.
BLOCK = 1 << 18


def eager_pass(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    scale: float | Tensor,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
    sums: Tensor | None,
) -> Outcome:
    """As ``one_pass``, on a CPU in blocks of rows."""
    if not logits.is_cpu:
        return one_pass(setting, logits, targets, weight, scale, gamma_neg, clip, sums).with_total()
    scale = float(scale)
    rows, num_classes = logits.shape
    step = max(1, BLOCK // num_classes)
    total, grad = 0.0, torch.empty_like(logits)
    blocks = [(logits, targets, weight, grad)] if rows else []
    if rows > step:
        by_rows = weight is not None and weight.ndim == 2 and len(weight) == rows
        weights = weight.split(step) if by_rows else itertools.repeat(weight)
        blocks = zip(logits.split(step), targets.split(step), weights, grad.split(step))
    for part, part_targets, part_weight, part_grad in blocks:
        loss, slope, sums = _block(setting, part, part_targets, part_weight, gamma_neg, clip, sums)
        total += loss
        torch.mul(slope, scale, out=part_grad)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return Outcome(logits.new_full((), total * scale, dtype=dtype), grad, sums)


def _block(
    setting: Setting,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    gamma_neg: Tensor | None,
    clip: Tensor | None,
    sums: Tensor | None,
) -> tuple[float, Tensor, Tensor | None]:
    """
    Returns:
        the sum of the losses, their derivatives, (N, C), and the probability sums.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    found = _hard_labels(targets, z, setting.ignore_index)
    if found is not None:
        labels, known = found
        s = torch.addcmul(z, z, labels, value=-2)
        loss, grad, right = hard_terms(setting, s, labels, gamma_neg, clip, bounded=True)
        if known is not None:
            weight = known if weight is None else weight * known
        if weight is not None:
            loss, grad = loss * weight, grad * weight
        total = loss.sum().item()
        # Very large logits are taken once more, at any size.
        if math.isfinite(total):
            if sums is not None:
                counted = torch.ones_like(z) if weight is None else (weight != 0).to(z.dtype).expand_as(z)
                positives = labels * counted
                sums = add_counts(sums, (right * positives, positives, right * counted, counted))
            return total, grad, sums
    loss, grad, counts = elements(setting, logits, targets, weight, gamma_neg, clip)
    return loss.sum().item(), grad, None if sums is None else add_counts(sums, counts())


def _hard_labels(targets: Tensor, z: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None] | None:
    """
    Returns:
        labels, (N, C), 0 where they are unknown, and where they are known, broadcastable to (N, C), None for
        everywhere; both of the dtype of ``z``. None where a target is none of positive, negative and unknown.
    """
    if targets.ndim == 2:
        labels = targets.to(z.dtype)
        if _is_binary(labels):
            return labels, None
        known = (labels != ignore_index).to(z.dtype)
        labels = labels * known
        return (labels, known) if _is_binary(labels) else None
    num_classes, known = z.shape[1], None
    low, high = (bound.item() for bound in torch.aminmax(targets))
    if low <= ignore_index <= high:
        known = (targets != ignore_index).to(z.dtype)[:, None]
        targets = torch.where(targets == ignore_index, num_classes, targets)
        low, high = (bound.item() for bound in torch.aminmax(targets))
    if low < 0 or high > num_classes:
        return None
    is_class = (targets < num_classes).to(z.dtype)[:, None]
    return torch.zeros_like(z).scatter_(1, targets.clamp(max=num_classes - 1)[:, None], is_class), known


def _is_binary(labels: Tensor) -> bool:
    # y - y^2 is 0 for 0 and 1 only.
    return torch.linalg.vector_norm(torch.addcmul(labels, labels, labels, value=-1)).item() == 0
