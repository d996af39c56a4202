"""Runs under TRITON_INTERPRET=1: the pass as the code that torch.compile writes for Triton, against single operations.

torch writes such code for tensors of a CPU, too, when told to; a GPU's differs in the kernels' block sizes. Triton's
interpreter executes it. No tensor of the logits' size is read or written but logits, labels, weights and gradient.
"""

import importlib.util
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import triton.language as tl
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.runtime import triton_heuristics

from asl_mmdet.models import fused_pass, one_pass
from asl_mmdet.models.eager_pass import eager_pass
from asl_mmdet.models.fused_pass import compiled_pass
from asl_mmdet.models.one_pass import Setting

ROWS, CLASSES = 37, 50
# Of every launch: the number of programs, and the sizes of the tensors.
launches = []


class Interpreted:
    """A kernel that is called as torch's wrapper calls one, its sizes behind its tensors."""

    def __init__(self, function, size_hints):
        self.function, self.axes = function, list(size_hints)

    def run(self, *args, stream):
        sizes = args[-len(self.axes) :]
        # Rows are added up by a program for 16 of them, whole, or in parts of 16 columns.
        blocks = {'x': 16, 'r0_': 16} if len(self.axes) > 1 else {'x': 256}
        names = self.function.arg_names
        given = {f'{axis.upper()}BLOCK': size for axis, size in blocks.items() if f'{axis.upper()}BLOCK' in names}
        programs = math.ceil(sizes[0] / blocks['x'])
        launches.append((programs, [arg.numel() for arg in args if torch.is_tensor(arg)]))
        self.function[(programs,)](*args, **given)


def interpreted(size_hints, **_):
    return lambda function: Interpreted(function, size_hints)


def load(self, name, source, device_str='cuda'):
    with tempfile.NamedTemporaryFile('w', suffix='.py', delete=False) as file:
        file.write(source.replace('triton_helpers.set_driver_to_cpu()', ''))
    spec = importlib.util.spec_from_file_location(name, file.name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    Path(file.name).unlink()
    # The interpreter has none of CUDA's functions.
    module.libdevice = SimpleNamespace(
        isnan=lambda x: x != x,
        isinf=lambda x: (x == math.inf) | (x == -math.inf),
        exp=lambda x: tl.exp(x),
        pow=lambda x, y: tl.exp(y.to(tl.float64) * tl.log(x.to(tl.float64))).to(tl.float32),
    )
    return getattr(module, name)


def check(setting, logits, targets, weight, values, sums):
    inputs = (logits, targets, weight, torch.tensor(0.25), *values, sums)
    compiled_pass(setting, *inputs)  # the first of a kind passes an example, too
    launches.clear()
    found, expected = compiled_pass(setting, *inputs), eager_pass(setting, *inputs)
    half = {torch.float16: 1e-3, torch.bfloat16: 1.6e-2}.get(logits.dtype, 1e-6)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.grad, expected.grad, rtol=half, atol=1e-7 if half == 1e-6 else 1e-3)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-5, atol=1e-5)
    return [sum(size == logits.numel() for size in sizes) for _, sizes in launches]


def main():
    torch.utils._triton.triton_hash_with_backend = lambda: 'none'
    AsyncCompile.triton = load
    for kind in ('pointwise', 'reduction', 'persistent_reduction'):
        setattr(triton_heuristics, kind, interpreted)
    one_pass._in_kernel_of_cpu = lambda x: False
    fused_pass.ROWS = 32  # the interpreter takes its time
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(ROWS, CLASSES, generator=generator)
    labels = torch.randint(-1, 2, (ROWS, CLASSES), generator=generator).float()
    indices = torch.randint(-1, CLASSES + 1, (ROWS,), generator=generator)
    weight = torch.rand(ROWS, 1, generator=generator)
    paper = Setting(0.0, 4.0, 0.05, None, -1, False, hard=True, by_rows=True)
    detector = Setting(1.0, 2.0, 0.0, 0.25, -1, False, hard=True, by_rows=True)
    soft = paper._replace(hard=False)
    adaptive = paper._replace(gamma_neg=None, clip=None)
    gammas = (torch.rand(CLASSES, generator=generator) * 4, torch.tensor(0.1))
    none = (None, None)
    with config.patch(cpu_backend='triton'):
        # Logits, labels of their size and the gradient in one kernel.
        assert check(paper, logits, labels, None, none, None) == [3]
        assert launches[0][0] == math.ceil(ROWS / 16)
        assert check(paper, logits, indices, None, none, None) == [2]
        assert check(detector, logits, indices, weight, none, None) == [2]
        assert check(adaptive, logits, labels, None, gammas, None) == [3]
        assert check(soft, logits, labels.clamp(min=0) * 0.9, None, none, None) == [3]
        assert check(detector, logits, indices, weight, none, torch.zeros(4, 1).double())[0] == 2
        assert max(check(paper, logits, labels, None, none, torch.rand(4, CLASSES).double())) >= 3
        for dtype in (torch.float16, torch.bfloat16):
            assert check(paper, logits.to(dtype), indices, None, none, None) == [2]
        wide = torch.randn(3, 1500, generator=generator)  # rows in parts
        assert check(paper, wide, torch.tensor([7, 1500, -1]), None, none, None) == [2]
        # A sum of all elements is one program's work.
        check(paper._replace(by_rows=False), logits, labels, None, none, None)
        assert launches[0][0] == 1
    print('equal')


if __name__ == '__main__':
    main()
