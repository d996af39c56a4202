"""Asymmetric Loss For Multi-Label Classification (Ben-Baruch et al., ICCV 2021), equations 1 to 8.

N rows (images, anchors or points), C classes. The arithmetic is in ``one_pass.py``.
"""

import math
import warnings
from collections.abc import Sequence
from numbers import Real

import torch
from mmdet.models.losses import accuracy
from mmdet.registry import MODELS
from mmengine.dist import all_reduce
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from .fused_pass import choose_pass
from .one_pass import Setting, add_counts, elements
from .scale_gradient import scale_gradient

EPS = torch.finfo(torch.float32).eps


class _AsymmetricLoss(torch.autograd.Function):
    """A loss whose gradient was found with it: the backward pass only scales that."""

    @staticmethod
    def forward(ctx, logits, outcome, inputs, left_over, setting, run):
        # inputs: what the pass wants between logits and sums; left_over: the part of the scale that it was not given.
        constants = (*inputs, left_over)
        tensors = [one if torch.is_tensor(one) else None for one in constants]
        ctx.save_for_backward(outcome.grad, logits, *tensors)
        ctx.numbers = [one if tensor is None else None for one, tensor in zip(constants, tensors)]
        ctx.setting, ctx.run, ctx.given_away = setting, run, False
        return outcome.loss if left_over is None else outcome.loss * left_over

    @staticmethod
    def backward(ctx, grad_output):
        _refuse_double_backward()
        grad, logits, *tensors = ctx.saved_tensors
        *inputs, left_over = (ours if one is None else one for ours, one in zip(ctx.numbers, tensors))
        factor = grad_output if left_over is None else grad_output * left_over
        if torch.compiler.is_compiling():
            return (grad * factor).to(grad.dtype), *[None] * 5
        if ctx.given_away:
            grad = ctx.run(ctx.setting, logits.detach(), *inputs, None).grad
        ctx.given_away = True
        # In place: with retain_graph the next backward pass computes it anew.
        scale_gradient(grad, factor)
        # With a count of changes of its own: whoever changes it does not spoil the graph.
        return grad.data, *[None] * 5


