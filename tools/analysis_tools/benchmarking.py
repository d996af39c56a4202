"""What the benchmark tools share: taking turns, growth with size, and Markdown tables.

All a benchmark says stands in captions and tables on its stdout; benchmark.py collects those, and leaves out the rest.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from asl_mmdet.progress import track

Curves = dict[str, dict[float, float]]


def median_times(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, the median over rounds in which all take turns, so that a slow moment of the machine hits all.

    Each is called once before, unmeasured.
    """
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in track(range(rounds), 'rounds'):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def slope(costs: dict[float, float]) -> float:
    """Exponent k of cost ~ size ** k over the larger half of two or more sizes, where fixed costs weigh least."""
    sizes = sorted(costs)[min(len(costs) // 2, len(costs) - 2) :]
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(costs[s]) for s in sizes]).slope


def growth_table(size: str, curves: Curves, unit: str) -> str:
    """Costs by size, a column for each curve and its slope in the last row."""
    sizes = sorted({size for costs in curves.values() for size in costs})
    rows = [[f'{at:,}', *(f'{costs[at]:.3g}' if at in costs else '' for costs in curves.values())] for at in sizes]
    rows.append(['slope', *(f'{slope(costs):.2f}' for costs in curves.values())])
    return table([size, *(f'{name}, {unit}' for name in curves)], rows)


def draw_growth(path: Path, panels: dict[str, Curves], ylabel: str) -> None:
    """Logarithmic plots of cost by size side by side, one for each name of a size; slopes stand in the legends."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 4), sharey=True, squeeze=False, layout='constrained'
    )
    for axis, (size, curves) in zip(axes[0], panels.items()):
        for name, costs in curves.items():
            axis.loglog(sorted(costs), [costs[at] for at in sorted(costs)], 'o-', label=f'{name}: {slope(costs):.2f}')
        axis.set(xlabel=size)
        axis.grid(alpha=0.3)
        axis.legend(title='slope of the larger half', fontsize='small', title_fontsize='small')
    axes[0, 0].set(ylabel=ylabel)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(f'wrote {path}', file=sys.stderr)


def report_growth(
    figure: Path,
    panels: dict[str, tuple[list[tuple[int, int]], int]],
    measure: Callable[[list[tuple[int, int]]], dict[str, dict[tuple[int, int], float]]],
    where: str = '',
) -> None:
    """Prints tables of milliseconds and draws them.

    Args:
        panels: by a name such as 'rows, of 80 classes', sizes (rows, classes) and which of the two grows.
        measure: milliseconds by size, by name.
        where: what the captions end with.
    """
    drawn = {}
    for what, (sizes, index) in panels.items():
        drawn[what] = {name: {at[index]: ms for at, ms in costs.items()} for name, costs in measure(sizes).items()}
        print(f'\nCost by number of {what}{where}\n')
        print(growth_table(what.partition(',')[0], drawn[what], 'ms'))
    draw_growth(figure, drawn, 'ms')


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


class Sizes(argparse.Action):
    """Takes two different numbers or more, from 1 on, as a slope needs them."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(set(values)) < 2 or min(values) < 1:
            parser.error(f'{option_string} {" ".join(map(str, values))}: give two different sizes or more, from 1 on')
        setattr(namespace, self.dest, sorted(set(values)))


def dimensions(text: str) -> tuple[int, int]:
    """``ROWSxCLASSES`` of a command line."""
    rows, _, classes = text.partition('x')
    if not (rows.isdigit() and classes.isdigit() and int(rows) and int(classes)):
        raise argparse.ArgumentTypeError(f'{text}: write ROWSxCLASSES, such as 128x80')
    return int(rows), int(classes)
