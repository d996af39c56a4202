"""Time of forward and backward pass of AsymmetricLoss and other losses, as multiples of torch's binary cross-entropy.

All take turns in one process; a figure is the median over the rounds. On a CPU only the ratios mean something. On a GPU
it is microseconds of a call, microseconds in which its kernels run, and multiples of these of the time in which logits
and targets are read once and the gradient is written once, at the bandwidth of a copy; memory at the peak comes beside.
timm and mmpretrain take part where they are installed (pip install --no-deps timm mmpretrain), on a GPU mmcv and
torchvision; other peers come from a file, as --peer official=losses.py:AsymmetricLoss.
"""

import argparse
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmarking import Sizes, dimensions, report_growth, table
from mmcv.ops import sigmoid_focal_loss
from mmdet.models import FocalLoss
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from asl_mmdet import AsymmetricLoss
from asl_mmdet.command_line import present_device
from asl_mmdet.models.asymmetric_loss import ProbabilityStatistics
from asl_mmdet.progress import track

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


INSTALLED_PEERS = {
    'timm ASL': ('timm.loss.asymmetric_loss', 'AsymmetricLossMultiLabel'),
    'mmpretrain ASL': ('mmpretrain.models.losses.asymmetric_loss', 'AsymmetricLoss'),
}


def import_without_packages(name: str) -> types.ModuleType | None:
    """A module without what the packages around it import, torchvision among it; None where it is not installed."""
    top, *inner = name.split('.')
    if top in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    before = set(sys.modules)
    folder, package = Path(spec.origin).parent, top
    for part in inner:
        sys.modules[package] = bare = types.ModuleType(package)
        bare.__path__ = [str(folder)]
        folder, package = folder / part, f'{package}.{part}'
    try:
        return importlib.import_module(name)
    finally:
        for added in set(sys.modules) - before:
            if added.split('.')[0] == top:
                del sys.modules[added]


def installed_peers() -> list[tuple[str, nn.Module]]:
    modules = {name: import_without_packages(module) for name, (module, _) in INSTALLED_PEERS.items()}
    return [(name, getattr(module, INSTALLED_PEERS[name][1])()) for name, module in modules.items() if module]


