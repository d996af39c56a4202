"""Draw the figures of the ASL paper: 2 and 3 from the loss, 4 and 9 from training logs, 5 to 8 from sweep results.

plot_paper_figures.py figure3 --gamma-neg 4 --clip 0.05
plot_paper_figures.py figure4 CE=work_dirs/ce focal=work_dirs/focal ASL=work_dirs/asl --out figure4.svg
plot_paper_figures.py figure7 sweep.csv --where seed=0
plot_paper_figures.py lines sweep.csv --x optim_wrapper.optimizer.lr --y multi-label/mAP --lines name
"""

import argparse
import csv
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from asl_mmdet.gradient_analysis import (  # noqa: E402
    loss_properties,
    mislabelled_point,
    negative_curves,
    normalised_gradient,
)
from asl_mmdet.training_log import TrainingLogError, is_training, logged_lines  # noqa: E402

LOSS = 'model.head.loss'
SWEEPS = {
    'figure5': dict(x=f'{LOSS}.gamma_neg', lines=None, xlabel='focal loss $\\gamma$'),
    'figure6': dict(x=f'{LOSS}.gamma_pos', lines=f'{LOSS}.gamma_neg', xlabel=None),
    'figure7': dict(x=f'{LOSS}.clip', lines=f'{LOSS}.gamma_neg', xlabel=None),
}
TRAINING = {'figure4': ['p_t_pos,p_t_neg'], 'figure9': ['gamma_neg', 'gap']}
SYMBOLS = {
    'gamma_neg': '$\\gamma_-$',
    'gamma_pos': '$\\gamma_+$',
    'clip': 'probability margin $m$',
    'p_t_pos': '$p_t^+$',
    'p_t_neg': '$p_t^-$',
    'gap': '$\\Delta p$',
}

Row = dict[str, str]


class InputError(Exception):
    """What was given cannot be drawn; the message says what, where, and what to do."""


# ------------------------------------------------------------------------------------------ figures 2 and 3: the loss


def probabilities(clip: float) -> torch.Tensor:
    """(1000,) float64, increasing, with two points that enclose ``clip`` closely, where gradients may jump."""
    inside = torch.linspace(0.001, 0.999, 998, dtype=torch.float64)
    edges = torch.tensor(
        [clip * (1 - 1e-9), clip + (1 - clip) * 1e-9] if clip > 0 else [1e-4, 1 - 1e-4], dtype=torch.float64
    )
    return torch.cat([inside, edges]).sort().values


def named_losses(gamma_neg: float, clip: float) -> dict[str, tuple[float, float]]:
    """The four losses of figure 3 and table 1, as (gamma_neg, clip)."""
    return {'CE': (0.0, 0.0), 'CE+PS': (0.0, clip), 'AF': (gamma_neg, 0.0), 'ASL': (gamma_neg, clip)}


def describe(name: str, gamma_neg: float, clip: float) -> str:
    settings = [f'$\\gamma_-={gamma_neg:g}$'] * (gamma_neg > 0) + [f'$m={clip:g}$'] * (clip > 0)
    return f'{name} ({", ".join(settings)})' if settings else name


def draw_losses(gamma_neg: float, clip: float) -> Figure:
    """Figure 2: losses of negatives by probability."""
    p = probabilities(clip)
    figure, axes = plt.subplots(figsize=(6, 4.2), layout='constrained')
    curves = {
        'cross-entropy': (0.0, 0.0),
        'focal loss': (gamma_neg, 0.0),
        'probability-shifted focal loss': (gamma_neg, clip),
    }
    for name, setting in curves.items():
        loss, _ = negative_curves(p, *setting)
        axes.plot(p, loss, label=describe(name, *setting))
    axes.set(xlabel='$p$', ylabel='loss of a negative', xlim=(0, 1), ylim=(0, 3))
    finish(axes)
    return figure


