"""A gradient times a factor that lies on the device, in place, at no cost where the factor is 1."""

import torch
from torch import Tensor

# Why Triton does not work here, once that is known; an exception itself would keep the gradient in memory.
_FAULTS: list[str] = []


def scale_gradient(grad: Tensor, factor: Tensor) -> None:
    """``grad *= factor``, past autograd's count of changes.

    The factor of a backward pass is 1 unless something scales the loss. A CPU looks; a GPU must not be waited for, so
    that there a kernel looks by itself, where Triton works.

    Args:
        grad: any shape and floating dtype; the product is rounded once, from float32 for half precision.
        factor: 0-d, float32 or float64, on the device of ``grad``.
    """
    grad = grad.data
    if grad.is_cpu and factor.item() == 1:
        return
    if grad.is_cuda and grad.dtype != torch.float64 and grad.is_contiguous() and _by_triton(grad, factor):
        return
    if grad.dtype == torch.float16 and not grad.is_cpu:
        # The usual loss scale, 65536, is no number of float16, its root is. A CPU multiplies in float32.
        root = factor.abs().sqrt()
        grad.mul_(root).mul_(root * factor.sign())
    else:
        grad.mul_(factor)


def _by_triton(grad: Tensor, factor: Tensor) -> bool:
    """Whether Triton works; then it is done."""
    if _FAULTS:
        return False
    try:
        from .triton_pass import scale_in_place

        scale_in_place(grad, factor)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler or driver that is missing; AsymmetricLoss has warned
        _FAULTS.append(repr(error))
        return False
    return True
