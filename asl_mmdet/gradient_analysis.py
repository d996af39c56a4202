"""The loss and its gradient dL/dz as functions of the probability p: section 2.5, figures 2 and 3 and table 1.

Everything is ``positive_term`` and ``negative_term`` of the loss itself, evaluated in float64 at logit(p). Legend as
there: z logits, p = sigmoid(z), m probability margin (``clip``), p_m = max(p - m, 0). ``detach_focusing`` holds the
focusing factors constant in the gradient, as the official training script does; eq. 8 does not.
"""

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from .models.one_pass import negative_term, positive_term

# sigmoid(700) is 1 - 1e-304: as near to p = 1 as float64 logits get without an underflow of 1 - p.
_LAST_LOGIT = 700.0
# Places (as in _logits_above) between which float64 resolves p - m and 1 - p.
_PLACES = (-24.0, 36.0)


def positive_curves(p: Tensor, gamma_pos: float, detach_focusing: bool = False) -> tuple[Tensor, Tensor]:
    """Loss of positives (eq. 4) and its gradient dL/dz.

    Args:
        p: probabilities in (0, 1), any shape.
        gamma_pos: 0 or more.

    Returns:
        loss (not negative) and gradient (not positive), float64, of the shape of ``p``.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(gamma_pos, 'gamma_pos')
    return positive_term(_logit(p), gamma_pos, detach_focusing)


def negative_curves(p: Tensor, gamma_neg: float, clip: float, detach_focusing: bool = False) -> tuple[Tensor, Tensor]:
    """Loss of negatives (eq. 7) and its gradient dL/dz (eq. 8).

    At p = m itself rounding decides whether a sample counts as below the margin.

    Args:
        p: probabilities in (0, 1), any shape.
        gamma_neg: 0 or more.
        clip: m, in [0, 1).

    Returns:
        loss and gradient (both not negative), float64, of the shape of ``p``.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(gamma_neg, 'gamma_neg', clip)
    return negative_term(_logit(p), gamma_neg, clip, detach_focusing)


def normalised_gradient(p: Tensor, gamma_neg: float, clip: float, detach_focusing: bool = False) -> Tensor:
    """Gradient of negatives divided by the largest one that any probability gets: figure 3.

    The paper calls its curves normalised and does not say how. A loss may be multiplied by any constant, which a
    learning rate makes up for, so only the shape of its gradient tells losses apart; we read "normalised" as "with a
    maximum of 1", under which cross-entropy, whose gradient is p, stays what it is.

    Args:
        p: probabilities in (0, 1), any shape.
        gamma_neg: 0 or more.
        clip: m, in [0, 1).

    Returns:
        float64 in [0, 1], of the shape of ``p``.

    Raises:
        ValueError: an argument is out of its range.
    """
    _, gradient = negative_curves(p, gamma_neg, clip, detach_focusing)
    return gradient / _largest_gradient(gamma_neg, clip, detach_focusing)