def draw_gradients(gamma_neg: float, clip: float) -> Figure:
    """Figure 3: normalised gradients of negatives by probability, with the p* of each curve that has one."""
    p = probabilities(clip)
    figure, axes = plt.subplots(figsize=(6, 4.2), layout='constrained')
    for name, setting in named_losses(gamma_neg, clip).items():
        p_star = mislabelled_point(*setting)
        label = describe(name, *setting) + (f', $p^*={p_star:.3f}$' if p_star else '')
        (line,) = axes.plot(p, normalised_gradient(p, *setting), label=label)
        if p_star:
            axes.plot([p_star], [1], 'o', color=line.get_color())
    axes.set(xlabel='$p$', ylabel='$dL/dz$ of a negative, maximum = 1', xlim=(0, 1), ylim=(0, 1.05))
    axes.grid(alpha=0.3)
    figure.legend(loc='outside upper center', ncols=2)
    return figure


def table_1(gamma_neg: float, clip: float) -> str:
    """The properties that table 1 lists, as the gradients have them."""
    names = ('hard_threshold', 'soft_threshold', 'discards_mislabelled', 'continuous_gradients')
    lines = ['        ' + '  '.join(names) + '  p*']
    for name, setting in named_losses(gamma_neg, clip).items():
        properties = loss_properties(*setting)
        cells = ['-+'[getattr(properties, column)].ljust(len(column)) for column in names]
        p_star = '-' if properties.p_star is None else f'{properties.p_star:.4f}'
        lines.append(f'{name:<8}' + '  '.join(cells) + '  ' + p_star)
    return '\n'.join(lines)


# --------------------------------------------------------------------------------- figures 4 and 9: training logs


def training_lines(folder: Path) -> list[dict[str, float]]:
    """Lines that mmengine logged in training, of all the runs in a work dir or of a single run's folder, by step.

    Raises:
        InputError: there is no such folder, or no training line in it.
        TrainingLogError: see :func:`asl_mmdet.training_log.logged_lines`.
    """
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder; name the work dir of a training run, or LABEL=WORK_DIR')
    lines = [line for line in logged_lines(folder) if is_training(line)]
    if not lines:
        raise InputError(
            f'{folder}: no line with a training loss in the files */vis_data/scalars.json; name the work '
            'dir of a run that has trained for at least one logging interval'
        )
    return lines


def scalar_key(lines: list[dict[str, float]], scalar: str, module: str | None, folder: Path) -> str:
    """Key of a scalar, which is logged under its name or, in models of several losses, under MODULE/name."""
    logged = sorted({key for line in lines for key in line})
    if module is not None:
        scalar = f'{module}/{scalar}'
    keys = [key for key in logged if key == scalar or module is None and key.endswith(f'/{scalar}')]
    if not keys:
        raise InputError(
            f'{folder}: no training line has {scalar!r}, only {", ".join(logged)}; train with ProbabilityGapHook for '
            'p_t_pos, p_t_neg and gap, with AdaptiveAsymmetryHook for gamma_neg and clip, or draw others with --rows'
        )
    if scalar in keys:
        return scalar
    if len(keys) > 1:
        modules = ', '.join(key.removesuffix(f'/{scalar}') for key in keys)
        raise InputError(f'{folder}: {scalar!r} is logged for {modules}; choose one with --module')
    return keys[0]


def labelled_run(text: str) -> tuple[str, Path]:
    label, separator, folder = text.partition('=')
    if separator and not Path(text).is_dir():
        return label, Path(folder)
    return Path(text).name, Path(text)


def draw_training(runs: Sequence[str], rows: Sequence[str], module: str | None, gap_target: float | None) -> Figure:
    """Figures 4 and 9: scalars along the training, a column for each run and a row for each group of scalars."""
    grid = [row.split(',') for row in rows]
    if gap_target is not None and not any('gap' in scalars for scalars in grid):
        raise InputError(f'--gap-target {gap_target}: no row draws gap; add it to --rows {" ".join(rows)}')
    size = (1.2 + 3.6 * len(runs), 0.8 + 2.4 * len(grid))
    figure, axes = plt.subplots(
        len(grid), len(runs), figsize=size, layout='constrained', sharex='col', sharey='row', squeeze=False
    )
    for column, (label, folder) in enumerate(map(labelled_run, runs)):
        lines = training_lines(folder)
        for panel, scalars in zip(axes[:, column], grid):
            for scalar in scalars:
                key = scalar_key(lines, scalar, module, folder)
                steps, values = zip(*((line['step'], line[key]) for line in lines if key in line))
                panel.plot(steps, values, label=symbol(scalar))
                print(f'{label}: {key} is {values[-1]:.4g} at step {steps[-1]}, the last')
            if 'gap' in scalars and gap_target is not None:
                panel.axhline(gap_target, color='black', linestyle=':', label='target')
            panel.grid(alpha=0.3)
            if len(panel.get_lines()) > 1:
                panel.legend()
        axes[0, column].set_title(label)
        axes[-1, column].set_xlabel('iteration')
    for panel, scalars in zip(axes[:, 0], grid):
        panel.set_ylabel(', '.join(map(symbol, scalars)))
    return figure