def load_peer(text: str) -> tuple[str, nn.Module]:
    name, _, place = text.partition('=')
    path, _, attribute = place.rpartition(':')
    if not (name and attribute and Path(path).is_file()):
        raise argparse.ArgumentTypeError(f'{text}: write NAME=FILE.py:CLASS with a file that exists')
    spec = importlib.util.spec_from_file_location(f'peer_{name}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise argparse.ArgumentTypeError(f'{text}: {path} has no {attribute}')
    return name, getattr(module, attribute)()


def contestants(
    logits: Tensor, labels: Tensor, indices: Tensor, peers: list[tuple[str, nn.Module]]
) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name: functions that return a loss to run backward from.

    ``indices`` are class indices instead of labels, ``watched`` gathers what ProbabilityGapHook logs, and in
    ``adaptive`` gamma_neg is a tensor, as AdaptiveAsymmetryHook makes it.
    """
    rows, focal = len(logits), FocalLoss()
    found = {
        'BCE': lambda: F.binary_cross_entropy_with_logits(logits.float(), labels),
        'mmdet FocalLoss': lambda: focal(logits, labels.long(), avg_factor=rows),
        # As its detectors call it: mmcv's kernel on a GPU, single operations on a CPU.
        'mmdet FocalLoss, indices': lambda: focal(logits, indices, avg_factor=rows),
    }
    for name, fused in (('fused', True), ('single operations', False)):
        loss = AsymmetricLoss(fused=fused)
        found[f'ASL, {name}'] = lambda loss=loss: loss(logits, labels, avg_factor=rows)
        found[f'ASL, {name}, indices'] = lambda loss=loss: loss(logits, indices, avg_factor=rows)
        watched = AsymmetricLoss(fused=fused)
        watched.observe(ProbabilityStatistics())
        found[f'ASL, {name}, watched'] = lambda loss=watched: loss(logits, labels, avg_factor=rows)
        adaptive = AsymmetricLoss(fused=fused)
        adaptive.make_adaptive('gamma_neg', (), logits.device)
        found[f'ASL, {name}, adaptive'] = lambda loss=adaptive: loss(logits, labels, avg_factor=rows)
    for name, peer in peers:
        found[name] = lambda peer=peer: peer(logits, labels)

    if logits.is_cuda:
        found['mmcv focal loss, indices'] = lambda: sigmoid_focal_loss(logits, indices, 2.0, 0.25, None, 'sum')
        if importlib.util.find_spec('torchvision'):
            from torchvision.ops import sigmoid_focal_loss as of_torchvision

            found['torchvision focal loss'] = lambda: of_torchvision(logits, labels, reduction='sum')
    return found


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a device reads and writes where it copies a GiB."""
    source = torch.ones(1 << 28, device=device)
    copying = Timer('target.copy_(source)', globals=dict(source=source, target=torch.empty_like(source)))
    return 2 * source.nbytes / copying.blocked_autorange().median


def least_bytes(name: str, logits: Tensor, labels: Tensor, indices: Tensor) -> int:
    """Logits and gradient, and the targets of the loss of this name."""
    return 2 * logits.nbytes + (indices if 'indices' in name else labels).nbytes


def time_of_kernels(function: Callable[[], Tensor], logits: Tensor, calls: int = 5) -> float:
    """Seconds in which a GPU is at work for a call; the rest of its time it waits for the host."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            logits.grad = None
            function().backward()
        torch.cuda.synchronize(logits.device)
    return sum(event.self_device_time_total for event in profiler.key_averages()) / calls / 1e6


def peak_memory(function: Callable[[], Tensor], logits: Tensor) -> int:
    """Bytes of a GPU that both passes allocate at their peak beyond what was there."""
    logits.grad = None
    torch.cuda.synchronize(logits.device)
    torch.cuda.reset_peak_memory_stats(logits.device)
    before = torch.cuda.memory_allocated(logits.device)
    function().backward()
    torch.cuda.synchronize(logits.device)
    return torch.cuda.max_memory_allocated(logits.device) - before


def median_times(functions: dict[str, Callable[[], Tensor]], logits: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of one forward and backward pass."""

    def once(function):
        logits.grad = None
        function().backward()

    def timed(function, repeats):
        once(function)  # in the memory that the one before has left
        if logits.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            once(function)
        if logits.is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    # On a GPU, AsymmetricLoss looks at the labels of its first calls, which waits for it.
    warming = AsymmetricLoss.CHECKED_CALLS if logits.is_cuda else 4
    for function in functions.values():
        for _ in range(warming):
            once(function)
    # A small batch takes less than the clock resolves well, and a GPU works while the next calls are made.
    enough = 2e-2
    repeats = {name: max(1, round(enough / timed(function, 1))) for name, function in functions.items()}
    times = {name: [] for name in functions}
    for _ in track(range(rounds), f'{tuple(logits.shape)}'):
        for name, function in functions.items():
            times[name].append(timed(function, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def make_batch(rows: int, classes: int, dtype: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits, labels of which 3 % are positive, and class indices."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator).to(device, DTYPES[dtype]).requires_grad_()
    labels = (torch.rand(rows, classes, generator=generator) < 0.03).float().to(device)
    indices = torch.randint(0, classes + 1, (rows,), generator=generator).to(device)
    return logits, labels, indices


def on_a_gpu(
    times: dict[str, float],
    functions: dict[str, Callable[[], Tensor]],
    batch: tuple[Tensor, Tensor, Tensor],
    bandwidth: float,
) -> dict[str, tuple[str, str]]:
    """Microseconds of a call, of its kernels and their multiple, and memory in multiples of the logits."""
    cells = {}
    for name, seconds in times.items():
        kernels = time_of_kernels(functions[name], batch[0])
        multiple = kernels * bandwidth / least_bytes(name, *batch)
        memory = peak_memory(functions[name], batch[0]) / batch[0].nbytes
        cells[name] = (f'{1e6 * seconds:.0f}, {1e6 * kernels:.0f} ({multiple:.3g})', f'{memory:.2f}')
    return cells


def compare(args: argparse.Namespace, where: str) -> None:
    """Prints a table of multiples of BCE, on a GPU two, with the seconds of every loss's first call."""
    columns, first_calls, of_gpu = {}, {}, {}
    bandwidth = copy_bandwidth(args.device) if torch.device(args.device).type == 'cuda' else None
    for dtype in args.dtypes:
        for rows, classes in args.sizes:
            batch = make_batch(rows, classes, dtype, args.device)
            functions = contestants(*batch, args.peer)
            for name, function in functions.items():
                start = time.perf_counter()
                function().backward()
                first_calls.setdefault(name, time.perf_counter() - start)
            column = f'{rows} x {classes}, {dtype}'
            columns[column] = median_times(functions, batch[0], args.rounds)
            if bandwidth:
                of_gpu[column] = on_a_gpu(columns[column], functions, batch, bandwidth)
    first = [f'{seconds:.1f}' for seconds in first_calls.values()]
    if bandwidth:
        at = f'; a copy moves {bandwidth / 1e12:.2f} TB/s; {where}'
        print(f'\nForward and backward pass, us, in kernels, us (multiples of reading and writing once){at}\n')
        cells = [[name, *(column[name][0] for column in of_gpu.values())] for name in first_calls]
        print(table(['loss', *columns, 'first call, s'], [[*line, s] for line, s in zip(cells, first)]))
        print(f'\nMemory that both passes allocate at their peak, multiples of the logits; {where}\n')
        cells = [[name, *(column[name][1] for column in of_gpu.values())] for name in first_calls]
        print(table(['loss', *columns], cells))
        return
    lines = [
        [name, *(f'{times[name] / times["BCE"]:.2f}' for times in columns.values()), s]
        for name, s in zip(first_calls, first)
    ]
    lines.append(['BCE, ms', *(f'{1e3 * times["BCE"]:.3f}' for times in columns.values()), ''])
    print(f'\nForward and backward pass, multiples of BCE; {where}\n')
    print(table(['loss', *columns, 'first call, s'], lines))


def measure_growth(sizes: list[tuple[int, int]], args: argparse.Namespace) -> dict[str, dict[tuple[int, int], float]]:
    """Milliseconds by size, by name."""
    curves = {'BCE': {}, 'ASL, fused': {}, 'ASL, fused, indices': {}}
    for size in sizes:
        logits, labels, indices = make_batch(*size, args.dtypes[0], args.device)
        functions = contestants(logits, labels, indices, [])
        for name, seconds in median_times({name: functions[name] for name in curves}, logits, args.rounds).items():
            curves[name][size] = 1e3 * seconds
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--sizes', type=dimensions, nargs='*', default=[(128, 80), (128, 5400), (44000, 80)], metavar='ROWSxCLASSES'
    )
    parser.add_argument('--dtypes', choices=DTYPES, nargs='+', default=['float32'])
    parser.add_argument('--peer', type=load_peer, action='append', default=[], metavar='NAME=FILE.py:CLASS')
    parser.add_argument('--growth', type=Path, metavar='FIGURE', help='measure and draw cost by rows and by classes')
    parser.add_argument('--growth-rows', type=int, nargs='+', action=Sizes, default=[128, 1000, 8000, 44000, 200000])
    parser.add_argument('--growth-classes', type=int, nargs='+', action=Sizes, default=[80, 400, 2000, 9605, 32093])
    parser.add_argument('--rounds', type=int, default=31)
    parser.add_argument('--device', type=present_device, default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    args.peer = installed_peers() + args.peer
    torch.set_num_threads(args.threads)
    # glibc gives the memory of every pass back to the system until it has freed a block of up to 32 MiB once. The
    # activations of a training are such blocks.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    if torch.device(args.device).type == 'cuda':
        where = f'{torch.cuda.get_device_name(args.device)}, torch {torch.__version__}'
    else:
        where = f'{args.device}, {args.threads} threads, {torch.__version__}'

    if args.sizes:
        compare(args, where)
    if args.growth:
        panels = {
            'rows, of 80 classes': ([(rows, 80) for rows in args.growth_rows], 0),
            'classes, of 128 rows': ([(128, classes) for classes in args.growth_classes], 1),
        }
        report_growth(args.growth, panels, lambda sizes: measure_growth(sizes, args), f'; {where}')


if __name__ == '__main__':
    main()