def mislabelled_point(gamma_neg: float, clip: float, detach_focusing: bool = False) -> float | None:
    """p* of section 2.5, where d/dp (dL/dz) = 0 for negatives: beyond it the gradient falls with p.

    Args:
        gamma_neg: 0 or more.
        clip: m, in [0, 1).

    Returns:
        p* in (m, 1), or None where the gradient has no such point. It has none where it rises up to p = 1
        (cross-entropy; every gamma_neg at m = 0 with ``detach_focusing``), and none where it falls from the jump at
        p = m on (cross-entropy with m(1 + m) >= 1, that is m above 0.618). A point that float64 cannot tell from 1 is
        None, too: with m = 0 it lies about exp(-2 - 1 / gamma_neg) below 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(gamma_neg, 'gamma_neg', clip)

    def gradient(logits: Tensor) -> Tensor:
        return negative_term(logits, gamma_neg, clip, detach_focusing)[1]

    def second_derivative(place: Tensor) -> Tensor:
        # With respect to z, which has the sign of the one with respect to p.
        logits = _logits_above(clip, place)
        return torch.func.jvp(gradient, (logits,), (torch.ones_like(logits),))[1]

    places = torch.linspace(*_PLACES, 601, dtype=torch.float64)
    curvature = second_derivative(places)
    # The last rise and not the first: very easy negatives may have a gradient that underflows to a constant 0.
    rises = (curvature > 0).nonzero()
    if not len(rises) or rises[-1] == len(places) - 1:
        return None
    low, high = places[rises[-1]].item(), places[rises[-1] + 1].item()
    place = brentq(lambda x: second_derivative(places.new_tensor([x])).item(), low, high)
    return clip + (1 - clip) / (1 + math.exp(-place))


@dataclass(frozen=True)
class LossProperties:
    """A row of table 1, and what the text adds to it.

    Attributes:
        hard_threshold: the gradient of negatives is exactly 0 on an interval above p = 0.
        soft_threshold: it is attenuated more than linearly: gradient / p tends to 0 as p falls to the threshold, which
            is m, or 0 without a margin. The gradient p of cross-entropy is what "not attenuated" means.
        discards_mislabelled: it tends to 0 as p rises to 1, so that the hardest negatives are as good as absent.
        continuous_gradients: it has no jump; the only place for one is p = m.
        p_star: ``mislabelled_point``.
    """

    hard_threshold: bool
    soft_threshold: bool
    discards_mislabelled: bool
    continuous_gradients: bool
    p_star: float | None


def loss_properties(gamma_neg: float, clip: float, detach_focusing: bool = False) -> LossProperties:
    """What the gradient of negatives says about a loss, found numerically.

    The result agrees with all 16 cells of table 1. One of them depends on what "discard" means: the text of section
    2.5 calls negatives beyond p* mislabelled, and asymmetric focusing (AF, gamma_neg > 0, m = 0) has a p*, too, as its
    gradient p^(gamma + 1) - gamma p^gamma (1 - p) log(1 - p) overshoots and comes back to 1. By p* alone AF would
    discard mislabelled negatives, which the table denies; it does not discard them in the sense used here, since they
    keep 89 % (gamma 2) or 79 % (gamma 4) of the largest gradient. With ``detach_focusing`` AF's gradient is
    p^(gamma + 1), and the cell holds in both senses.

    Args:
        gamma_neg: 0 or more. Below 1e-4 it is not told from 0.
        clip: m, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(gamma_neg, 'gamma_neg', clip)
    hard_threshold = False
    if clip > 0:
        below_margin = clip * torch.linspace(1e-6, 1 - 1e-6, 1001, dtype=torch.float64)
        _, gradient = negative_curves(below_margin, gamma_neg, clip, detach_focusing)
        hard_threshold = bool((gradient == 0).all())

    distances = torch.tensor([1e-6, 1e-8], dtype=torch.float64)
    logits = _logits_above(clip, distances.logit())
    _, gradient = negative_term(logits, gamma_neg, clip, detach_focusing)
    _, gradient_at_1 = negative_term(logits.new_tensor([_LAST_LOGIT]), gamma_neg, clip, detach_focusing)
    largest = _largest_gradient(gamma_neg, clip, detach_focusing)
    return LossProperties(
        hard_threshold=hard_threshold,
        soft_threshold=_falls_to_zero(gradient / logits.sigmoid()),
        discards_mislabelled=gradient_at_1.item() < 1e-12 * largest,
        continuous_gradients=_falls_to_zero(gradient),
        p_star=mislabelled_point(gamma_neg, clip, detach_focusing),
    )


def _check(gamma: float, name: str, clip: float = 0.0) -> None:
    if not 0 <= gamma < math.inf:
        raise ValueError(f'{name}={gamma} must be a finite number of 0 or more')
    if not 0 <= clip < 1:
        raise ValueError(f'clip={clip} is a probability margin and must lie in [0, 1)')


def _logit(p: Tensor) -> Tensor:
    p = p.double()
    if not bool(((p > 0) & (p < 1)).all()):
        wrong = p[~((p > 0) & (p < 1))]
        raise ValueError(f'p holds {wrong[0].item()}: probabilities must lie in (0, 1), without both ends')
    return p.logit()


def _logits_above(clip: float, place: Tensor) -> Tensor:
    """Logits of p = m + (1 - m) sigmoid(place), without cancellation next to p = m = 0 and p = 1."""
    return torch.log(clip + (1 - clip) * place.sigmoid()) - torch.log((1 - clip) * (-place).sigmoid())


def _largest_gradient(gamma_neg: float, clip: float, detach_focusing: bool) -> float:
    """The supremum over p, which is at p*, or at an end of (m, 1) where there is no p*."""
    p_star = mislabelled_point(gamma_neg, clip, detach_focusing)
    if p_star is None:
        logits = _logits_above(clip, torch.tensor([*_PLACES, _LAST_LOGIT], dtype=torch.float64))
    else:
        logits = torch.tensor([p_star], dtype=torch.float64).logit()
    return negative_term(logits, gamma_neg, clip, detach_focusing)[1].max().item()


def _falls_to_zero(values: Tensor) -> bool:
    """Whether values at a 1e-6th and a 1e-8th of the way from a threshold fall like a power of the distance."""
    further, nearer = values.tolist()
    return nearer == 0 or nearer < further * (1 - 1e-4)