# --------------------------------------------------------------------------------------- figures 5 to 8: sweep results


def number_of(text: str) -> float | None:
    """The finite number that a cell holds, if any."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def tidy(cell: str) -> str:
    """Numbers in one spelling, so that 2 and 2.0 are one value."""
    value = number_of(cell)
    return cell if value is None else f'{value:.12g}'


class Sweep:
    """Rows of a table with one finished training run each: its setting's ``name``, its ``seed``, keys and metrics.

    Args:
        path: CSV file with a header.
        where: conditions COLUMN=VALUE on the rows to keep; several on one column are alternatives.

    Raises:
        InputError: the file, a column or a value is missing or wrong.
    """

    def __init__(self, path: Path, where: Sequence[str]) -> None:
        if not path.is_file():
            raise InputError(f'{path}: no such file; name the CSV of a sweep')
        self.path = path
        with path.open(newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file)
            try:
                self.columns = list(reader.fieldnames or [])
                self.rows: list[tuple[int, Row]] = [(reader.line_num, row) for row in reader]
            except (csv.Error, UnicodeDecodeError) as error:
                raise InputError(f'{path}: not a CSV file ({error}); name the CSV of a sweep') from error
        for line, row in self.rows:
            if None in row or None in row.values():
                raise InputError(f'{path}, line {line}: not {len(self.columns)} cells as in the header; correct it')
        wanted: dict[str, list[str]] = {}
        for condition in where:
            column, separator, value = condition.partition('=')
            if not separator:
                raise InputError(f'--where {condition}: is not COLUMN=VALUE')
            wanted.setdefault(column, []).append(value)
        for column, values in wanted.items():
            self.require(column)
            present = sorted({row[column] for _, row in self.rows})
            self.rows = [(n, row) for n, row in self.rows if tidy(row[column]) in map(tidy, values)]
            if not self.rows:
                raise InputError(
                    f'{path}: no row has {column}={" or ".join(values)} and what else --where says; '
                    f'the column holds {", ".join(present)}'
                )
        if not self.rows:
            raise InputError(f'{path}: no rows; wait until runs of the sweep have finished')

    def require(self, *columns: str) -> None:
        for column in columns:
            if column not in self.columns:
                raise InputError(
                    f'{self.path}: no column {column!r}; choose another with --x, --y, --lines, --groups or --bars '
                    f'among {", ".join(self.columns)}'
                )

    def number(self, line: int, row: Row, column: str) -> float:
        value = number_of(row[column])
        if value is None:
            raise InputError(
                f'{self.path}, line {line}: {column} is {row[column]!r}, not a finite number; repeat that run, delete '
                'the line, or leave it out with --where'
            )
        return value

    def metric_by(self, place: Callable[[int, Row], tuple], y: str) -> dict[tuple, list[float]]:
        """Values of column ``y``, one a seed, by the place of their row in the figure, in the order of the file.

        Raises:
            InputError: rows of different settings fall on one place, or a seed of a setting stands there twice.
        """
        self.require(y, 'name', 'seed')
        values: dict[tuple, list[float]] = {}
        owners: dict[tuple, tuple[int, str]] = {}
        runs: dict[tuple[str, str], int] = {}
        for line, row in self.rows:
            where = place(line, row)
            first, name = owners.setdefault(where, (line, row['name']))
            if row['name'] != name:
                raise InputError(
                    f'{self.path}, lines {first} and {line}: the settings {name!r} and {row["name"]!r} fall on the '
                    f'same place, {", ".join(filter(None, map(str, where)))}; keep one with --where COLUMN=VALUE'
                )
            run = (row['name'], row['seed'])
            if run in runs:
                raise InputError(
                    f'{self.path}, lines {runs[run]} and {line}: both are name={run[0]}, seed={run[1]}; delete one'
                )
            runs[run] = line
            values.setdefault(where, []).append(self.number(line, row, y))
        return values


def mean_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and how far the smallest and the largest value lie below and above it."""
    mean = sum(values) / len(values)
    return mean, max(mean - min(values), 0), max(max(values) - mean, 0)


