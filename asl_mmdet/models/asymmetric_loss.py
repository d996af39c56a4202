"""Asymmetric Loss For Multi-Label Classification (Ben-Baruch et al., ICCV 2021), equations 1 to 8.

Legend: z logits, p = sigmoid(z), q = 1 - p, m probability margin (``clip``), p_m = max(p - m, 0), N rows (images,
anchors or points), C classes. Everything is computed from logits, without an eps: log(p) is logsigmoid(z), and the
gradients are the closed forms of equation 8, so they stay finite where autograd of ``pow`` and ``log`` does not.
"""

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from mmengine.dist import all_reduce
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook


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
    focusing = q**gamma_pos
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
    focusing = p_m**gamma_neg
    # p_m == 0, and not p_m <= 0 or the like: NaN has to come through.
    return -focusing * log_1_minus_p_m, (focusing * p * slope).masked_fill(p_m == 0, 0)


def _probability_sums(p: Tensor, targets: Tensor, known: Tensor, weight: Tensor | None) -> Tensor:
    """What :class:`ProbabilityStatistics` gathers, (4, C) float64.

    Args:
        p: probabilities (N, C).
        targets: (N,) indices in [0, C], or (N, C) labels in [0, 1].
        known: (N, 1) or (N, C), 0 where the label is unknown.
        weight: broadcastable to (N, C); what has the weight 0 is left out.
    """
    counted = known.to(p.dtype) if weight is None else (known * (weight != 0)).to(p.dtype)
    all_p = p * counted
    if targets.ndim == 2:
        positive_p, positives = (all_p * targets).sum(0), (counted * targets).sum(0)
    else:
        index = targets.clamp(0, p.shape[1] - 1)[:, None]
        is_class = (index == targets[:, None]).to(p.dtype)
        picked = (is_class * term.expand_as(p).gather(1, index) for term in (all_p, counted))
        positive_p, positives = (p.new_zeros(p.shape[1]).index_add_(0, index[:, 0], term[:, 0]) for term in picked)
    sums = torch.stack([positive_p, positives, all_p.sum(0) - positive_p, counted.expand_as(p).sum(0) - positives])
    return sums.to(torch.float64)


