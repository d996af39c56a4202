"""The kernels of a GPU: against single operations in float64 on a GPU, or, under TRITON_INTERPRET=1, in Triton's
interpreter; elsewhere they are compiled for a GPU, which takes more than the interpreter reads, and do not run."""

import contextlib
import itertools
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asl_mmdet import AsymmetricLoss
from asl_mmdet.models import asymmetric_loss
from asl_mmdet.models import triton_pass as module
from asl_mmdet.models.eager_pass import eager_pass
from asl_mmdet.models.one_pass import Setting
from asl_mmdet.models.triton_pass import scale_in_place, triton_pass

INTERPRETED = bool(os.environ.get('TRITON_INTERPRET'))
DEVICE = 'cpu' if INTERPRETED else 'cuda'
PAPER = Setting(0.0, 4.0, 0.05, None, -1, False, hard=False)
DETECTOR = Setting(1.0, 2.0, 0.0, 0.25, -1, False, hard=False)
SETTINGS = (
    PAPER,
    DETECTOR,
    PAPER._replace(detach_focusing=True),
    DETECTOR._replace(detach_focusing=True, gamma_pos=0.0, gamma_neg=0.0),
    Setting(2.0, 1.0, 0.2, 0.6, -1, False, hard=False),
    Setting(1.0, 0.0, 0.05, None, -1, False, hard=False),
    Setting(1.5, 2.5, 0.0, None, -1, False, hard=False),
    Setting(0.5, 0.5, 0.1, None, -1, False, hard=False),
    Setting(17.0, 5.0, 0.0, None, -1, False, hard=False),
    Setting(3.0, 20.0, 0.05, None, -1, False, hard=False),
)
# A power multiplies the relative error of its base, also of one that lies just above the margin.
TOLERANCES = {SETTINGS[-3]: 2e-6, SETTINGS[-2]: 3e-6, SETTINGS[-1]: 3e-6}
WITHOUT_NUMBERS = PAPER._replace(gamma_neg=None, clip=None)


def check(setting, logits, targets, weight=None, gamma_neg=None, clip=None, sums=None):
    of_floats = TOLERANCES.get(setting, 1e-6)
    setting = setting._replace(hard=not targets.is_floating_point())
    inputs = (targets, weight, torch.tensor(0.25), gamma_neg, clip, sums)
    expected = eager_pass(setting, logits.double(), *inputs)
    found = triton_pass(setting, *(tensor if tensor is None else tensor.to(DEVICE) for tensor in (logits, *inputs)))
    found = found._replace(**{name: x.cpu() for name, x in found._asdict().items() if x is not None})
    # The interpreter cuts half precision off, a GPU rounds it.
    rtol = {torch.float16: 1e-3, torch.bfloat16: 1.6e-2}.get(logits.dtype, of_floats)
    same = dict(check_dtype=False, equal_nan=True)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-7, **same)
    torch.testing.assert_close(found.grad, expected.grad, rtol=rtol, atol=1e-7 if rtol < 1e-3 else 1e-3, **same)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-6, atol=1e-6)
    return found


def batch(generator, rows, classes):
    """Logits, labels, class indices and soft labels, some unknown."""
    soft = torch.rand(rows, classes, generator=generator)
    soft[0] = -1
    return (
        3 * torch.randn(rows, classes, generator=generator),
        torch.randint(-1, 2, (rows, classes), generator=generator).float(),
        torch.randint(-1, classes + 1, (rows,), generator=generator),
        soft,
    )


def settings_and_sizes(generator):
    for rows, classes in ((37, 80), (50, 20), (3, 1501)):
        logits, *targets = batch(generator, rows, classes)
        for setting, target in itertools.product(SETTINGS if classes == 80 else SETTINGS[:2], targets):
            check(setting, logits, target)
        for dtype in (torch.float16, torch.bfloat16):
            check(PAPER, logits.to(dtype), targets[0])
            check(DETECTOR, logits.to(dtype), targets[1])


def dtypes_weights_and_tensors(generator):
    rows, classes = 37, 80
    logits, labels, indices, soft = batch(generator, rows, classes)
    for target in (labels.clamp(min=0).long(), labels.char(), labels.clamp(min=0).byte(), labels.half()):
        check(PAPER, logits, target)
    for shape in ((rows, 1), (rows, classes), (classes,), (1, 1)):
        weight = torch.rand(shape, generator=generator)
        for target in (labels, indices, soft):
            check(PAPER, logits, target, weight)
    gammas = (torch.rand(classes, generator=generator) * 4, torch.tensor(2.5), torch.tensor(0.0))
    clips = (torch.rand(classes, generator=generator) * 0.2, torch.tensor(0.1), torch.tensor(0.0))
    for gamma_neg, clip in itertools.product(gammas, clips):
        check(WITHOUT_NUMBERS, logits, labels, None, gamma_neg, clip)


