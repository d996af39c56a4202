"""A gradient times a factor that lies on the device, in place, at no cost where the factor is 1."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 4096


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
    kernel = _triton_kernel() if grad.is_cuda and grad.dtype != torch.float64 and grad.is_contiguous() else None
    if kernel is not None:
        with torch.cuda.device(grad.device):
            kernel[(-(-grad.numel() // BLOCK),)](grad, factor, grad.numel(), BLOCK=BLOCK)
    elif grad.dtype == torch.float16 and not grad.is_cpu:
        # The usual loss scale, 65536, is no number of float16, its root is. A CPU multiplies in float32.
        root = factor.abs().sqrt()
        grad.mul_(root).mul_(root * factor.sign())
    else:
        grad.mul_(factor)


@functools.cache
def _triton_kernel() -> Callable | None:
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None
    # Triton resolves names of a kernel among the globals of its module.
    globals()['tl'] = tl

    @triton.jit
    def scale(grad, factor, count, BLOCK: tl.constexpr):
        value = tl.load(factor)
        if value != 1.0:
            offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            inside = offsets < count
            products = tl.load(grad + offsets, mask=inside).to(tl.float32) * value.to(tl.float32)
            tl.store(grad + offsets, products.to(grad.dtype.element_ty), mask=inside)

    return scale