class _SummedAsymmetricLoss(torch.autograd.Function):
    """Loss and gradient in one pass: the backward pass only scales what the forward pass has found."""

    @staticmethod
    def forward(
        ctx,
        logits,
        targets,
        weight,
        gamma_pos,
        gamma_neg,
        clip,
        alpha,
        ignore_index,
        detach_focusing,
        reduce,
        with_statistics,
    ):
        z = logits.detach().to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        p, q = torch.sigmoid(z), torch.sigmoid(-z)
        pos_weight, neg_weight = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        loss, grad = (neg_weight * term for term in _negative_term(z, p, q, gamma_neg, clip, detach_focusing))
        if targets.ndim == 1:
            num_classes = z.shape[1]
            y = targets
            known = (targets != ignore_index)[:, None]
            # A label out of range turns into NaN rather than into a plausible number.
            valid = ~known | ((targets >= 0) & (targets <= num_classes))[:, None]
            index = targets.clamp(0, num_classes - 1)[:, None]  # (N, 1)
            is_positive = index == targets[:, None]
            terms = _positive_term(z.gather(1, index), q.gather(1, index), gamma_pos, detach_focusing)
            for total, term in zip((loss, grad), terms):
                total.scatter_(1, index, torch.where(is_positive, pos_weight * term, total.gather(1, index)))
            known = known.to(z.dtype).masked_fill(~valid, math.nan)  # (N, 1)
        else:
            y = targets.to(z.dtype)
            known = y != ignore_index
            y = y.masked_fill(~known, 0)
            y = y.masked_fill((y < 0) | (y > 1), math.nan)
            for total, term in zip((loss, grad), _positive_term(z, q, gamma_pos, detach_focusing)):
                total.lerp_(pos_weight * term, y)
        # Infinite and NaN logits become NaN, and products instead of masks keep them from being hidden.
        nothing = z - z
        scale = known if weight is None else known * weight
        loss.add_(nothing).mul_(scale)
        grad.add_(nothing).mul_(scale)
        ctx.save_for_backward(grad)
        ctx.logits_dtype = logits.dtype
        statistics = _probability_sums(p, y, known, weight) if with_statistics else z.new_empty(0)
        ctx.mark_non_differentiable(statistics)
        return loss.sum() if reduce else loss, statistics

    @staticmethod
    def backward(ctx, grad_output, _):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                'AsymmetricLoss can be differentiated once only: its gradient comes from eq. 8 in closed form. '
                'Call backward or torch.autograd.grad without create_graph=True.'
            )
        (grad,) = ctx.saved_tensors
        return ((grad * grad_output).to(ctx.logits_dtype),) + (None,) * 10


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    *,
    gamma_pos: float = 0.0,
    gamma_neg: float | Tensor = 4.0,
    clip: float | Tensor = 0.05,
    alpha: float | None = None,
    ignore_index: int = -1,
    detach_focusing: bool = False,
    reduction: str = 'sum',
    statistics: Sequence['ProbabilityStatistics'] = (),
) -> Tensor:
    """Eqs. 1, 2 and 7, weighted: sum of ``weight * (-y L+ - (1 - y) L-)``, or its elements.

    Args:
        logits: (N, C), floating point. float16 and bfloat16 are computed in float32.
        targets: (N,) class indices with background C, or (N, C) labels in [0, 1]. ``ignore_index`` marks what is
            unknown and contributes nothing. Anything else yields NaN.
        weight: broadcastable to (N, C); a constant.
        gamma_neg, clip: as tensors, broadcastable to (N, C), constants.
        alpha: static weight of positives, with 1 - alpha for negatives; None weighs both with 1.
        detach_focusing: hold the focusing factors constant in the backward pass.
        reduction: 'sum' or 'none'.
        statistics: each is given the probabilities of this batch.

    Returns:
        0-d tensor or (N, C), float64 for float64 logits, otherwise float32. It can be differentiated once.
    """
    loss, sums = _SummedAsymmetricLoss.apply(
        logits,
        targets,
        weight,
        gamma_pos,
        gamma_neg,
        clip,
        alpha,
        ignore_index,
        detach_focusing,
        reduction == 'sum',
        len(statistics) > 0,
    )
    for gathered in statistics:
        gathered.add(sums)
    return loss