class _AsymmetricLossElements(torch.autograd.Function):
    """The same without the sum."""

    @staticmethod
    def forward(ctx, logits, loss, grad):
        ctx.save_for_backward(grad)
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        _refuse_double_backward()
        (grad,) = ctx.saved_tensors
        return (grad * grad_output).to(ctx.dtype), None, None


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            'AsymmetricLoss can be differentiated once only: its gradient comes from eq. 8 in closed form. '
            'Call backward or torch.autograd.grad without create_graph=True.'
        )


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
    scale: float | Tensor = 1.0,
    statistics: Sequence['ProbabilityStatistics'] = (),
    fused: bool | None = None,
) -> Tensor:
    """Eqs. 1, 2 and 7, weighted: sum of ``scale * weight * (-y L+ - (1 - y) L-)``, or its elements.

    Args:
        logits: (N, C), floating point. float16 and bfloat16 are computed in float32.
        targets: (N,) class indices with background C, or (N, C) labels in [0, 1]. ``ignore_index`` marks what is
            unknown and contributes nothing. Anything else yields NaN.
        weight: broadcastable to (N, C); a constant.
        gamma_neg, clip: as tensors, 0-d or (C,), constants.
        alpha: static weight of positives, with 1 - alpha for negatives; None weighs both with 1.
        detach_focusing: hold the focusing factors constant in the backward pass.
        reduction: 'sum' or 'none'.
        scale: a constant factor; with it in here the backward pass has nothing left to do.
        statistics: each is given the probabilities of this batch.
        fused: True computes the sum in one kernel, torch.compile's on a CPU and Triton's on a GPU, False in single
            operations. None takes the kernel on a GPU, and on a CPU from 8192 elements on, where it can be compiled.
            float64 goes by single operations on a GPU.

    Returns:
        0-d tensor or (N, C), float64 for float64 logits, otherwise float32. It can be differentiated once.
    """
    if reduction not in ('sum', 'none'):
        raise ValueError(f"reduction={reduction!r} of asymmetric_loss must be 'sum' or 'none'; scale divides a sum")
    if targets.ndim == 2 and 0 <= ignore_index <= 1:
        raise ValueError(
            f'ignore_index={ignore_index} of AsymmetricLoss is a valid label of a target of shape (N, C); use -1'
        )
    targets = _as_compiled(targets)
    gamma_neg, gamma_neg_tensor = (None, gamma_neg) if torch.is_tensor(gamma_neg) else (float(gamma_neg), None)
    clip, clip_tensor = (None, clip) if torch.is_tensor(clip) else (float(clip), None)
    hard = not targets.is_floating_point()
    by_rows = targets.ndim == 1 or not logits.is_cpu
    alpha = None if alpha is None else float(alpha)
    if torch.is_tensor(scale):
        scale = scale.to(logits.device, torch.promote_types(logits.dtype, torch.float32))
    else:
        scale = float(scale)
    setting = Setting(float(gamma_pos), gamma_neg, clip, alpha, ignore_index, detach_focusing, hard, by_rows)
    sums = _sums_to_start_from(statistics, logits) if statistics else None
    if reduction == 'none':
        with torch.no_grad():
            loss, grad, counts = elements(setting, logits.detach(), targets, weight, gamma_neg_tensor, clip_tensor)
            if sums is not None:
                sums = add_counts(sums, counts())
        loss = _AsymmetricLossElements.apply(logits, loss, grad) * scale
    else:
        # Times 1 / N a small gradient would be lost in float16, before the loss scale can save it.
        folded, left_over = scale, None
        if logits.dtype == torch.float16:
            folded = 256.0
            if weight is not None and weight.numel():
                # dL/dz is 2 at most, and the largest number 65504.
                folded = folded / (weight.float().abs().amax() / 100).clamp(min=1)
            left_over = scale / folded
        run = choose_pass(logits, fused)
        inputs = (targets, weight, folded, gamma_neg_tensor, clip_tensor)
        with torch.no_grad():
            outcome = run(setting, logits.detach(), *inputs, sums)
        if setting.gamma_neg is None or setting.clip is None:
            # A hook may change these before the backward pass.
            inputs = (*inputs[:3], *(None if tensor is None else tensor.clone() for tensor in inputs[3:]))
        loss = _AsymmetricLoss.apply(logits, outcome, inputs, left_over, setting, run)
        sums = outcome.sums
    if sums is None:
        return loss
    if len(statistics) == 1 and statistics[0].sums.device == sums.device:
        # In place: a small tensor that stays would lie where the next gradient could.
        statistics[0].sums.copy_(sums)
    elif len(statistics) == 1:
        statistics[0].sums = sums
    else:
        for one in statistics:
            one.sums = one.sums.to(sums) + (sums if one.by_class else sums.sum(1, keepdim=True))
    return loss


def _sums_to_start_from(statistics: Sequence['ProbabilityStatistics'], logits: Tensor) -> Tensor:
    """Those of the only one, so that the pass adds to them itself, or zeros for several."""
    if len(statistics) == 1:
        return statistics[0].sums.to(logits.device, dtype_of_sums(logits.device))
    num_classes = logits.shape[1] if any(one.by_class for one in statistics) else 1
    return torch.zeros(4, num_classes, dtype=dtype_of_sums(logits.device), device=logits.device)


def dtype_of_sums(device: torch.device) -> torch.dtype:
    """Of sums over batches: float64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == 'mps' else torch.float64


class ProbabilityStatistics:
    """Average probabilities of positives and negatives (eq. 9) over any number of batches and all processes.

    Elements of unknown label or of weight 0 do not count. A soft label y counts as y positives and 1 - y negatives.

    Args:
        num_classes: C, to keep the classes apart.

    Attributes:
        sums: (4, C) or (4, 1), ``dtype_of_sums``, of this process since the last ``take``: as that, but over all
            elements in place of negatives.
        paused: whether batches pass by.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        self.by_class = num_classes is not None
        self.sums = torch.zeros(4, num_classes or 1, dtype=torch.float64)
        self.paused = False

    def take(self) -> Tensor:
        """Sums over all processes since the last call, which every process has to make.

        Returns:
            (4, C) or (4, 1), ``dtype_of_sums``: sum of p_t (eq. 9: p of positives, 1 - p of negatives) over positives,
            number of positives, the same two over negatives.
        """
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        all_reduce(sums)
        sums[2:] -= sums[:2]
        return sums


def mean_probabilities(sums: Tensor) -> tuple[Tensor, Tensor]:
    """p_t+ and p_t- of eq. 9, (C,) each, from ``ProbabilityStatistics.take``; NaN where there is no such sample."""
    of_positives, positives, of_negatives, negatives = sums
    return of_positives / positives, of_negatives / negatives


