"""The softmax variant of asymmetric loss, for classes that exclude each other.

It is the ``ASLSingleLabel`` of https://github.com/Alibaba-MIIL/ASL; the paper has no equation for it, and does not say
whether its single-label result (appendix G) is of this or of the sigmoid loss, :class:`AsymmetricLoss`. Legend: z
logits, p = softmax(z), y the class of a row, N rows, C classes, e smoothing (``eps``). A row's loss is

    - sum over c of s_c w_c log(p_c),    w_y = (1 - p_y)^gamma_pos,      s_y = 1 - e + e / C,
                                         w_c = p_c^gamma_neg otherwise,  s_c = e / C.
"""

import math

import torch
import torch.nn.functional as F
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor, nn


def asl_single_label(
    logits: Tensor,
    target: Tensor,
    *,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    eps: float = 0.1,
    ignore_index: int = -1,
) -> Tensor:
    """Loss of each row, by the formula above; the weights w are differentiated too, as in the official code.

    Args:
        logits: (N, C) with C of 2 or more. float16 and bfloat16 are computed in float32.
        target: (N,) class indices. A row with ``ignore_index`` has no loss; with another value outside [0, C) it is
            NaN.

    Returns:
        (N,), float64 for float64 logits, otherwise float32.
    """
    num_classes = logits.shape[1]
    target = target.long()  # a uint8 of 255 equals -1
    log_p = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
    index = target.clamp(0, num_classes - 1)[:, None]  # (N, 1)
    positive = log_p.gather(1, index)
    # In logarithms, because autograd of pow is infinite or NaN where its base is 0.
    negatives = (log_p * torch.exp(gamma_neg * log_p)).scatter(1, index, 0).sum(1)
    if gamma_pos:
        log_q = log_p.scatter(1, index, -math.inf).logsumexp(1, keepdim=True)  # log(1 - p_y) without cancellation
        positive = positive * torch.exp(gamma_pos * log_q)
    smooth = eps / num_classes
    loss = -(1 - eps + smooth) * positive.squeeze(1) - smooth * negatives
    loss = loss.masked_fill(index.squeeze(1) != target, math.nan)
    return loss.masked_fill(target == ignore_index, 0)


@MODELS.register_module()
class ASLSingleLabel(nn.Module):
    """Softmax variant of asymmetric loss with label smoothing, under the contract of mmdet's losses.

    ``gamma_pos = gamma_neg = 0`` is cross-entropy with label smoothing. The defaults, those of the official code,
    leave the true class as it is there and take from the smoothing what concerns wrong classes of low probability.

    The value is a sum over rows divided by ``avg_factor``, or without it by N under 'mean'. Rows that are ignored
    count in N. :class:`MultiLabelLinearClsHead` reads ``use_sigmoid`` and predicts by softmax with this loss.

    Args:
        gamma_pos: exponent of the weight of the true class, 0 or more.
        gamma_neg: exponent of the weight of the other classes, 0 or more.
        eps: label smoothing, in [0, 1].
        use_sigmoid: False; the probabilities are a softmax.
        ignore_index: the value of ``target`` that means unknown: no loss, no gradient.
        reduction: 'mean', 'sum' or 'none'.
        loss_weight: factor on the result.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        eps: float = 0.1,
        use_sigmoid: bool = False,
        ignore_index: int = -1,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in dict(gamma_pos=gamma_pos, gamma_neg=gamma_neg).items():
            if not 0 <= value < math.inf:
                raise ValueError(f'{name}={value} of ASLSingleLabel must be a finite number of 0 or more')
        if not 0 <= eps <= 1:
            raise ValueError(f'eps={eps} of ASLSingleLabel is the label smoothing and must lie in [0, 1]')
        if use_sigmoid is not False:
            raise ValueError(f'use_sigmoid={use_sigmoid}: ASLSingleLabel is a softmax loss; AsymmetricLoss has sigmoid')
        if reduction not in ('none', 'mean', 'sum'):
            raise ValueError(f"reduction={reduction!r} of ASLSingleLabel must be 'none', 'mean' or 'sum'")
        if not math.isfinite(loss_weight):
            raise ValueError(f'loss_weight={loss_weight} of ASLSingleLabel must be finite')
        self.gamma_pos = float(gamma_pos)
        self.gamma_neg = float(gamma_neg)
        self.eps = float(eps)
        self.use_sigmoid = use_sigmoid
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.loss_weight = loss_weight

    def extra_repr(self) -> str:
        return (
            f'gamma_pos={self.gamma_pos}, gamma_neg={self.gamma_neg}, eps={self.eps}, '
            f'reduction={self.reduction!r}, loss_weight={self.loss_weight}'
        )

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: None | float | Tensor = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted and averaged loss.

        Args:
            pred: logits (N, C), C of 2 or more.
            target: (N,) integer class indices in [0, C), or ``ignore_index``. On a CPU they are checked; elsewhere
                one out of range gives a NaN loss.
            weight: (N,) or (N, 1), a constant.
            avg_factor: what a sum is divided by instead of N under 'mean'.
            reduction_override: replaces ``reduction`` in this call.

        Returns:
            0-d tensor, or (N,) under 'none'; float64 for float64 logits, otherwise float32.

        Raises:
            TypeError: ``pred`` or ``target`` has a wrong dtype.
            ValueError: shapes do not match, a label is out of range, or ``avg_factor`` meets reduction 'sum'.
        """
        if reduction_override not in (None, 'none', 'mean', 'sum'):
            raise ValueError(f"reduction_override={reduction_override!r} must be None, 'none', 'mean' or 'sum'")
        self._check(pred, target)
        rows = len(pred)
        if weight is not None and weight.shape not in ((rows,), (rows, 1)):
            raise ValueError(
                f'weight of ASLSingleLabel must have shape (N,) or (N, 1) for pred of shape '
                f'{tuple(pred.shape)}, got {tuple(weight.shape)}'
            )
        loss = asl_single_label(
            pred,
            target,
            gamma_pos=self.gamma_pos,
            gamma_neg=self.gamma_neg,
            eps=self.eps,
            ignore_index=self.ignore_index,
        )
        reduction = reduction_override or self.reduction
        if reduction == 'mean' and avg_factor is None:
            avg_factor = rows
        weight = weight if weight is None else weight.reshape(rows)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)

    def _check(self, pred: Tensor, target: Tensor) -> None:
        if not pred.is_floating_point():
            raise TypeError(f'pred of ASLSingleLabel must hold floating-point logits, got {pred.dtype}')
        if pred.ndim != 2 or pred.shape[1] < 2:
            raise ValueError(f'pred of ASLSingleLabel must have shape (N, C) with C >= 2, got {tuple(pred.shape)}')
        if target.is_floating_point() or target.dtype == torch.bool:
            raise TypeError(f'target of ASLSingleLabel holds class indices and must be integer, got {target.dtype}')
        if target.shape != pred.shape[:1]:
            raise ValueError(
                f'target of ASLSingleLabel must have shape {tuple(pred.shape[:1])}, one class index a '
                f'row, for pred of shape {tuple(pred.shape)}, got {tuple(target.shape)}'
            )
        if target.device.type == 'cpu' and not torch.compiler.is_compiling():
            target = target.long()
            wrong = target[((target < 0) | (target >= pred.shape[1])) & (target != self.ignore_index)]
            if wrong.numel():
                raise ValueError(
                    f'target of ASLSingleLabel holds {wrong[0].item()}: class indices must lie in [0, '
                    f'{pred.shape[1] - 1}] or equal ignore_index={self.ignore_index} for unknown'
                )