def report(place: str, values: Sequence[float]) -> None:
    print(f'{place}: {mean_and_range(values)[0]:.4g} ({min(values):.4g} to {max(values):.4g}, n = {len(values)})')


def seeds_in(values: dict[tuple, list[float]]) -> str:
    counts = sorted({len(group) for group in values.values()})
    if counts == [1]:
        return 'one seed each'
    return f'mean and range of {"–".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])} seeds'


def draw_lines(sweep: Sweep, x: str, y: str, lines: str | None, xlabel: str | None) -> Figure:
    """Figures 5 to 7: a metric by a number, a line for each value of another column."""
    sweep.require(x, *([lines] if lines else []))
    values = sweep.metric_by(lambda line, row: (tidy(row[lines]) if lines else '', sweep.number(line, row, x)), y)
    names = list(dict.fromkeys(name for name, _ in values))
    if all(number_of(name) is not None for name in names):
        names.sort(key=float)
    figure, axes = plt.subplots(figsize=(6, 4.2), layout='constrained')
    for name in names:
        at, groups = zip(*sorted((place, group) for (line, place), group in values.items() if line == name))
        means, below, above = zip(*map(mean_and_range, groups))
        label = f'{symbol(lines)} = {name}' if lines else None
        axes.errorbar(at, means, yerr=(below, above), marker='o', capsize=3, label=label)
        for place, group in zip(at, groups):
            report(f'{f"{lines}={name}, " if lines else ""}{x}={place:g}', group)
    axes.set(xlabel=xlabel or symbol(x), ylabel=f'{symbol(y)}, {seeds_in(values)}')
    finish(axes)
    return figure


def loss_name(gamma_pos: float, gamma_neg: float, clip: float) -> str:
    if gamma_pos == gamma_neg and clip == 0:
        return 'CE' if gamma_neg == 0 else 'focal loss'
    return 'ASL'


def draw_bars(sweep: Sweep, groups: str, bars: str | None, y: str) -> Figure:
    """Figure 8: a group of bars for each backbone, a bar for each loss, named by its gammas and clip or by a column.

    The axis does not start at 0, as the differences would not be seen; each bar has its mean above it.
    """
    keys = [bars] if bars else [f'{LOSS}.{name}' for name in ('gamma_pos', 'gamma_neg', 'clip')]
    sweep.require(groups, *keys)

    def place(line: int, row: Row) -> tuple[str, str]:
        return tidy(row[groups]), tidy(row[bars]) if bars else loss_name(
            *(sweep.number(line, row, key) for key in keys)
        )

    values = sweep.metric_by(place, y)
    group_names = list(dict.fromkeys(group for group, _ in values))
    bar_names = list(dict.fromkeys(bar for _, bar in values))
    width = 0.8 / len(bar_names)
    figure, axes = plt.subplots(figsize=(2 + 1.8 * len(group_names), 4.2), layout='constrained')
    for i, bar in enumerate(bar_names):
        present = [j for j, group in enumerate(group_names) if (group, bar) in values]
        means, below, above = zip(*(mean_and_range(values[group_names[j], bar]) for j in present))
        at = [j + (i - (len(bar_names) - 1) / 2) * width for j in present]
        drawn = axes.bar(at, means, width * 0.92, yerr=(below, above), capsize=3, label=bar)
        axes.bar_label(drawn, fmt='%.4g', padding=2, fontsize='small')
        for j in present:
            report(f'{group_names[j]}, {bar}', values[group_names[j], bar])
    seen = [value for group in values.values() for value in group]
    spread = (max(seen) - min(seen)) or abs(seen[0]) or 1
    axes.set(
        ylabel=f'{symbol(y)}, {seeds_in(values)}',
        xticks=range(len(group_names)),
        xticklabels=group_names,
        ylim=(min(seen) - 0.5 * spread, max(seen) + 0.4 * spread),
    )
    axes.legend(ncols=len(bar_names), loc='upper center')
    return figure


# ------------------------------------------------------------------------------------------------------- command line


def symbol(column: str) -> str:
    """Name of a column or scalar on an axis."""
    name = column.rpartition('/')[2]
    return SYMBOLS.get(name.rpartition('.')[2], name)


