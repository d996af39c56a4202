"""Which labels a trained network disbelieves (section 2.5), from its probabilities on the images it was trained on.

One network's probability is noisy. Those of the last epochs are averaged: E epochs, N images, C classes; targets are 1,
0 and -1 (unknown), as of :func:`asl_mmdet.structures.dense_targets`.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .gradient_analysis import mislabelled_point, normalised_gradient


@dataclass(frozen=True)
class Suspects:
    """Labels in the order in which to look at them, (K,) each.

    Attributes:
        images, classes: rows and columns of the targets.
        p_mean, p_std: probability over the epochs, its standard deviation with E in the denominator (0 for one epoch).
        limit: what ``p_mean`` is beyond: p* for missing positives, for doubtful ones the class's mean over negatives.
        suspicion: in [0, 1], falling; 0 for negatives that do not lie beyond p*.
    """

    images: np.ndarray
    classes: np.ndarray
    p_mean: np.ndarray
    p_std: np.ndarray
    limit: np.ndarray
    suspicion: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def missing_positives(
    probabilities: np.ndarray,
    targets: np.ndarray,
    gamma_neg: float | np.ndarray,
    clip: float,
    detach_focusing: bool = False,
    at_least: int = 0,
) -> Suspects:
    """Negatives beyond p*, where the gradient of ASL begins to fall: "suspected as mislabelled" (section 2.5, point 3).

    Suspicion is the share of the largest gradient that the loss withholds from such a negative: 0 at p*, and 1 where it
    discards it, at p = 1 with a margin. It rises with p.

    Args:
        probabilities: (E, N, C), in [0, 1].
        targets: (N, C).
        gamma_neg: 0 or more, or (C,), one for each class. A class whose gradient has no p* has no suspects.
        clip: m, in [0, 1).
        at_least: how many to return, the next below p* where fewer lie beyond it, as far as there are negatives.

    Raises:
        ValueError: shapes do not fit; or no class has a p*, as under cross-entropy.
    """
    _check(probabilities, targets)
    mean = probabilities.mean(0, dtype=np.float64)
    gammas = np.broadcast_to(gamma_neg, mean.shape[1:])
    p_star, suspicion = np.full(mean.shape[1], np.inf), np.zeros_like(mean)
    for gamma in np.unique(gammas).tolist():
        point = mislabelled_point(gamma, clip, detach_focusing)
        if point is not None:
            classes = gammas == gamma
            p_star[classes] = point
            p = torch.from_numpy(mean[:, classes]).clamp(1e-9, 1 - 1e-9)
            gradient = normalised_gradient(p, gamma, clip, detach_focusing)
            suspicion[:, classes] = (1 - gradient).clamp(0, 1)
    if np.isinf(p_star).all():
        raise ValueError(
            f'under gamma_neg={gamma_neg}, clip={clip:g} the gradient of negatives does not fall before p = 1: this '
            'loss suspects no label. Train with gamma_neg=4, clip=0.05'
        )
    suspicion[mean <= p_star] = 0
    above = np.where(targets == 0, mean - p_star, -np.inf)
    chosen = np.flatnonzero(above > 0)
    if len(chosen) < at_least:
        chosen = np.argsort(-above, axis=None, kind='stable')[:at_least]
        chosen = chosen[np.isfinite(above.flat[chosen])]
    images, classes = np.unravel_index(chosen, above.shape)
    beyond = above[images, classes]
    return _ranked(probabilities, images, classes, p_star[classes], suspicion[images, classes], beyond)


def doubtful_positives(probabilities: np.ndarray, targets: np.ndarray) -> Suspects:
    """Positives with persistently low probability: in every epoch below the mean over the class's negatives.

    Section 2.5 has no point of this kind for positives, whose gradient under gamma_pos = 0 is largest at p = 0. The
    mean over negatives takes its place: it follows the level that the loss gives the probabilities of the class.
    Suspicion is how far below that mean the probability lies, in shares of it: 1 at p = 0.

    Args:
        probabilities: (E, N, C), in [0, 1].
        targets: (N, C).

    Raises:
        ValueError: shapes do not fit.
    """
    _check(probabilities, targets)
    negative = targets == 0
    counts = negative.sum(0)
    sums = np.stack([np.where(negative, epoch, 0).sum(0, dtype=np.float64) for epoch in probabilities])
    limits = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)  # (E, C)
    low = np.all([epoch < limit for epoch, limit in zip(probabilities, limits)], axis=0)
    images, classes = np.nonzero((targets == 1) & low)
    limit = limits.mean(0)[classes]
    p = probabilities[:, images, classes].mean(0, dtype=np.float64)
    return _ranked(probabilities, images, classes, limit, 1 - p / limit, limit - p)


def _check(probabilities, targets):
    if probabilities.ndim != 3 or not len(probabilities) or probabilities.shape[1:] != targets.shape:
        raise ValueError(
            f'probabilities {probabilities.shape} must be (epochs, images, classes), and targets {targets.shape} '
            '(images, classes)'
        )


def _ranked(probabilities, images, classes, limit, suspicion, beyond):
    p = probabilities[:, images, classes].astype(np.float64)
    # Ties of suspicion, by rounding next to p = 1 and all of 0, are told apart by p.
    order = np.lexsort((-beyond, -suspicion))
    return Suspects(*(x[order] for x in (images, classes, p.mean(0), p.std(0), limit, suspicion)))
