"""3 x 3 convolutions of stride 1 on a CPU with a quarter of the multiplications, for inference in float32.

Winograd's minimal filtering F(4 x 4, 3 x 3) of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR
2016: tiles of 6 x 6 inputs and the 3 x 3 weights become 36 numbers each, of which 36 matrix products over the channels
and one more transform make 4 x 4 outputs. At the points 0, 3/4, -3/4, 3/2, -3/2 and infinity outputs in float32 are off
by 1e-6 (root mean square), those of a direct convolution by 2e-7 to 1e-6; at the usual 0, 1, -1, 2, -2 by 2e-6.
"""

import ctypes
import functools
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

# These and LANES are those of winograd.cpp.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
# Channels are taken by so many, and fewer than LEAST_CHANNELS leave more work to the transforms than is saved.
LANES, LEAST_CHANNELS = 16, 64
# Fewer tiles read 36 matrices of weights for a few rows each: four take twice as long as a direct convolution.
LEAST_TILES = 16
# Bytes of the tiles that go at once: more leave the caches of a CPU.
AT_ONCE = 4 << 20


def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether ``conv`` is a convolution that gains by it, without hooks, and without norms or masks of its weights."""
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and (conv.groups, conv.padding_mode) == (1, 'zeros')
        and all(c >= LEAST_CHANNELS and c % LANES == 0 for c in (conv.in_channels, conv.out_channels))
        and isinstance(conv.weight, nn.Parameter)
        and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in conv.parameters())
        and not (conv._forward_hooks or conv._forward_pre_hooks or 'forward' in vars(conv))
    )


class WinogradConv2d(nn.Conv2d):
    """``conv`` for inference, with its parameters; later changes of the weights go unseen.

    Outputs are channels last. Inputs of another dtype or device, few pixels, autocast and what is to be differentiated
    are convolved directly. A number that is infinite or NaN spoils its tile of 4 x 4 outputs, not 3 x 3.

    Args:
        conv: one that ``fits``.
    """

    tile_weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        has_bias = conv.bias is not None
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, bias=has_bias, device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)
        self.register_buffer('tile_weight', transformed(conv.weight.detach()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        suits = (
            x.is_cpu
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled('cpu')
            and x.ndim == 4
            and x.shape[1] == self.in_channels
            and x.shape[0] * _tiles(*x.shape[2:]) >= LEAST_TILES
        )
        return _convolve(x, self.tile_weight, self.bias) if suits else super().forward(x)


def transformed(weight: Tensor) -> Tensor:
    """(out, in, 3, 3) to (36, in, out): G w G^T, in float64 and then of the dtype of ``weight``."""
    others = [np.delete(POINTS, i) for i in range(len(POINTS))]
    rows = [point ** np.arange(3) / np.prod(point - rest) for point, rest in zip(POINTS, others)]
    g = torch.tensor(np.array([*rows, [0, 0, 1]]))
    return torch.einsum('ia,ocab,jb->ijco', g, weight.double(), g).flatten(0, 1).to(weight.dtype).contiguous()


def _tiles(height: int, width: int) -> int:
    return -(-height // 4) * -(-width // 4)


@torch.library.custom_op('asl_mmdet::winograd_conv2d', mutates_args=(), device_types='cpu')
def _convolve(x: Tensor, tile_weight: Tensor, bias: Tensor | None) -> Tensor:
    to_tiles, from_tiles = compiled_transforms()
    n, in_channels, height, width = x.shape
    out_channels = tile_weight.shape[2]
    x = x.contiguous(memory_format=torch.channels_last)
    y = _output(x, tile_weight, bias)
    shift = x.new_zeros(out_channels) if bias is None else bias.contiguous()
    threads = torch.get_num_threads()
    tiles = n * _tiles(height, width)
    parts = -(-tiles * 36 * 4 * max(in_channels, out_channels) // AT_ONCE)
    step = -(-tiles // parts)
    for first in range(0, tiles, step):
        count = min(step, tiles - first)
        spread = x.new_empty(36, count, in_channels)
        to_tiles(x.data_ptr(), spread.data_ptr(), height, width, in_channels, first, count, threads)
        products = torch.bmm(spread, tile_weight)
        from_tiles(
            products.data_ptr(), shift.data_ptr(), y.data_ptr(), height, width, out_channels, first, count, threads
        )
    return y


@_convolve.register_fake
def _output(x: Tensor, tile_weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (x.shape[0], tile_weight.shape[2], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@functools.cache
def compiled_transforms() -> tuple[ctypes._CFuncPtr, ctypes._CFuncPtr]:
    """The functions of winograd.cpp.

    Raises:
        Exception: whatever torch raises where it cannot compile C++.
    """
    # Written by hand: of those that torch.compile makes, TResNet-M takes a minute more to compile, or is 12 to 18 %
    # slower where they serve all sizes.
    from torch._inductor.codecache import CppCodeCache

    library = CppCodeCache.load(Path(__file__).with_suffix('.cpp').read_text(), 'cpu', needs_vec_isa=True)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for function, pointers in ((library.to_tiles, 2), (library.from_tiles, 3)):
        function.argtypes = (*[pointer] * pointers, *[number] * 5, ctypes.c_int)
        function.restype = None
    return library.to_tiles, library.from_tiles