@MODELS.register_module()
class AsymmetricLoss(nn.Module):
    """Asymmetric Loss (eq. 7) for mmdet's dense heads, R-CNN's box heads, and multi-label heads.

    ``gamma_pos = gamma_neg = 0, clip = 0`` is binary cross-entropy; equal gammas with ``alpha`` are mmdet's FocalLoss.
    The defaults are the paper's for multi-label classification; detectors want ``gamma_pos=1, gamma_neg=2, clip=0``
    (appendix H, which names no margin), and ``use_sigmoid=True`` written out in the config, because mmdet's heads read
    it there.

    The value is a sum of elements divided as ``reduction`` and ``avg_factor`` say: by N * C for 'mean' without
    ``avg_factor``, by ``avg_factor`` (the number of positives in detectors, of images in classification) with it. The
    official code returns the plain sum, that is ``reduction='sum'``.

    Arguments go by name: the official code has gamma_neg first, mmpretrain gamma_pos.

    Args:
        gamma_pos: gamma+ of eq. 4, 0 or more.
        gamma_neg: gamma- of eq. 4, 0 or more. As attributes, this and ``clip`` may be changed at any step.
        clip: probability margin m of eq. 5, in [0, 1); None is 0, as in the official code.
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
        fused: True computes the loss in one kernel, torch.compile's on a CPU and Triton's on a GPU, False in single
            operations, and None takes the kernel on a GPU, and on a CPU from 8192 elements on, where it can be
            compiled. The first call waits some seconds for the kernel. float64 goes by single operations on a GPU.

    Raises:
        TypeError: gamma_pos, gamma_neg, clip, alpha, ignore_index or loss_weight is no number, or class_weight holds
            others.
        ValueError: an argument is out of its range.
    """

    class_weight: Tensor | None

    # So many calls of a training run are looked at for targets out of range, on a GPU, and for clipped negatives.
    CHECKED_CALLS = 100
    CALLS_CHECKED_FOR_CLIPPING = 3
    # What box heads of R-CNN ask of their loss, and only of a loss with channels of its own; there both become True.
    custom_cls_channels = custom_activation = False
    # What AdaptiveAsymmetryHook adds to the state of the model.
    ADAPTIVE_STATE = ('gamma_neg', 'clip', 'probability_sums')

    def __init__(
        self,
        *,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        clip: float | None = 0.05,
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
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        numbers = dict(
            gamma_pos=gamma_pos,
            gamma_neg=gamma_neg,
            clip=clip,
            alpha=alpha,
            ignore_index=ignore_index,
            loss_weight=loss_weight,
        )
        for name, value in numbers.items():
            if not isinstance(value, Real) and not (value is None and name in ('clip', 'alpha')):
                raise TypeError(f'{name}={value!r} of AsymmetricLoss must be a number')
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
            try:
                class_weight = torch.as_tensor(class_weight, dtype=torch.float32)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f'class_weight={class_weight!r} of AsymmetricLoss must be a list of one number for each class'
                ) from error
            if class_weight.ndim != 1 or not bool(((class_weight >= 0) & class_weight.isfinite()).all()):
                raise ValueError(
                    f'class_weight={class_weight.tolist()} of AsymmetricLoss must be one finite number of 0 or '
                    'more for each class'
                )
        self.gamma_pos = float(gamma_pos)
        self.gamma_neg = float(gamma_neg)
        self.clip = float(clip)
        self._given = dict(gamma_neg=self.gamma_neg, clip=self.clip)
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
        self.fused = fused
        self._calls_left_to_check = self.CHECKED_CALLS
        self.warned_of_clipping = False
        self._statistics: list[ProbabilityStatistics] = []

    def observe(self, statistics: ProbabilityStatistics) -> None:
        """Gives ``statistics`` the probabilities of every batch that is trained on from now on, unless it is paused."""
        self._statistics.append(statistics)

    def stop_observing(self, statistics: ProbabilityStatistics) -> None:
        """Ends what ``observe`` began."""
        self._statistics.remove(statistics)

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
        if reduction == 'sum' and avg_factor is not None:
            raise ValueError("avg_factor of AsymmetricLoss cannot be used with reduction='sum'")
        scale = self.loss_weight
        if reduction == 'mean':
            if torch.is_tensor(avg_factor):
                if avg_factor.requires_grad or avg_factor.numel() != 1:
                    raise ValueError(
                        f'avg_factor of AsymmetricLoss is one constant number, got {_describe(avg_factor)}'
                        f'{" that requires grad; pass avg_factor.detach()" if avg_factor.requires_grad else ""}'
                    )
                avg_factor = avg_factor.reshape(())
            # As mmdet's weight_reduce_loss.
            scale = scale / (max(pred.numel(), 1) if avg_factor is None else avg_factor + EPS)
        if not torch.compiler.is_compiling():
            self._check_first_calls(pred, target)
        loss = asymmetric_loss(
            pred,
            target,
            weight,
            gamma_pos=self.gamma_pos,
            gamma_neg=self._number('gamma_neg', pred),
            clip=self._number('clip', pred),
            alpha=self.alpha,
            ignore_index=self.ignore_index,
            detach_focusing=self.detach_focusing,
            reduction='none' if reduction == 'none' else 'sum',
            scale=scale,
            statistics=[one for one in self._statistics if not one.paused] if self.training else (),
            fused=self.fused,
        )
        # Labels out of range are NaN in the loss, which a CPU can look at.
        if loss.is_cpu and not torch.compiler.is_compiling():
            total = loss if loss.ndim == 0 else loss.detach().sum()
            if not math.isfinite(total.item()):
                _check_labels(target, pred.shape[1], self.ignore_index)
        return loss

    def get_cls_channels(self, num_classes: int) -> int:
        """Logits per box of an R-CNN head, which has a channel for background under other losses."""
        return num_classes

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Probabilities (N, C + 1) of an R-CNN head from logits (N, C); the last is background, 1 - the largest."""
        p = cls_score.sigmoid()
        return torch.cat([p, 1 - p.amax(dim=-1, keepdim=True)], dim=-1)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percentage of boxes whose class, or background, an R-CNN head has found; for its log."""
        return dict(acc=accuracy(self.get_activation(cls_score), labels))

    def _number(self, name: str, pred: Tensor) -> float | Tensor:
        """``gamma_neg`` or ``clip``; as a tensor, which needs no kernel of its own, where it was changed."""
        value = getattr(self, name)
        if torch.is_tensor(value) or value == self._given[name]:
            return value
        return torch.full((), value, dtype=torch.promote_types(pred.dtype, torch.float32), device=pred.device)

    def _check_shapes(self, pred: Tensor, target: Tensor) -> None:
        if not torch.is_tensor(pred) or not pred.is_floating_point():
            raise TypeError(f'pred of AsymmetricLoss must hold floating-point logits, got {_describe(pred)}')
        shape = pred.shape
        if len(shape) != 2 or shape[1] == 0:
            raise ValueError(
                f'pred of AsymmetricLoss must have shape (N, C) with C >= 1, got {_describe(pred)}; flatten '
                'other dimensions into N. A head that gives heat maps, as CenterNet, or grids, as YOLOv3, keeps its '
                'own loss'
            )
        if not torch.is_tensor(target) or target.shape not in (shape, shape[:1]):
            with_quality = '; a head that gives quality scores beside labels, as GFL and RTMDet, keeps its own loss'
            raise ValueError(
                f'target of AsymmetricLoss must be a tensor of shape {tuple(shape[:1])} (class indices) or '
                f'{tuple(shape)} (labels) for pred of shape {tuple(shape)}, got {_describe(target)}'
                f'{with_quality if isinstance(target, tuple) else ""}'
            )
        holds_indices = target.ndim == 1
        if holds_indices and (target.is_floating_point() or target.dtype == torch.bool):
            raise TypeError(
                f'target of AsymmetricLoss with one entry a row holds class indices and must be integer, got '
                f'{target.dtype}; give labels the shape {tuple(shape)} of pred'
            )
        if target.requires_grad:
            raise ValueError('target of AsymmetricLoss is a constant, but requires grad; pass target.detach()')

    def _elementwise_weight(self, pred: Tensor, weight: Tensor | None) -> Tensor | None:
        rows, num_classes = pred.shape
        class_weight = self.class_weight
        if class_weight is not None and len(class_weight) != num_classes:
            raise ValueError(
                f'class_weight of AsymmetricLoss has {len(class_weight)} entries, but pred has {num_classes} classes'
            )
        if weight is None:
            return class_weight
        shape = weight.shape if torch.is_tensor(weight) else None
        if shape == (rows,):
            weight = weight[:, None]
        elif shape == (rows * num_classes,):
            weight = weight.view(rows, num_classes)
        elif shape not in ((rows, 1), (rows, num_classes)):
            raise ValueError(
                f'weight of AsymmetricLoss must be a tensor of shape (N,), (N, 1), (N, C) or (N * C,) for pred of '
                f'shape {tuple(pred.shape)}, got {_describe(weight)}'
            )
        if weight.requires_grad:
            raise ValueError('weight of AsymmetricLoss is a constant, but requires grad; pass weight.detach()')
        return weight if class_weight is None else weight * class_weight

    def _check_first_calls(self, pred: Tensor, target: Tensor) -> None:
        first_calls = self._calls_left_to_check > 0
        if target.numel() and target.device.type != 'cpu' and (first_calls or self.debug):
            _check_labels(target, pred.shape[1], self.ignore_index)
        if self.training and first_calls:
            self._calls_left_to_check -= 1
            early = self.CHECKED_CALLS - self._calls_left_to_check <= self.CALLS_CHECKED_FOR_CLIPPING
            if early and not self.warned_of_clipping and self.clip > 0 and target.numel():
                self._warn_of_clipped_negatives(pred.detach(), target)

    def _warn_of_clipped_negatives(self, pred: Tensor, target: Tensor) -> None:
        if target.ndim == 1:
            is_class = torch.arange(pred.shape[1], device=pred.device) == target[:, None]
            negatives = pred[~is_class & (target.long() != self.ignore_index)[:, None]]
        else:
            negatives = pred[target == 0]
        largest = negatives.max().sigmoid().item() if negatives.numel() else math.nan
        if largest <= self.clip:
            self.warned_of_clipping = True
            warnings.warn(
                f'AsymmetricLoss: all {negatives.numel()} negatives of a batch have p <= clip={float(self.clip)} (the '
                f'largest is {largest:.4g}), so they have neither loss nor gradient. Detectors start at '
                'bias_prob=0.01: set clip=0.0 for them, or a clip well below the probabilities at the start.'
            )


