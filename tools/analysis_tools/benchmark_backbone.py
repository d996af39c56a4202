"""Speed of training steps and inference of TResNet-M beside timm's and ResNet-50.

All take turns in one process; a figure is the median over the rounds. On a CPU it is a multiple of timm's speed (of
ours where timm is not installed), on a GPU images per second, in float32 and in channels last with mixed precision.
Features of the paths and of timm are compared before anything is timed. A peer from a file, --peer NAME=FILE.py:CLASS,
maps images to a tensor or a tuple of features.
"""

import argparse
import contextlib
import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from benchmark_loss import load_peer
from benchmarking import median_times, table
from mmdet.models import ResNet
from timm_tresnet import import_timm_tresnet
from torch import Tensor, nn

from asl_mmdet import TResNet
from asl_mmdet.command_line import present_device
from asl_mmdet.fast_inference import fast_inference

OURS, TIMM = 'TResNet', 'timm TResNet'
TOLERANCE = 1e-4


def randomise(model: nn.Module) -> nn.Module:
    """Norms that scale, shift and have seen data; their initial values would leave nothing to fold."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in ((norm.weight, 0.2, 0.8), (norm.bias, -0.1, 0.1)):
                nn.init.uniform_(tensor, low, high)
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return model


def build(layers: list[int], width: float, peers: list[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Networks by name; ours and timm's have the same weights."""
    torch.manual_seed(0)
    ours = randomise(TResNet(dict(layers=layers, width=width), out_indices=(3,)))
    found = {OURS: ours}
    timm = import_timm_tresnet()
    if timm is None:
        print('timm is not installed (pip install --no-deps timm)', file=sys.stderr)
    else:
        theirs = randomise(timm.TResNet(layers, width_factor=width, num_classes=0, global_pool=''))
        with tempfile.TemporaryDirectory() as folder:
            torch.save(theirs.state_dict(), Path(folder, 'timm.pth'))
            ours.load_pretrained(Path(folder, 'timm.pth'))
        found[TIMM] = theirs
    return found | {'mmdet ResNet-50': ResNet(50, out_indices=(3,))} | dict(peers)


def last_feature(features: Tensor | tuple[Tensor, ...]) -> Tensor:
    return features if torch.is_tensor(features) else features[-1]


def contestants(
    networks: dict[str, nn.Module], images: Tensor, amp: bool
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Callable[[], Tensor]]]:
    """What is timed in training and in inference, by name: functions that return the loss or the last feature."""
    layout = torch.channels_last if amp else torch.contiguous_format
    autocast = torch.autocast(images.device.type) if amp else contextlib.nullcontext()

    def prepared(network, layout=layout):
        return copy.deepcopy(network).to(images.device, memory_format=layout)

    def trains(network, layout=layout):
        network, x = prepared(network, layout), images.contiguous(memory_format=layout)
        network.train()

        def step():
            network.zero_grad()
            with autocast:
                loss = last_feature(network(x)).float().square().mean()
            loss.backward()
            return loss

        return step

    def infers(network, layout=layout):
        x = images.contiguous(memory_format=layout)
        network.eval()

        @torch.no_grad()
        def step():
            with autocast:
                return last_feature(network(x)).float()

        return step

    training = {name: trains(network) for name, network in networks.items()}
    inference = {name: infers(prepared(network)) for name, network in networks.items()}
    for name in (OURS, TIMM) if not amp else ():
        if name in networks:
            training[f'{name}, channels last'] = trains(networks[name], torch.channels_last)
            inference[f'{name}, channels last'] = infers(
                prepared(networks[name], torch.channels_last), torch.channels_last
            )
    for name, compiled in (('fast_inference', False), ('fast_inference, compiled', True)):
        inference[f'{OURS}, {name}'] = infers(fast_inference(prepared(networks[OURS]), compiled))
    return training, inference


def check_agreement(inference: dict[str, Callable[[], Tensor]]) -> None:
    # A GPU rounds what it multiplies to 10 bits (TensorFloat-32) unless it is told not to.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        features = {name: function() for name, function in inference.items() if name.startswith((OURS, TIMM))}
    expected = features[OURS]
    for name, found in features.items():
        gap = ((found - expected).abs().max() / expected.abs().max()).item()
        if not gap <= TOLERANCE:
            sys.exit(f'{name}: features differ from those of {OURS} by {gap:.1e} of the largest')
        print(f'{name}: features agree to {gap:.1e} of the largest', file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', type=int, nargs='+', default=[224, 448], help='height and width, multiples of 32')
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--layers', type=int, nargs=4, default=[3, 4, 11, 3], help='blocks of the stages')
    parser.add_argument('--width', type=float, default=1.0)
    parser.add_argument('--peer', type=load_peer, action='append', default=[], metavar='NAME=FILE.py:CLASS')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', type=present_device, default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_gpu = torch.device(args.device).type == 'cuda'

    def waited_for(functions):
        def wait(function):
            function()
            torch.cuda.synchronize(args.device)

        return {name: lambda f=f: wait(f) for name, f in functions.items()} if on_gpu else functions

    networks = build(args.layers, args.width, args.peer)
    columns = {}
    for amp in (False, True) if on_gpu else (False,):
        for size in args.sizes:
            torch.compiler.reset()  # or the second size would be compiled for sizes of any kind
            training, inference = contestants(networks, torch.rand(args.batch_size, 3, size, size).to(args.device), amp)
            if not amp:
                check_agreement(inference)
            where = f'{size}, channels last, AMP' if amp else f'{size}'
            for what, functions in (('training', training), ('inference', inference)):
                columns[f'{what}, {where}'] = median_times(waited_for(functions), args.rounds)

    base = TIMM if TIMM in networks else OURS
    unit = 'images/s' if on_gpu else f'multiples of the speed of {base}'
    names = list(dict.fromkeys(name for times in columns.values() for name in times))
    rows = []
    for name in names:
        cells = []
        for times in columns.values():
            scale = args.batch_size if on_gpu else times[base]
            cells.append(f'{scale / times[name]:.{0 if on_gpu else 2}f}' if name in times else '')
        rows.append([name, *cells])
    print(f'Batch {args.batch_size}, {unit}; {args.device}, {args.threads} threads, torch {torch.__version__}\n')
    print(table(['network', *columns], rows))


if __name__ == '__main__':
    main()
