"""A gradient times a factor that lies on the device, in place, at no cost where the factor is 1."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def scale_gradient(grad: Tensor, factor: Tensor) -> None:
    """``grad *= factor``, past autograd's count of changes.

    The factor of a backward pass is 1 unless something scales the loss. A CPU looks; a GPU must not be waited for, so
    that there a kernel looks by itself, where Triton is installed.

    Args:
        grad: any shape and floating dtype; the product is rounded once, from float32 for half precision.
        factor: 0-d, float32 or float64, on the device of ``grad``.
    """
    grad = grad.data
    if grad.is_cpu and factor.item() == 1:
        return
    scale_in_place = _of_triton() if grad.is_cuda and grad.dtype != torch.float64 and grad.is_contiguous() else None
    if scale_in_place is not None:
        scale_in_place(grad, factor)
    elif grad.dtype == torch.float16 and not grad.is_cpu:
        # The usual loss scale, 65536, is no number of float16, its root is. A CPU multiplies in float32.
        root = factor.abs().sqrt()
        grad.mul_(root).mul_(root * factor.sign())
    else:
        grad.mul_(factor)


@functools.cache
def _of_triton() -> Callable[[Tensor, Tensor], None] | None:
    try:
        from .triton_pass import scale_in_place
    except ImportError:
        return None
    return scale_in_place