class ProbabilityStatistics:
    """Average probabilities of positives and negatives (eq. 9) over any number of batches and all processes.

    Elements of unknown label or of weight 0 do not count. A soft label y counts as y positives and 1 - y negatives.

    Args:
        num_classes: C, to keep the classes apart.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        # Rows: sum of p over positives, number of positives, the same two over negatives.
        self.sums = torch.zeros(4, num_classes or 1, dtype=torch.float64)

    def add(self, sums: Tensor) -> None:
        """Adds (4, C), the rows of ``sums`` for one batch."""
        sums = sums if self.sums.shape[1] > 1 else sums.sum(1, keepdim=True)
        self.sums = self.sums.to(sums.device) + sums

    def take(self) -> Tensor:
        """Sums and counts over all processes since the last call, (4, C) or (4, 1); every process has to call it."""
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        all_reduce(sums)
        return sums


def mean_probabilities(sums: Tensor) -> tuple[Tensor, Tensor]:
    """p_t+ and p_t- of eq. 9, (C,) each, from ``ProbabilityStatistics.take``; NaN where there is no such sample.

    p_t- is the mean of 1 - p, so that eq. 10's gap is their difference.
    """
    positive_p, positives, negative_p, negatives = sums
    return positive_p / positives, 1 - negative_p / negatives


@MODELS.register_module()
class AsymmetricLoss(nn.Module):
    """Asymmetric Loss (eq. 7) for mmdet's dense heads and for multi-label heads.

    ``gamma_pos = gamma_neg = 0, clip = 0`` is binary cross-entropy; equal gammas with ``alpha`` are mmdet's FocalLoss.
    The defaults are the paper's for multi-label classification; detectors want ``gamma_pos=1, gamma_neg=2, clip=0``
    (appendix H), and ``use_sigmoid=True`` written out in the config, because mmdet's heads read it there.

    The value is a sum of elements divided as ``reduction`` and ``avg_factor`` say: by N * C for 'mean' without
    ``avg_factor``, by ``avg_factor`` (the number of positives in detectors, of images in classification) with it. The
    official code returns the plain sum, that is ``reduction='sum'``.

    Args:
        gamma_pos: gamma+ of eq. 4, 0 or more.
        gamma_neg: gamma- of eq. 4, 0 or more.
        clip: probability margin m of eq. 5, in [0, 1).
        alpha: static weight in [0, 1] of positives, with 1 - alpha for negatives. None weighs both with 1.
        use_sigmoid: True; the loss is a sum of binary losses.
        detach_focusing: hold the focusing factors constant in the backward pass. The official training script does
            (``disable_torch_grad_focal_loss``); eq. 8 does not.
        class_weight: C factors, one a class, on both its positives and its negatives.
        ignore_index: the value of ``target`` that means unknown: no loss, no gradient.
        reduction: 'mean', 'sum' or 'none'.
        loss_weight: factor on the result.
        eps: accepted for configs written for mmpretrain; nothing here needs it.
        disable_torch_grad_focal_loss: the official code's name for ``detach_focusing``.
        debug: check the values of ``target`` on a GPU at every call, which synchronises it, instead of only at the
            first calls. On a CPU they are always checked. Unchecked values out of range give a NaN loss.

    Raises:
        ValueError: an argument is out of its range.
    """

    # So many calls of a training run are looked at for clipped negatives and, on a GPU, for targets out of range.
    CHECKED_CALLS = 100
    # What AdaptiveAsymmetryHook adds to the state of the model.
    ADAPTIVE_STATE = ('gamma_neg', 'clip', 'probability_sums')

    def __init__(
        self,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        clip: float = 0.05,
        alpha: float | None = None,
        use_sigmoid: bool = True,
        detach_focusing: bool = False,
        class_weight: None | Sequence[float] | Tensor = None,
        ignore_index: int = -1,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
        eps: float | None = None,
        disable_torch_grad_focal_loss: bool | None = None,
        debug: bool = False,
    ) -> None:
        super().__init__()
        for name, value in dict(gamma_pos=gamma_pos, gamma_neg=gamma_neg).items():
            if not 0 <= value < math.inf:
                raise ValueError(f'{name}={value} of AsymmetricLoss must be a finite number of 0 or more')
        clip = 0.0 if clip is None else clip
        if not 0 <= clip < 1:
            raise ValueError(f'clip={clip} of AsymmetricLoss is a probability margin and must lie in [0, 1)')
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f'alpha={alpha} of AsymmetricLoss must be None or lie in [0, 1]')
        if use_sigmoid is not True:
            raise ValueError(
                f'use_sigmoid={use_sigmoid}: AsymmetricLoss is a sum of sigmoid losses; set use_sigmoid=True'
            )
        if reduction not in ('none', 'mean', 'sum'):
            raise ValueError(f"reduction={reduction!r} of AsymmetricLoss must be 'none', 'mean' or 'sum'")
        if not math.isfinite(loss_weight):
            raise ValueError(f'loss_weight={loss_weight} of AsymmetricLoss must be finite')
        if class_weight is not None:
            class_weight = torch.as_tensor(class_weight, dtype=torch.float32)
            if class_weight.ndim != 1 or not bool(((class_weight >= 0) & class_weight.isfinite()).all()):
                raise ValueError(
                    f'class_weight={class_weight.tolist()} of AsymmetricLoss must be one finite number of 0 or '
                    'more for each class'
                )
        self.gamma_pos = float(gamma_pos)
        self.gamma_neg = float(gamma_neg)
        self.clip = float(clip)
        self.alpha = alpha
        self.use_sigmoid = use_sigmoid
        self.detach_focusing = (
            detach_focusing if disable_torch_grad_focal_loss is None else disable_torch_grad_focal_loss
        )
        self.register_buffer('class_weight', class_weight, persistent=False)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.debug = debug
        self._calls_left_to_check = self.CHECKED_CALLS
        self._statistics: list[ProbabilityStatistics] = []

    def observe(self, statistics: ProbabilityStatistics) -> None:
        """Gives ``statistics`` the probabilities of every batch that is trained on from now on."""
        self._statistics.append(statistics)

    def make_adaptive(self, name: str, shape: tuple[int, ...], device: torch.device) -> None:
        """Turns ``gamma_neg`` or ``clip`` into a buffer, 0-d or (C,), for a hook to change in place.

        The buffer is saved with the model; a loss that has none leaves it alone in a checkpoint.
        """
        value = getattr(self, name)
        delattr(self, name)
        self.register_buffer(name, torch.full(shape, value, device=device))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name in self.ADAPTIVE_STATE:
            if name not in self._buffers:
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f'gamma_pos={self.gamma_pos}, gamma_neg={self.gamma_neg}, clip={self.clip}, alpha={self.alpha}, '
            f'detach_focusing={self.detach_focusing}, reduction={self.reduction!r}, loss_weight={self.loss_weight}'
        )

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: None | float | Tensor = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted and averaged loss under the contract of mmdet's losses.

        Args:
            pred: logits (N, C).
            target: (N,) integer class indices in [0, C], C being background, or (N, C) labels, each in [0, 1];
                ``ignore_index`` where unknown.
            weight: (N,), (N, 1), (N, C) or (N * C,), a constant.
            avg_factor: what a sum is divided by instead of N * C under 'mean'.
            reduction_override: replaces ``reduction`` in this call.

        Returns:
            0-d tensor, or (N, C) under 'none'; float64 for float64 logits, otherwise float32.

        Raises:
            TypeError: ``pred`` or an index ``target`` has a wrong dtype.
            ValueError: shapes do not match, a label is out of range, or ``avg_factor`` meets reduction 'sum'.
        """
        if reduction_override not in (None, 'none', 'mean', 'sum'):
            raise ValueError(f"reduction_override={reduction_override!r} must be None, 'none', 'mean' or 'sum'")
        reduction = reduction_override or self.reduction
        self._check_shapes(pred, target)
        weight = self._elementwise_weight(pred, weight)
        if not torch.compiler.is_compiling():
            self._check_values(pred, target)
        loss = asymmetric_loss(
            pred,
            target,
            weight,
            gamma_pos=self.gamma_pos,
            gamma_neg=self.gamma_neg,
            clip=self.clip,
            alpha=self.alpha,
            ignore_index=self.ignore_index,
            detach_focusing=self.detach_focusing,
            reduction='none' if reduction == 'none' else 'sum',
            statistics=self._statistics if self.training else (),
        )
        if reduction == 'mean' and avg_factor is None:
            loss = loss / max(pred.numel(), 1)
        else:
            loss = weight_reduce_loss(loss, reduction=reduction, avg_factor=avg_factor)
        return self.loss_weight * loss

    def _check_shapes(self, pred: Tensor, target: Tensor) -> None:
        if not torch.is_tensor(pred) or not pred.is_floating_point():
            raise TypeError(f'pred of AsymmetricLoss must hold floating-point logits, got {_describe(pred)}')
        if pred.ndim != 2 or pred.shape[1] == 0:
            raise ValueError(
                f'pred of AsymmetricLoss must have shape (N, C) with C >= 1, got {_describe(pred)}; flatten '
                'other dimensions into N'
            )
        if not torch.is_tensor(target) or target.shape not in (pred.shape, pred.shape[:1]):
            raise ValueError(
                f'target of AsymmetricLoss must be a tensor of shape {tuple(pred.shape[:1])} (class indices) or '
                f'{tuple(pred.shape)} (labels) for pred of shape {tuple(pred.shape)}, got {_describe(target)}'
            )
        if target.ndim == 1 and (target.is_floating_point() or target.dtype == torch.bool):
            raise TypeError(
                f'target of AsymmetricLoss with one entry a row holds class indices and must be integer, got '
                f'{target.dtype}; give labels the shape {tuple(pred.shape)} of pred'
            )
        if target.ndim == 2 and 0 <= self.ignore_index <= 1:
            raise ValueError(
                f'ignore_index={self.ignore_index} of AsymmetricLoss is a valid label of a target of shape '
                '(N, C); use -1'
            )
        if target.requires_grad:
            raise ValueError('target of AsymmetricLoss is a constant, but requires grad; pass target.detach()')
        if self.class_weight is not None and len(self.class_weight) != pred.shape[1]:
            raise ValueError(
                f'class_weight of AsymmetricLoss has {len(self.class_weight)} entries, but pred has '
                f'{pred.shape[1]} classes'
            )

    def _elementwise_weight(self, pred: Tensor, weight: Tensor | None) -> Tensor | None:
        if weight is None:
            return self.class_weight
        rows, num_classes = pred.shape
        if weight.shape == (rows,):
            weight = weight[:, None]
        elif weight.shape == (rows * num_classes,):
            weight = weight.view(rows, num_classes)
        elif weight.shape not in ((rows, 1), (rows, num_classes)):
            raise ValueError(
                f'weight of AsymmetricLoss must have shape (N,), (N, 1), (N, C) or (N * C,) for pred of shape '
                f'{tuple(pred.shape)}, got {_describe(weight)}'
            )
        if weight.requires_grad:
            raise ValueError('weight of AsymmetricLoss is a constant, but requires grad; pass weight.detach()')
        return weight if self.class_weight is None else weight * self.class_weight

    def _check_values(self, pred: Tensor, target: Tensor) -> None:
        first_calls = self._calls_left_to_check > 0
        if target.numel() and (target.device.type == 'cpu' or first_calls or self.debug):
            _check_labels(target, pred.shape[1], self.ignore_index)
        if self.training and first_calls:
            self._calls_left_to_check -= 1
            if self.clip > 0 and target.numel():
                self._warn_of_clipped_negatives(pred.detach(), target)

    def _warn_of_clipped_negatives(self, pred: Tensor, target: Tensor) -> None:
        if target.ndim == 1:
            is_class = torch.arange(pred.shape[1], device=pred.device) == target[:, None]
            negatives = pred[~is_class & (target != self.ignore_index)[:, None]]
        else:
            negatives = pred[target == 0]
        largest = negatives.max().sigmoid().item() if negatives.numel() else math.nan
        if largest <= self.clip:
            self._calls_left_to_check = 0
            warnings.warn(
                f'AsymmetricLoss: all {negatives.numel()} negatives of a batch have p <= clip={float(self.clip)} (the '
                f'largest is {largest:.4g}), so they have neither loss nor gradient. Detectors start at '
                'bias_prob=0.01: set clip=0.0 for them, or a clip well below the probabilities at the start.'
            )


