"""``one_pass`` as one kernel, of torch.compile's on a CPU, and the choice between that and single operations."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .eager_pass import eager_pass
from .one_pass import SINGLE_THREADED, Outcome, Setting, one_pass

# Elements from which on a CPU gains by the kernel; below, an eager pass takes less than a millisecond.
WORTH_COMPILING = 8192
# Rows of the batch of zeros that a kernel is compiled with.
ROWS = 4096
# By what torch.compile makes a kernel for.
_KERNELS: dict[tuple, Callable[..., Outcome]] = {}
# Kinds of devices on which torch.compile was tried and failed.
_WITHOUT_COMPILER: set[str] = set()


def choose_pass(logits: Tensor, fused: bool | None) -> Callable[..., Outcome]:
    if torch.compiler.is_compiling():
        return _traced_pass
    size = logits.numel()
    has_kernel = size > 0 and not (logits.is_cuda and logits.dtype == torch.float64)
    if fused is None:
        # By size and device alone, so that a resumed run computes what an uninterrupted one does.
        worth_it = has_kernel and (logits.is_cuda or (size >= WORTH_COMPILING and logits.is_cpu))
        return _fused_where_possible if worth_it else eager_pass
    return fused_pass if fused and has_kernel else eager_pass


def _traced_pass(setting: Setting, *tensors: Tensor | None) -> Outcome:
    """``one_pass`` within a graph that somebody else compiles."""
    return one_pass(setting, *tensors).with_total()


def _fused_where_possible(setting: Setting, logits: Tensor, *tensors: Tensor | None) -> Outcome:
    device = logits.device.type
    if device in _WITHOUT_COMPILER:
        return eager_pass(setting, logits, *tensors)
    try:
        return fused_pass(setting, logits, *tensors)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # What torch.compile says of tensors within a transform, and Triton.
        if 'functorch' in str(error) or "doesn't have storage" in str(error):
            raise RuntimeError(
                'AsymmetricLoss brings its gradient along, which transforms of torch.func (grad, vmap, ...) cannot '
                'use. Call backward or torch.autograd.grad'
            ) from error
        # Where the caller is at fault, this raises too.
        outcome = eager_pass(setting, logits, *tensors)
        _WITHOUT_COMPILER.add(device)
        compiler = 'torch.compile' if logits.is_cpu else 'Triton'
        warnings.warn(
            f'AsymmetricLoss: {compiler} does not work on {device} here ({type(error).__name__}: '
            f'{str(error).strip().partition(chr(10))[0]}), so the loss runs as single operations, several times '
            'slower. A C++ compiler (CPU) or Triton (GPU) mends that; fused=False chooses this way without a word.'
        )
        return outcome


def fused_pass(setting: Setting, logits: Tensor, targets: Tensor, *tensors: Tensor | None) -> Outcome:
    """``one_pass`` as one kernel.

    Labels of floating point are taken for 0 and 1, and passed over once more if some are not.

    Raises:
        Exception: whatever torch.compile or Triton raises without a working compiler.
        RuntimeError: there is no kernel for the device.
    """
    if logits.is_cuda:
        from .triton_pass import triton_pass

        return triton_pass(setting, logits, targets, *tensors)
    if not logits.is_cpu:
        raise RuntimeError(
            f'fused=True: AsymmetricLoss has kernels for CPUs and GPUs (cuda), and pred lies on {logits.device}; '
            'fused=None computes single operations there'
        )
    if targets.dtype in (torch.float16, torch.bfloat16):
        # Logits and labels of half precision go by 16 or 32 numbers, whose bits change between int and float in memory.
        targets = targets.float()
    if setting.hard:
        return compiled_pass(setting, logits, targets, *tensors)
    outcome = compiled_pass(setting._replace(hard=True), logits, targets, *tensors)
    if not math.isfinite(outcome.loss):
        outcome = compiled_pass(setting, logits, targets, *tensors)
    return outcome


def compiled_pass(
    setting: Setting, logits: Tensor, targets: Tensor, weight: Tensor | None, scale: float | Tensor, *others
) -> Outcome:
    """On a CPU."""
    if not torch.is_tensor(scale):
        # A number would be a part of the kernel.
        scale = logits.new_full((), scale, dtype=torch.promote_types(logits.dtype, torch.float32))
    tensors = [None if one is None else one.contiguous() for one in (logits, targets, weight, scale, *others)]
    logits = tensors[0]
    if not setting.by_rows:
        # For what is of another shape than labels, torch.compile makes two loops, with tensors between them.
        for i in (2, 4, 5):
            if tensors[i] is not None and tensors[i].ndim:
                tensors[i] = tensors[i].expand(logits.shape).contiguous()
    # What torch makes a kernel of its own for, sizes of 1 among it. A model does not change the number of classes, and
    # rows of a known length leave no remainder whose length has to be found.
    kinds = [None if tensor is None else (tensor.dtype, tensor.ndim, _ones(tensor.shape)) for tensor in tensors]
    num_classes = logits.shape[1]
    # Threads that meet win little on a small batch, and wait for milliseconds where the cores are busy.
    threads = 1 if logits.numel() < SINGLE_THREADED else torch.get_num_threads()
    state = (torch.is_autocast_enabled('cpu'), torch.is_inference_mode_enabled(), threads)
    kernel = _KERNELS.get(key := (setting, num_classes, *kinds, *state))
    if kernel is None:
        kernel = _KERNELS[key] = _compile(setting, num_classes, tensors, threads)
    return kernel(*tensors).with_total()


def _ones(shape: torch.Size) -> tuple[bool, ...] | None:
    return tuple(size == 1 for size in shape) if 1 in shape else None


def _compile(setting: Setting, num_classes: int, tensors: list[Tensor | None], threads: int) -> Callable[..., Outcome]:
    """A kernel for ``tensors`` and all batches of their kind."""

    def run(*tensors):
        return one_pass(setting, *tensors)

    # torch keeps eight kernels for one piece of code; here all that is told apart has a piece of its own.
    run.__code__ = run.__code__.replace(co_name='asymmetric_loss_pass')
    examples = [None if tensor is None else _example(i, tensor, num_classes) for i, tensor in enumerate(tensors)]
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        return _without_dynamo(run, examples, threads)


def _without_dynamo(run: Callable[..., Outcome], examples: list[Tensor | None], threads: int) -> Callable[..., Outcome]:
    """What torch.compile makes of ``run``, called without Dynamo.

    At every call Dynamo takes longer to look for what has been told apart before than the kernel on a small batch.
    """
    options = {
        'cpp.threads': threads,
        'cpp.enable_floating_point_contract_flag': 'fast',
        # Newer versions have 30 for a GPU and 50 for a CPU. With 50, compiling takes twice as long. From 24 on labels,
        # and below 20 indices, with logits of half precision go by 32 numbers, or by bits that pass through memory.
        'realize_opcount_threshold': 22,
    }
    options = {name: value for name, value in options.items() if name in torch._inductor.list_options()}
    calls = []

    def backend(graph, inputs):
        kernel = torch._inductor.compile(graph, inputs, options)

        def call(*args):
            calls.append((kernel, args, results := kernel(*args)))
            return results

        return call

    outcome = torch.compile(run, backend=backend, fullgraph=True)(*examples)
    ((kernel, args, results),) = calls
    calls.clear()  # torch keeps the backend, and with it the examples
    # Dynamo has chosen an order of tensors and sizes for arguments and results.
    sources = {id(tensor): (i, None) for i, tensor in enumerate(examples)}
    sizes = {
        size: (i, dim)
        for i, tensor in enumerate(examples)
        if tensor is not None
        for dim, size in enumerate(tensor.shape)
    }
    inputs = [sizes[arg] if isinstance(arg, int) else sources[id(arg)] for arg in args]
    places = [[id(result) for result in results].index(id(field)) if field is not None else None for field in outcome]

    def call(*tensors):
        results = kernel(*[tensors[i] if dim is None else tensors[i].shape[dim] for i, dim in inputs])
        return Outcome(*[None if place is None else results[place] for place in places])

    return call


def _example(position: int, tensor: Tensor, num_classes: int) -> Tensor:
    """Zeros of the classes of ``tensor``, whose number of rows is a symbol to torch.compile.

    One kernel serves all numbers of rows so, the same one whatever came first: torch decides by the first sizes whether
    it uses several threads, and keeps the kernel on disk.
    """
    shape = list(tensor.shape)
    # Indices, and all of two dimensions but the probability sums.
    has_rows = position == 1 or (tensor.ndim == 2 and position != 6)
    if has_rows and shape[0] > 1:
        shape[0] = max(16, min(ROWS, (1 << 24) // num_classes))
        # By its size it is found among the arguments of the kernel.
        shape[0] += shape[0] == num_classes
    zeros = tensor.new_zeros(shape)
    if has_rows:
        torch._dynamo.maybe_mark_dynamic(zeros, 0)
    return zeros