def probability_sums(generator):
    for rows, classes in ((40, 80), (7, 200)):
        logits, *targets = batch(generator, rows, classes)
        weights = (None, *(torch.rand(shape, generator=generator).round() for shape in ((rows, 1), (rows, classes))))
        for target, weight, columns in itertools.product(targets, weights, (1, classes)):
            check(DETECTOR, logits, target, weight, sums=torch.rand(4, columns, generator=generator).double())
    check(PAPER, logits.half(), targets[1], sums=torch.zeros(4, classes).double())
    for target, wrong in zip(targets, (2.0, classes + 1, -0.5)):
        target[-1] = wrong
        sums = torch.zeros(4, classes, dtype=torch.float64, device=DEVICE)
        inputs = (logits.to(DEVICE), target.to(DEVICE), None, 1.0, None, None, sums)
        assert triton_pass(PAPER, *inputs).sums[2:].isnan().all()


def extremes():
    far = torch.tensor([-1e20, -200.0, -90.0, -20.0, 0.0, 20.0, 79.9, 88.0, 200.0, 1e20]).expand(2, 80 // 10, 10)
    far = far.reshape(2, 80)
    for setting in SETTINGS:
        for logits, label in itertools.product((far, far.clamp(-88, 88)), (0.0, 1.0, 0.5)):
            assert check(setting, logits, torch.full_like(far, label)).loss.isfinite()
        largest = torch.finfo(torch.float32).max
        for value, label in ((-largest, 0.0), (largest, 1.0), (-largest, -1.0), (largest, -1.0)):
            logits, labels = torch.zeros(2, 80), torch.zeros(2, 80)
            logits[1, 3], labels[1, 3] = value, label
            assert check(setting, logits, labels).loss.isfinite()
        for value in (float('nan'), float('inf'), -float('inf')):
            logits = torch.zeros(2, 80)
            logits[0, 0] = value
            for target in (torch.zeros(2, 80), torch.ones(2, 80), torch.tensor([0, 80]), torch.tensor([80, 80])):
                assert check(setting, logits, target).loss.isnan()
    zeros = torch.zeros(4, 80)
    for wrong in (2.0, -0.5, float('nan')):
        target = torch.zeros(4, 80)
        target[3, 79] = wrong
        assert check(PAPER, zeros, target).loss.isnan()
    for wrong in (81, -2):
        assert check(PAPER, zeros, torch.tensor([0, 1, wrong, 80])).loss.isnan()


def factors():
    for dtype, factor in itertools.product((torch.float32, torch.float16, torch.bfloat16), (1.0, 0.0, -2.5, 65536.0)):
        for size in (5001, 3):
            grad = torch.linspace(-1, 1, size, device=DEVICE).to(dtype) * 1e-2
            expected = (grad.float() * factor).to(dtype)
            scale_in_place(grad, torch.tensor(factor, device=DEVICE))
            torch.testing.assert_close(grad, expected, rtol=8e-3 if dtype == torch.bfloat16 else 0, atol=0)


def whole_losses(generator):
    logits, labels, indices, soft = batch(generator, 60, 20)
    weight = 300 * torch.rand(60, generator=generator)
    for dtype, target in itertools.product((torch.float32, torch.float16, torch.bfloat16), (labels, indices, soft)):
        for weights, avg_factor in ((None, np.float32(7)), (weight, torch.tensor(9.0))):
            found = []
            for kind, fused, device in ((dtype, True, DEVICE), (torch.float64, False, 'cpu')):
                z = logits.to(dtype).to(device, kind, copy=True).requires_grad_()
                inputs = (one if one is None else one.to(device) for one in (target, weights))
                loss = AsymmetricLoss(gamma_pos=1.0, fused=fused)(z, *inputs, avg_factor=avg_factor)
                (3 * loss).backward(retain_graph=True)
                (3 * loss).backward()
                found.append((loss.detach().cpu().double(), z.grad.cpu().double()))
            rtol = {torch.float16: 2e-3, torch.bfloat16: 3e-2}.get(dtype, 2e-6)
            torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
            torch.testing.assert_close(found[0][1], found[1][1], rtol=rtol, atol=1e-7 * found[1][1].abs().max().item())


def refusals():
    logits, labels, *_ = (tensor.to(DEVICE) for tensor in batch(torch.Generator().manual_seed(1), 6, 4))
    for targets, others, message in (
        (labels[:5], (None, 1.0, None, None), 'targets have shape'),
        (labels[:, 0, None], (None, 1.0, None, None), 'targets have shape'),
        (labels, (torch.ones(5, 4, device=DEVICE), 1.0, None, None), 'expand'),
        (labels, (None, 1.0, torch.ones(3, device=DEVICE), None), 'expand'),
        (labels, (None, 1.0, None, torch.ones(3, device=DEVICE)), 'expand'),
        (labels.to('meta'), (None, 1.0, None, None), 'have to lie on'),
        (labels, (labels.to('meta'), 1.0, None, None), 'have to lie on'),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            triton_pass(WITHOUT_NUMBERS, logits, targets, *others, None)


def compile_for(function, pointers, scalars, constants):
    types = {name: f'*{dtype}' for name, dtype in pointers.items()} | scalars
    signature = {name: types.get(name, 'constexpr') for name in function.arg_names}
    source = ASTSource(function, signature, {name: constants[name] for name in signature.keys() - types.keys()})
    triton.compile(source, target=GPUTarget('cuda', 90, 32), options=dict(num_warps=4, enable_fp_fusion=True))


def compilation():
    strides = dict(weight_of_row='i32', weight_of_class='i32')
    for setting, indices in itertools.product((*SETTINGS[:2], SETTINGS[-4], WITHOUT_NUMBERS), (True, False)):
        of_classes = setting is WITHOUT_NUMBERS
        pointers = dict(logits='fp32', targets='i64' if indices else 'fp32', grad='fp32', losses='fp32')
        if of_classes:
            pointers |= dict(logits='fp16', grad='fp16', scale='fp32', weight='fp32', gamma_neg='fp32', clip='fp32')
        scalars = strides | dict(size='i64' if of_classes else 'i32', steps='i32')
        constants = dict(
            weight=None,
            gamma_neg=None,
            clip=None,
            CLASSES=80,
            GAMMA_POS=setting.gamma_pos,
            GAMMA_NEG=setting.gamma_neg,
            CLIP=setting.clip,
            ALPHA=setting.alpha,
            IGNORE_INDEX=-1,
            DETACH=False,
            INDICES=indices,
            SCALE_IS_TENSOR=of_classes,
            WEIGHT_OF_CLASS=of_classes,
            GAMMA_OF_CLASS=of_classes,
            CLIP_OF_CLASS=False,
            BLOCK=module.BLOCK,
            NEIGHBOURS=8 if of_classes else 4,
        )
        compile_for(module._pass, pointers, scalars if of_classes else scalars | dict(scale='fp32'), constants)
    for indices in (True, False):
        pointers = dict(logits='fp32', targets='i64' if indices else 'fp32', weight='fp32', counts='fp32')
        constants = dict(CLASSES=80, IGNORE_INDEX=-1, INDICES=indices, ROWS=128, COLUMNS=128, AT_A_TIME=4)
        compile_for(module._count, pointers, strides | dict(rows='i32'), constants)
    compile_for(module._scale, dict(grad='fp16', factor='fp32'), dict(size='i64'), dict(BLOCK=4096))


class Hopper:
    """What Triton asks a driver for before it launches a kernel."""

    def get_current_target(self):
        return GPUTarget('cuda', 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Prepared:
    """A kernel that is compiled for its arguments, and not launched."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        return lambda *args, **options: self.function.warmup(*args, grid=grid, **options)

    def __len__(self):
        return len(self.function.device_caches[0][0])


def recompilation():
    """One kernel for all numbers of rows and scales."""
    triton.runtime.driver.set_active(Hopper())
    torch.cuda.device = contextlib.nullcontext
    kernels = module._pass, module._count, module._scale = [
        Prepared(function) for function in (module._pass, module._count, module._scale)
    ]
    generator = torch.Generator().manual_seed(0)
    for rows, scale in ((128, 1.0), (130, 0.25), (44001, 0.0), (7, 3.0)):
        logits, labels, indices, _ = batch(generator, rows, 80)
        for targets, weight in ((labels, None), (indices, torch.rand(rows, 1, generator=generator))):
            sums = torch.zeros(4, 1, dtype=torch.float64)
            triton_pass(PAPER, logits, targets, weight, scale, None, None, sums)
        scale_in_place(logits, torch.tensor(scale))
        assert [len(kernel) for kernel in kernels] == [2, 2, 1], rows


def main():
    if not (INTERPRETED or torch.cuda.is_available()):
        compilation()
        recompilation()
        print('compiled')
        return
    if INTERPRETED:
        # The interpreter has neither a GPU nor CUDA's functions; of its quotients, those by more than 2^126 are 0.
        torch.cuda.device = contextlib.nullcontext
        module.libdevice = SimpleNamespace(fast_dividef=lambda x, y: tl.where(y > 2.0**126, 0.0, x / y))
        module._log2 = lambda x: tl.log2(x)
        asymmetric_loss.choose_pass = lambda logits, fused: triton_pass if fused else eager_pass
        asymmetric_loss.scale_gradient = lambda grad, factor: scale_in_place(grad.data, factor)
    generator = torch.Generator().manual_seed(0)
    settings_and_sizes(generator)
    dtypes_weights_and_tensors(generator)
    module.COUNTED_ROWS = 16
    probability_sums(generator)
    extremes()
    whole_losses(generator)
    refusals()
    module.SCALE_PROGRAMS, module.SCALE_BLOCK = 2, 1024
    factors()
    print('equal')


if __name__ == '__main__':
    main()