def _describe(value: object) -> str:
    return f'{tuple(value.shape)} of {value.dtype}' if torch.is_tensor(value) else type(value).__name__


def _as_compiled(targets: Tensor) -> Tensor:
    """Indices as int64, so that one kernel serves all; bool and int16 as what torch.compile reads many of at a time."""
    if targets.ndim == 1:
        return targets.long()
    if targets.dtype == torch.bool:
        return targets.view(torch.uint8)
    return targets.int() if targets.dtype == torch.int16 else targets


def _check_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    upper, what = (num_classes, 'class indices') if target.ndim == 1 else (1, 'labels')
    low, high = (bound.item() for bound in torch.aminmax(target.detach()))
    if low >= 0 and high <= upper:
        return
    # In one dimension, so that uint8 does not take 255 for -1.
    unknown = torch.tensor([ignore_index], device=target.device)
    wrong = target[~((target >= 0) & (target <= upper)) & (target != unknown)]
    if wrong.numel():
        background = f' ({num_classes} is background)' if target.ndim == 1 else ''
        raise ValueError(
            f'target of AsymmetricLoss holds {wrong[0].item()}: {what} must lie in [0, {upper}]{background} or '
            f'equal ignore_index={ignore_index} for unknown'
        )


def _fit_into_head(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Called by torch whenever a module gets a submodule: what mmdet's heads ask of a loss depends on their kind."""
    if name == 'fc_cls':
        loss = module._modules.get('loss_cls')
        fits = getattr(submodule, 'out_features', None) == getattr(module, 'num_classes', None)
        if isinstance(loss, AsymmetricLoss) and loss.custom_cls_channels and not fits:
            raise ValueError(
                f'{type(module).__name__}.loss_cls cannot be an AsymmetricLoss: the head builds a softmax with a '
                'channel for background, whatever its loss asks for. Shared2FCBBoxHead, Shared4Conv1FCBBoxHead, dense '
                'and query heads take it'
            )
    if not isinstance(submodule, AsymmetricLoss):
        return
    if hasattr(type(module), 'custom_cls_channels'):
        submodule.custom_cls_channels = submodule.custom_activation = True
    queries = module._modules.get('cls_embed') if name == 'loss_cls' else None
    if isinstance(queries, nn.Linear) and queries.out_features == vars(module).get('num_classes', 0) + 1:
        raise ValueError(
            f'{type(module).__name__}.loss_cls cannot be an AsymmetricLoss: the head predicts by a softmax with a '
            'channel for background'
        )
    if vars(module).get('use_sigmoid_cls') is False:
        raise ValueError(
            f'{type(module).__name__}.{name} is an AsymmetricLoss, but its config lacks use_sigmoid=True, so the '
            'head would build num_classes + 1 softmax channels. Write '
            f"{name}=dict(type='AsymmetricLoss', use_sigmoid=True, ...)"
        )


register_module_module_registration_hook(_fit_into_head)
