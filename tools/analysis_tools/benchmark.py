"""Run the benchmark tools and write their tables, with the commands and a description of the machine, as Markdown.

Without arguments every benchmark_*.py beside this file is run. What the figures mean is written by hand elsewhere
(docs/speed.md): the file written here is replaced whole.
"""

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(__file__).resolve().parent.relative_to(ROOT)
FIGURE = re.compile(r'--growth (\S+)')
MORE_ARGUMENTS = {
    'benchmark_loss.py': '--dtypes float32 bfloat16 float16 --growth docs/figures/growth_loss.png',
    'benchmark_metric.py': '--partial --growth docs/figures/growth_metric.png',
    'benchmark_startup.py': '--growth docs/figures/growth_startup.png',
}
HEAD = """# Benchmarks

Written by `make bench`, which replaces this file; what the figures say stands in [speed.md](speed.md).

{machine}
"""


def describe_machine() -> str:
    """Markdown list: processor, cores, memory, GPU, Python, torch and threads."""
    cpuinfo = Path('/proc/cpuinfo')
    model = re.search(r'^model name\s*: (.+)$', cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return '\n'.join(
        [
            f'- Processor: {model.group(1) if model else platform.processor()}, {cores} cores, '
            f'{torch.backends.cpu.get_cpu_capability()}',
            f'- Memory: {os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.0f} GB',
            f'- GPU: {", ".join(gpus) or "none"}',
            f'- {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, '
            f'{torch.get_num_threads()} threads',
        ]
    )


def captioned_tables(text: str) -> str:
    """The tables of a tool's output, each with the line of text above it; all else is progress and warnings."""
    blocks = re.findall(r'^(?!\|)(.+)\n+((?:\|.*(?:\n|$))+)', text, re.MULTILINE)
    return '\n\n'.join(f'{caption}\n\n{rows.strip()}' for caption, rows in blocks)


def default_commands() -> list[str]:
    names = sorted(path.name for path in (ROOT / TOOLS).glob('benchmark_*.py'))
    return [f'{name} {MORE_ARGUMENTS.get(name, "")}'.strip() for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'commands',
        nargs='*',
        help='tools of this folder with their arguments, each in quotes: "benchmark_data.py --rounds 3"',
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/benchmarks.md')
    args = parser.parse_args()
    sections = [HEAD.format(machine=describe_machine())]
    for command in args.commands or default_commands():
        print(f'{command} ...', flush=True)
        name, *arguments = shlex.split(command)
        done = subprocess.run(
            [sys.executable, str(TOOLS / name), *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE
        )
        tables = captioned_tables(done.stdout)
        if done.returncode or not tables:
            sys.exit(
                f'{command} ended with status {done.returncode} and printed {"a" if tables else "no"} table; '
                f'{args.out} is as it was\n{done.stdout[-2000:]}'
            )
        figure = FIGURE.search(command)
        sections.append(f'```bash\npython {TOOLS / name} {shlex.join(arguments)}'.rstrip() + f'\n```\n\n{tables}\n')
        if figure:
            relative = os.path.relpath(ROOT / figure.group(1), args.out.resolve().parent)
            sections.append(f'![Growth: {name}]({relative})\n')
    args.out.write_text('\n'.join(sections))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