def finish(axes: plt.Axes) -> None:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend()


def focusing(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'{text} is not a finite number of 0 or more')
    return value


def margin(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text} does not lie in [0, 1)')
    return value


def picture(text: str) -> Path:
    known = sorted(Figure().canvas.get_supported_filetypes())
    if Path(text).suffix[1:].lower() not in known:
        raise argparse.ArgumentTypeError(f'{text} does not end in one of .{", .".join(known)}')
    return Path(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True, metavar='FIGURE')

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            '--out', type=picture, default=Path(f'{name}.png'), help='picture, .png or .svg (default: %(default)s)'
        )
        return command

    for name, text in dict(figure2='losses of negatives', figure3='normalised gradients of negatives').items():
        command = add(name, f'{text} by probability, from the loss itself')
        command.add_argument('--gamma-neg', type=focusing, default=2.0, help='(default: %(default)s)')
        command.add_argument('--clip', type=margin, default=0.2, help='probability margin m (default: %(default)s)')

    for name, text in dict(figure4='mean probabilities', figure9='adaptive asymmetry').items():
        command = add(name, f'{text} along the training, from the logs of runs')
        command.add_argument('runs', nargs='+', metavar='[LABEL=]WORK_DIR', help='one run or more, side by side')
        command.add_argument(
            '--rows',
            nargs='+',
            default=TRAINING[name],
            metavar='SCALAR[,SCALAR]',
            help=f'scalars of each row of panels (default: {" ".join(TRAINING[name])})',
        )
        command.add_argument('--module', help='module path of the loss in models of several, as bbox_head.asl_cls')
        command.add_argument('--gap-target', type=float, help='draw this probability gap where gap is drawn')

    texts = dict(
        figure5='metric by the gamma of focal loss',
        figure6='metric by gamma_pos, a line for each gamma_neg',
        figure7='metric by clip, a line for each gamma',
        lines='metric by any column, a line for each value of another',
    )
    for name, text in texts.items():
        command = add(name, f'{text}, from the results of a sweep')
        preset = SWEEPS.get(name, {})
        command.add_argument('csv', type=Path, help='table of a sweep, one finished run a row')
        command.add_argument('--x', required=not preset, default=preset.get('x'), metavar='COLUMN')
        command.add_argument(
            '--y', required=not preset, default='multi-label/mAP' if preset else None, metavar='COLUMN'
        )
        command.add_argument('--lines', default=preset.get('lines'), metavar='COLUMN', help='a line for each value')

    command = add('figure8', 'metric of several backbones with several losses as bars, from the results of a sweep')
    command.add_argument('csv', type=Path, help='table of a sweep, one finished run a row')
    command.add_argument(
        '--groups', default='model.backbone.type', metavar='COLUMN', help='a group for each value (%(default)s)'
    )
    command.add_argument(
        '--bars', metavar='COLUMN', help='a bar for each value (default: CE, focal loss or ASL by gammas and clip)'
    )
    command.add_argument('--y', default='multi-label/mAP', metavar='COLUMN')

    for name in (*texts, 'figure8'):
        commands.choices[name].add_argument(
            '--where',
            nargs='+',
            default=[],
            metavar='COLUMN=VALUE',
            help='draw these rows only; several values of one column are alternatives',
        )
    return parser.parse_args()


def draw(args: argparse.Namespace) -> Figure:
    if args.command == 'figure2':
        return draw_losses(args.gamma_neg, args.clip)
    if args.command == 'figure3':
        print(table_1(args.gamma_neg, args.clip))
        return draw_gradients(args.gamma_neg, args.clip)
    if args.command in TRAINING:
        return draw_training(args.runs, args.rows, args.module, args.gap_target)
    sweep = Sweep(args.csv, args.where)
    if args.command == 'figure8':
        return draw_bars(sweep, args.groups, args.bars, args.y)
    preset = SWEEPS.get(args.command)
    xlabel = preset['xlabel'] if preset and args.x == preset['x'] else None
    return draw_lines(sweep, args.x, args.y, args.lines, xlabel)


def main() -> None:
    args = parse()
    try:
        figure = draw(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.out, dpi=150)
    except (InputError, TrainingLogError, OSError) as error:
        sys.exit(str(error))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