def _describe(value: object) -> str:
    return f'{tuple(value.shape)} of {value.dtype}' if torch.is_tensor(value) else type(value).__name__


def _check_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    upper, what = (num_classes, 'class indices') if target.ndim == 1 else (1, 'labels')
    low, high = (bound.item() for bound in torch.aminmax(target.detach()))
    if low >= 0 and high <= upper:
        return
    wrong = target[~((target >= 0) & (target <= upper)) & (target != ignore_index)]
    if wrong.numel():
        background = f' ({num_classes} is background)' if target.ndim == 1 else ''
        raise ValueError(
            f'target of AsymmetricLoss holds {wrong[0].item()}: {what} must lie in [0, {upper}]{background} or '
            f'equal ignore_index={ignore_index} for unknown'
        )


def _refuse_softmax_head(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Called by torch whenever a module gets a submodule: mmdet's heads read use_sigmoid in the config."""
    if isinstance(submodule, AsymmetricLoss) and vars(module).get('use_sigmoid_cls') is False:
        raise ValueError(
            f'{type(module).__name__}.{name} is an AsymmetricLoss, but its config lacks use_sigmoid=True, so the '
            'head would build num_classes + 1 softmax channels. Write '
            f"{name}=dict(type='AsymmetricLoss', use_sigmoid=True, ...)"
        )


register_module_module_registration_hook(_refuse_softmax_head)
