"""What the plugin stands on here, and what to mend: python -m asl_mmdet.doctor

Speaks where ``import asl_mmdet`` is refused, too. Exit status 1 where there is something to mend.
"""

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator

from .supported_stack import INSTALL, stack_faults
from .version import __version__

STACKS = dict(
    onedl=('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
    openmmlab=('mmengine', 'mmcv', 'mmdet'),
)
OTHERS = ('torch', 'numpy', 'opencv-python', 'opencv-python-headless', 'pycocotools', 'pillow')


def packages() -> dict[str, str]:
    """Version of each installed package of the stacks, and of what they stand on."""
    found = {}
    for name in (*OTHERS, *(name for names in STACKS.values() for name in names)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def installed_stacks(found: dict[str, str]) -> list[str]:
    return [stack for stack, names in STACKS.items() if any(name in found for name in names)]


def compiled_parts() -> dict[str, str]:
    """What was compiled, and for what; only parts that import."""
    parts = {}
    with contextlib.suppress(Exception):
        torch = importlib.import_module('torch')
        parts['torch'] = f'{torch.__version__}, ' + (f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU only')
        ops = importlib.import_module('mmcv._ext')
        parts["mmcv's ops"] = f'{ops.get_compiler_version()}, CUDA {ops.get_compiling_cuda_version()}'
    compiler = shutil.which(os.environ.get('CXX', '') or 'c++') or shutil.which('g++') or shutil.which('clang++')
    parts["the loss's kernel"] = (
        f'compiled at first use, on a CPU by {compiler}' if compiler else 'no C++ compiler: single operations on a CPU'
    )
    return parts


def devices() -> list[str]:
    try:
        torch = importlib.import_module('torch')
        names = [
            f'cuda:{i} {torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory >> 30} GiB'
            for i in range(torch.cuda.device_count())
        ]
        return [f'cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads', *names]
    except Exception as error:
        return [f'unknown, as torch cannot be asked ({type(error).__name__})']


def remedies(found: dict[str, str], parts: dict[str, str]) -> Iterator[str]:
    """One line for each thing to mend."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        yield f'Python {platform.python_version()} is none of 3.10 to 3.13, which the packages exist for: {INSTALL}'
    for fault, _ in stack_faults():
        yield fault
    if len(installed_stacks(found)) > 1:
        both = ', '.join(f'{name} {found[name]}' for names in STACKS.values() for name in names if name in found)
        yield (
            f'two stacks write over the same imports ({both}): uninstall all of them, then install one anew, as '
            'uninstalling the one breaks the other'
        )
    torch = sys.modules.get('torch')
    if getattr(torch, 'version', None) and torch.version.cuda and torch.cuda.is_available():
        if 'CUDA not available' in parts.get("mmcv's ops", ''):
            yield f"mmcv's ops were compiled without CUDA, and there is a GPU: {INSTALL}"
    elif shutil.which('nvidia-smi') and getattr(torch, 'version', None):
        yield 'nvidia-smi is here, but torch sees no GPU: install a torch for CUDA, or set CUDA_VISIBLE_DEVICES'


def main() -> int:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # packages print as they are imported
        warnings.simplefilter('ignore')
        found = packages()
        parts = compiled_parts()
        to_mend = list(remedies(found, parts))
        here = devices()
    print(f'asl_mmdet {__version__}, Python {platform.python_version()}, {platform.platform()}')
    print(f'stack: {" and ".join(installed_stacks(found)) or "none"}')
    for name, version in found.items():
        print(f'  {name} {version}')
    print('compiled:')
    for name, built in parts.items():
        print(f'  {name}: {built}')
    print('devices:')
    for device in here:
        print(f'  {device}')
    print('to mend:' if to_mend else 'nothing to mend')
    for fault in to_mend:
        print(f'  {fault}')
    return 1 if to_mend else 0


if __name__ == '__main__':
    sys.exit(main())
