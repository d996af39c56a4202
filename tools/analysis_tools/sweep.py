"""Train every setting of a grid with every seed, go on where an earlier call was stopped, and tabulate what came out.

A grid is a small config file, as those of configs/_sweeps_:

    base = 'configs/…py'            what every run trains; from the grid's folder, the current one or the repository
    metric = 'multi-label/mAP'      what the table and the plot compare
    seeds = [0, 1, 2]
    common = {KEY: VALUE}           overrides of every run
    runs = {NAME: {KEY: VALUE}}     overrides of one setting each; or, for all combinations,
    grid = {KEY: [VALUE, …]}
    x, lines = KEY, KEY             the plot's axis, and a line for each value of this; without x, a row a setting
    paper = {COLUMN: {NAME: …}}     the paper's figures, to stand beside ours

KEY is dotted as in --cfg-options. LIST.+TYPE.KEY appends an element of this type to a list, such as
'custom_hooks.+EarlyStoppingHook.patience'.

The work dir holds results.csv, results.md and results.png, renewed after each run, and a folder NAME/seed<k> for each
run with its config.py, train.log, checkpoints and, once it is finished, result.json.
"""

import argparse
import copy
import csv
import difflib
import inspect
import io
import itertools
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import mmdet.registry
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from asl_mmdet.command_line import ConfigError, add_cfg_options, config_from_file, positive

try:
    import fcntl
except ImportError:
    sys.exit('sweep.py locks its runs and ends them as Linux and macOS do; on Windows run it in WSL')

ROOT = Path(__file__).resolve().parent.parent.parent
GRID_KEYS = ('base', 'metric', 'seeds', 'common', 'runs', 'grid', 'x', 'lines', 'paper')
# What ProbabilityGapHook and AdaptiveAsymmetryHook log; with several losses the path of each stands in front.
DYNAMICS = ('gamma_neg', 'clip', 'gap', 'p_t_pos', 'p_t_neg')


# The formatter behind Config.dump is not made for threads.
DUMPING = threading.Lock()


class SweepError(Exception):
    """What is wrong with a grid or a work dir, and the way out, in words for the user."""


@dataclass(frozen=True)
class Grid:
    """A grid file with ``common`` merged into the settings, whose overrides are flat: dotted keys, no dicts."""

    base: str
    metric: str
    seeds: tuple[int, ...]
    settings: dict[str, dict[str, Any]]
    x: str | None = None
    lines: str | None = None
    paper: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Run:
    """One setting with one seed. ``origin`` (JSON): base, overrides, and the whole config that they make."""

    name: str
    seed: int
    folder: Path
    config: Config
    origin: dict[str, Any]

    @property
    def title(self) -> str:
        return f'{self.name}, seed {self.seed}'

    @property
    def last_step(self) -> int:
        loop = self.config.train_cfg
        return loop['max_epochs'] if 'max_epochs' in loop else loop['max_iters']

    @property
    def checkpoints(self) -> list[tuple[str, int]]:
        """Unit and number of each; SIGTERM leaves one that counts iterations, also in a run by epochs."""
        names = (re.fullmatch(r'(epoch|iter)_(\d+)\.pth', path.name) for path in self.folder.glob('*.pth'))
        return [(name[1], int(name[2])) for name in names if name]

    @property
    def saved_step(self) -> int:
        """That of the last checkpoint of those by epochs or by iterations, whichever the run counts."""
        return max((step for unit, step in self.checkpoints if f'max_{unit}s' in self.config.train_cfg), default=0)


# ---- The grid


def load_grid(path: Path) -> Grid:
    """
    Raises:
        ConfigError: the file cannot be read.
        SweepError: what it says is not a grid.
    """
    content = {key: value for key, value in config_from_file(path).to_dict().items() if not key.startswith('_')}
    if unknown := sorted(set(content) - set(GRID_KEYS)):
        raise SweepError(f'{path}: {unknown[0]} is none of the keys of a grid: {", ".join(GRID_KEYS)}')
    if missing := [key for key in ('base', 'metric') if not isinstance(content.get(key), str)]:
        raise SweepError(f"{path}: {missing[0]} is missing or no text, as in {missing[0]} = '…'")
    if ('runs' in content) == ('grid' in content):
        raise SweepError(f'{path}: write either runs = {{NAME: {{KEY: VALUE}}}} or grid = {{KEY: [VALUE, …]}}')
    for key in ('common', 'runs', 'grid', 'paper'):
        if not isinstance(content.get(key, {}), dict):
            raise SweepError(f'{path}: {key} = {content[key]!r} is no dict')
    for key, values in content.get('grid', {}).items():
        if not isinstance(values, (list, tuple)) or not values:
            raise SweepError(f'{path}: {key} of grid is {values!r}; write a list of values')
    seeds = content.get('seeds', [0])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise SweepError(f'{path}: seeds = {seeds!r}; write a list of whole numbers')
    if 'lines' in content and 'x' not in content:
        raise SweepError(f'{path}: lines = {content["lines"]!r} wants an x beside it')
    for name, overrides in [*content.get('runs', {}).items(), *content.get('paper', {}).items()]:
        if not isinstance(overrides, dict):
            raise SweepError(f'{path}: {name!r} has {overrides!r} where a dict is wanted')
    runs = content['runs'] if 'runs' in content else combinations(content['grid'])
    settings = {name: {**flat(content.get('common', {})), **flat(overrides)} for name, overrides in runs.items()}
    if not settings:
        raise SweepError(f'{path}: there is no setting in it')
    for name, overrides in settings.items():
        for key, value in overrides.items():
            if re.search(r'\.\+\w+$', key) and value != {}:
                raise SweepError(f'{path}: {key} is {value!r} in {name!r}; write a dict of its arguments')
        if not name or name.startswith('.') or '/' in name:
            raise SweepError(f'{path}: the setting {name!r} names a folder, without / and without a leading dot')
    for column, figures in content.get('paper', {}).items():
        if unknown := sorted(set(figures) - set(settings)):
            raise SweepError(f'{path}: {unknown[0]!r} of paper[{column!r}] is none of: {", ".join(settings)}')
    return Grid(
        base=content['base'],
        metric=content['metric'],
        seeds=tuple(seeds),
        settings=settings,
        x=content.get('x'),
        lines=content.get('lines'),
        paper=content.get('paper', {}),
    )


def combinations(grid: dict[str, Sequence]) -> dict[str, dict[str, Any]]:
    """Every combination of the values, named by the last part of its keys, as in 'gamma_neg=4.0,clip=0.05'."""
    settings = {}
    for values in itertools.product(*grid.values()):
        overrides = dict(zip(grid, values))
        settings[','.join(f'{key.rpartition(".")[2]}={value}' for key, value in overrides.items())] = overrides
    return settings


def flat(overrides: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Dotted keys only; a dict that replaces (``_delete_``) or is empty stays as it is."""
    result = {}
    for key, value in overrides.items():
        if isinstance(value, dict) and value and not value.get('_delete_'):
            result.update(flat(value, f'{prefix}{key}.'))
        else:
            result[f'{prefix}{key}'] = value
    return result


def base_path(grid_path: Path, base: str) -> Path:
    """
    Raises:
        SweepError: the file is neither beside the grid, nor in the current folder, nor in the repository.
    """
    folders = (grid_path.parent, Path.cwd(), ROOT)
    for folder in folders:
        if (folder / base).is_file():
            return (folder / base).resolve()
    places = ', '.join(map(str, dict.fromkeys(folders)))
    raise SweepError(f'{grid_path}: no base {base} in any of {places}; mend it, or give one with --config')


def fault_of_key(config: Config, key: str) -> str | None:
    """What is wrong with a key that overrides ``config``: neither there nor an argument of what would be built."""
    if key == 'randomness.seed':
        return f'{key} is what the seeds of the sweep set; use seeds, or --seeds'
    node = config.to_dict()
    walked: list[str] = []
    for part in key.split('.'):
        place = '.'.join(walked) or 'the config'
        if isinstance(node, (list, tuple)) and part.startswith('+'):
            kind = part[1:]
            if kind in (present := [element.get('type') for element in node if isinstance(element, dict)]):
                return f'{key}: {place} has a {kind} already; override it as {place}.{present.index(kind)}.KEY'
            if registered(kind) is None:
                return f'{key}: no type {kind!r} is registered'
            node = dict(type=kind)
        elif isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                return f'{key}: {place} is a list of {len(node)}: give a number from 0, or +TYPE to append to it'
            node = node[int(part)]
        elif not isinstance(node, dict):
            return f'{key}: {place} is {node!r}, which has no {part!r}'
        elif part in node:
            node = node[part]
        else:
            arguments = argument_names(registered(node['type']) if 'type' in node else None if walked else Runner)
            if part in arguments:
                return None
            close = difflib.get_close_matches(part, {*node, *arguments}, n=1)
            hint = f'; did you mean {close[0]!r}?' if close else f'; it has {", ".join(sorted(map(str, node)))}'
            return f'{key}: {place} has no {part!r}{hint}'
        walked.append(part)
    return None


def registered(kind: str) -> Any:
    for registry in vars(mmdet.registry).values():
        if isinstance(registry, Registry) and (found := registry.get(kind)) is not None:
            return found
    return None


def argument_names(built: Any) -> set[str]:
    """Names a class or function can be called with; ``**kwargs`` are taken to be those of the parent class."""
    names: set[str] = set()
    for step in (
        [cls.__init__ for cls in built.__mro__ if '__init__' in vars(cls)] if inspect.isclass(built) else [built]
    ):
        if step is None:
            break
        parameters = inspect.signature(step).parameters.values()
        names |= {parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD} - {'self'}
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def run_config(base: Config, overrides: dict[str, Any], seed: int) -> Config:
    """``base`` with flat overrides and appended elements, and its seed."""
    config = copy.deepcopy(base)
    elements: dict[tuple[str, str], Config] = {}
    plain = {'randomness.seed': seed}
    for key, value in copy.deepcopy(overrides).items():
        place, plus, element = key.partition('.+')
        if not plus:
            plain[key] = value
            continue
        kind, _, argument = element.partition('.')
        appended = elements.setdefault((place, kind), Config(dict(type=kind)))
        if argument:
            appended.merge_from_dict({argument: value})
    config.merge_from_dict(plain)
    for (place, _), element in elements.items():
        config.merge_from_dict({place: [*(value_of(config, place) or []), element.to_dict()]})
    return config


def value_of(config: Config, key: str) -> Any:
    """None where there is no such key."""
    node: Any = config
    try:
        for part in key.split('.'):
            node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
    except (KeyError, IndexError, ValueError, TypeError):
        return None
    return node


def swept_values(grid: Grid, base: Config) -> dict[str, dict[str, Any]]:
    """For each setting, the values of the keys that differ between settings; the base's where one is not overridden.

    A part that is replaced as a whole has its type beside it: figure 8 groups by model.backbone.type.
    """
    keys = dict.fromkeys(key for overrides in grid.settings.values() for key in overrides)
    values = {
        name: {key: overrides[key] if key in overrides else value_of(base, key) for key in keys}
        for name, overrides in grid.settings.items()
    }
    for name, row in values.items():
        types = {f'{key}.type': part['type'] for key, part in row.items() if isinstance(part, dict) and 'type' in part}
        row.update(types | grid.settings[name])
    first = next(iter(values.values()))
    constant = {key for key in first if all(row.get(key) == first[key] for row in values.values())}
    shown = {grid.x, grid.lines}
    return {
        name: {key: value for key, value in row.items() if key not in constant or key in shown}
        for name, row in values.items()
    }


# ---- One run


def write_whole(path: Path, content: str | bytes) -> None:
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def check_origin(path: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON file, or None where there is none.

    Raises:
        SweepError: it tells of a run that was made with other settings.
    """
    content = read_json(path)
    if content is None:
        return None
    # What was changed in the base, or in a file that it inherits from, shows in the whole config alone.
    there, now = ({'base': part['base'], **part.get('config', {}), **part['overrides']} for part in (content, origin))
    for key in dict.fromkeys([*there, *now]):
        first, second = (part.get(key, 'not set') for part in (there, now))
        if first != second:
            raise SweepError(
                f'{path.parent} was made with other settings: {key} was {first!r}, and is {second!r} now; delete that '
                'folder to train it anew, or give another --work-dir'
            )
    return content


def read_scalars(folder: Path) -> list[dict[str, Any]]:
    """The lines that a run logged, over all its starts; what a kill or a crash spoilt is left out."""
    lines = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines


def final_values(scalars: Iterable[dict[str, Any]]) -> tuple[int, dict[str, float]]:
    """Step of the last validation (0: there was none); its metrics, and the last of ``DYNAMICS`` in training."""
    step, metrics, dynamics = 0, {}, {}
    for line in scalars:
        if 'loss' in line:
            dynamics.update({key: value for key, value in line.items() if is_dynamic(key)})
        else:
            step = line['step']
            metrics = {key: value for key, value in line.items() if key not in ('step', 'time', 'data_time')}
    return step, {**metrics, **dynamics}


def is_dynamic(column: str) -> bool:
    return column.rpartition('/')[2] in DYNAMICS


def train(
    run: Run, processes: int, environment: dict[str, str], stop: threading.Event, say: Callable[[str], None]
) -> str | None:
    """Bring a run to its end, from wherever it is.

    The training process holds the lock on the run's folder together with this one, so that a sweep that is killed
    alone does not let the next start a second process on the same folder.

    Returns:
        What went wrong; None when the run is finished.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    log_path = run.folder / 'train.log'
    with open(run.folder / 'lock', 'a+') as lock:
        if not hold(lock, stop, lambda pid: say(f'{run.title}: process {pid} trains it already; waiting for its end')):
            return 'stopped'
        try:
            if check_origin(run.folder / 'result.json', run.origin):
                return None
            check_origin(run.folder / 'run.json', run.origin)
        except SweepError as error:
            return str(error)
        step, values = final_values(read_scalars(run.folder))
        if step != run.last_step:
            write_whole(run.folder / 'run.json', json.dumps(run.origin, indent=2))
            config = run.folder / 'config.py'
            with DUMPING:
                run.config.dump(config)
            resume = ['--resume'] if run.checkpoints else []
            say(f'{run.title}: {"goes on" if resume else "starts"}')
            command = [sys.executable, str(ROOT / 'tools/train.py'), str(config)]
            if processes > 1:
                command = [str(ROOT / 'tools/dist_train.sh'), str(config), str(processes)]
            command += ['--work-dir', str(run.folder), *resume]
            status = execute(command, log_path, {'PYTHON': sys.executable, **environment}, lock, stop)
            if status is None:
                return 'stopped'
            if status:
                last_line = next(reversed(log_path.read_text(errors='replace').split('\n')[:-1]), '')
                return f'{last_line.strip()}\n  exit status {status}, log: {log_path}'
            step, values = final_values(read_scalars(run.folder))
            if step == 0:
                return f'it ended without a validation; log: {log_path}'
        write_whole(run.folder / 'result.json', json.dumps({**run.origin, 'values': values}, indent=2))
        return None


def hold(lock: TextIO, stop: threading.Event, say: Callable[[str], None]) -> bool:
    """Wait for the lock; False when stopped before. ``say`` gets, once, the process id that holds it."""
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            return True
        except BlockingIOError:
            if not told:
                lock.seek(0)
                say(lock.read() or 'of another sweep')
                told = True
        if stop.wait(0.5):
            return False


def execute(
    command: list[str], log_path: Path, environment: dict[str, str], lock: TextIO, stop: threading.Event
) -> int | None:
    """Exit status, or None when stopped: then nothing of the process and its children is left."""
    with open(log_path, 'ab') as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    lock.write(str(process.pid))
    lock.flush()
    while process.poll() is None:
        if stop.wait(0.2):
            # torch's launcher has its processes in groups of their own, and takes up to 30 seconds to end them.
            for number, seconds in ((signal.SIGTERM, 40), (signal.SIGKILL, 5)):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
            return None
    return process.returncode


# ---- All runs


def environments(jobs: int, processes: int, devices: Sequence[str], cores: int, now: dict[str, str]) -> list[dict]:
    """What each of the runs side by side adds to the environment: its share of cores, its GPUs, its port.

    Args:
        devices: as in CUDA_VISIBLE_DEVICES; jobs beyond them share.
        now: the environment, whose OMP_NUM_THREADS and PORT are respected.

    Raises:
        SweepError: a run wants more GPUs than there are.
    """
    if devices and processes > len(devices):
        raise SweepError(f'--gpus {processes}: there are {len(devices)} here')
    added = []
    for job in range(jobs):
        environment = dict(OMP_NUM_THREADS=now.get('OMP_NUM_THREADS') or str(max(cores // (jobs * processes), 1)))
        if devices:
            first = job % (len(devices) // processes) * processes
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(devices[first : first + processes])
        if processes > 1:
            environment['PORT'] = str(int(now.get('PORT', 29500)) + job)
        added.append(environment)
    return added


def visible_devices() -> list[str]:
    count = torch.cuda.device_count()
    listed = os.environ.get('CUDA_VISIBLE_DEVICES')
    return listed.split(',')[:count] if listed else [str(i) for i in range(count)]


def train_all(
    runs: Sequence[Run], places: Sequence[dict[str, str]], processes: int, after_each: Callable[[], None]
) -> list[str]:
    """Train as many runs side by side as there are places; returns the faults. ``after_each`` follows each run."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    progress = Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn('ETA'),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=float('inf'),
    )
    free: queue.Queue = queue.Queue()
    for place in places:
        free.put(place)
    stop = threading.Event()

    def work(run: Run) -> str | None:
        place = free.get()
        try:
            return 'stopped' if stop.is_set() else train(run, processes, place, stop, console.print)
        except OSError as error:
            return str(error)
        finally:
            free.put(place)

    faults = []
    ended: set[Path] = set()
    with progress, ThreadPoolExecutor(len(places)) as pool:
        bar = progress.add_task(
            f'0 of {len(runs)} runs',
            total=sum(run.last_step for run in runs),
            completed=sum(run.saved_step for run in runs),
        )
        futures: dict[Future, Run] = {pool.submit(work, run): run for run in runs}
        waiting = set(futures)
        start = time.monotonic()
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    run = futures[future]
                    ended.add(run.folder)
                    if fault := future.result():
                        faults.append(f'{run.title}: {fault}')
                        console.print(f'{run.title}: failed: {fault}')
                    else:
                        left = progress.tasks[0].time_remaining
                        about = f', about {left / 60:.0f} min left' if left and waiting else ''
                        minutes = (time.monotonic() - start) / 60
                        console.print(
                            f'{run.title}: finished; {len(ended)} of {len(runs)} after {minutes:.1f} min{about}'
                        )
                    after_each()
                progress.update(
                    bar,
                    description=f'{len(ended)} of {len(runs)} runs',
                    completed=sum(run.last_step if run.folder in ended else run.saved_step for run in runs),
                )
        except BaseException:
            stop.set()
            raise
    return faults


# ---- What came out


def collect(runs: Iterable[Run], swept: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a finished run: name, swept keys, seed, metrics of the final validation, ``DYNAMICS``."""
    rows = []
    for run in runs:
        if result := read_json(run.folder / 'result.json'):
            rows.append({'name': run.name, **swept[run.name], 'seed': run.seed, **result['values']})
    return rows


def columns_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Those of any row, in their order, ``DYNAMICS`` behind."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    dynamics = sorted(filter(is_dynamic, columns), key=lambda key: DYNAMICS.index(key.rpartition('/')[2]))
    return [key for key in columns if not is_dynamic(key)] + dynamics


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def mean_and_spread(rows: Sequence[dict[str, Any]], name: str, column: str) -> tuple[float, float] | None:
    """Mean and sample standard deviation (NaN of one value) over the seeds of a setting; None without any."""
    values = [row[column] for row in rows if row['name'] == name and column in row]
    if not values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def as_markdown(rows: Sequence[dict[str, Any]], grid: Grid, title: str, made_from: str) -> str:
    """One row a setting; the paper's figures in columns that say so."""
    finals = [key for key in columns_of(rows) if key.rpartition('/')[2] in ('gamma_neg', 'gap')]
    columns = list(dict.fromkeys([grid.metric, *finals, *grid.paper]))
    header = ['setting', 'seeds']
    for column in columns:
        header.append(column if column == grid.metric else f'final {column}')
        if column in grid.paper:
            header.append(f'{header[-1]} (paper)')
    lines = ['| ' + ' | '.join(header) + ' |', '|---|' + '---:|' * (len(header) - 1)]
    for name in grid.settings:
        cells = [name, str(sum(row['name'] == name for row in rows))]
        for column in columns:
            digits = 2 if column == grid.metric else 3
            found = mean_and_spread(rows, name, column)
            cell = '' if found is None else f'{found[0]:.{digits}f}'
            cells.append(cell if found is None or math.isnan(found[1]) else f'{cell} ± {found[1]:.{digits}f}')
            if column in grid.paper:
                cells.append(str(grid.paper[column].get(name, '')))
        lines.append('| ' + ' | '.join(cells) + ' |')
    notes = f'{made_from}. Mean ± sample standard deviation over the seeds.'
    if grid.paper:
        notes += " Columns marked (paper) hold the paper's figures, which were not measured here."
    return '\n'.join([f'# {title}', '', notes, '', *lines, ''])


def plot(rows: Sequence[dict[str, Any]], grid: Grid, swept: dict[str, dict[str, Any]], title: str) -> bytes:
    """A PNG: mean with spread over x, a line for each value of ``lines``, or a row for each setting."""
    figure = Figure(figsize=(7, 4.5), dpi=120, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    found = {}
    for name in grid.settings:
        if both := mean_and_spread(rows, name, grid.metric):
            found[name] = (both[0], 0.0 if math.isnan(both[1]) else both[1])
    if grid.x is None:
        axes.errorbar(
            [mean for mean, _ in found.values()],
            list(found),
            fmt='o',
            capsize=3,
            xerr=[spread for _, spread in found.values()],
        )
        axes.invert_yaxis()
        axes.set(xlabel=grid.metric, title=title)
    else:
        lines = dict.fromkeys(swept[name][grid.lines] if grid.lines else None for name in found)
        for value in lines:
            members = [name for name in found if not grid.lines or swept[name][grid.lines] == value]
            members.sort(key=lambda name: swept[name][grid.x])
            axes.errorbar(
                [swept[name][grid.x] for name in members],
                [found[name][0] for name in members],
                yerr=[found[name][1] for name in members],
                fmt='o-',
                capsize=3,
                label=f'{grid.lines.rpartition(".")[2]} {value}' if grid.lines else None,
            )
        axes.set(xlabel=grid.x.rpartition('.')[2], ylabel=grid.metric, title=title)
        if grid.lines and found:
            axes.legend()
    axes.grid(alpha=0.3)
    content = io.BytesIO()
    canvas.print_png(content)
    return content.getvalue()


# ---- The command


def plan(
    args: argparse.Namespace, grid: Grid, swept: dict[str, dict], base_file: Path, base: Config, seeds: Iterable[int]
) -> list[Run]:
    """Every run of the grid.

    Raises:
        SweepError: a key is wrong, or a folder holds a run with other settings.
    """
    faults = {}
    for name, overrides in [('--cfg-options', flat(args.cfg_options)), *grid.settings.items()]:
        for key in overrides:
            if key not in faults and (fault := fault_of_key(base, key)):
                faults[key] = f'{name}: {fault}'
            elif name == '--cfg-options' and any(key in settings for settings in grid.settings.values()):
                faults[key] = f'{name}: {key} is what {args.grid} sets; change it there'
    for key in filter(None, (grid.x, grid.lines)):
        for name, values in swept.items():
            if key not in values:
                faults[key] = f'{name}: {key}, an axis of the plot, is none of the keys it sets: {", ".join(values)}'
            elif not isinstance(values[key], (int, float, str)):
                faults[key] = f'{name}: {key}, an axis of the plot, is {values[key]!r}; a number or a text is wanted'
    if faults:
        raise SweepError(f'{args.grid} on {base_file}, nothing was run:\n  ' + '\n  '.join(faults.values()))
    base_name = str(base_file.relative_to(ROOT) if base_file.is_relative_to(ROOT) else base_file)
    runs = []
    for name, overrides in grid.settings.items():
        overrides = {**overrides, **flat(args.cfg_options)}
        for seed in seeds:
            folder = args.work_dir / name / f'seed{seed}'
            config = run_config(base, overrides, seed)
            made_with = dict(base=base_name, overrides=overrides, config=flat(config.to_dict()))
            origin = json.loads(json.dumps(made_with, default=repr))
            runs.append(Run(name, seed, folder, config, origin))
            for file in ('result.json', 'run.json'):
                check_origin(folder / file, origin)
    return runs


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('grid', type=Path, metavar='GRID', help='grid file, such as those of configs/_sweeps_')
    parser.add_argument('--work-dir', type=Path, help='folder of the sweep (default: work_dirs/<name of the grid>)')
    parser.add_argument('--seeds', type=int, nargs='+', help='instead of those of the grid')
    parser.add_argument('--config', type=Path, metavar='BASE', help="instead of the grid's base")
    parser.add_argument('--jobs', type=positive, default=1, help='runs side by side')
    parser.add_argument(
        '--gpus',
        type=positive,
        default=1,
        help='processes of each run, by tools/dist_train.sh: 8 for the recipes of 8xb16',
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='train these settings alone')
    parser.add_argument('--dry-run', action='store_true', help='check the grid and show what would be run')
    add_cfg_options(parser)
    args = parser.parse_args(arguments)
    args.work_dir = (args.work_dir or Path('work_dirs') / args.grid.stem).resolve()
    return args


def sweep(args: argparse.Namespace) -> int:
    grid = load_grid(args.grid)
    if unknown := sorted(set(args.only or ()) - set(grid.settings)):
        raise SweepError(f'--only {unknown[0]}: the settings of {args.grid} are {", ".join(grid.settings)}')
    base_file = args.config.resolve() if args.config else base_path(args.grid, grid.base)
    base = config_from_file(base_file)
    swept = swept_values(grid, base)
    seeds = list(dict.fromkeys(args.seeds or grid.seeds))
    # Seeds of earlier calls stay in the table.
    earlier = {int(path.name[4:]) for path in args.work_dir.glob('*/seed*') if path.name[4:].isdigit()}
    runs = plan(args, grid, swept, base_file, base, sorted({*seeds, *earlier}))
    chosen = [run for run in runs if run.seed in seeds and run.name in (args.only or grid.settings)]
    unfinished = [run for run in chosen if not (run.folder / 'result.json').is_file()]
    print(
        f'{len(chosen)} runs of {args.grid}, {len(chosen) - len(unfinished)} of them finished before; {args.work_dir}'
    )
    if args.dry_run:
        for run in chosen:
            state = 'to run' if run in unfinished else 'finished'
            print(
                f'{run.title}: {state}',
                *(f'  {key}={value!r}' for key, value in run.origin['overrides'].items()),
                sep='\n',
            )
        return 0

    made_from = f'`{runs[0].origin["base"]}`'
    if args.cfg_options:
        made_from += ' with ' + ', '.join(f'`{key}={value}`' for key, value in args.cfg_options.items())

    def report() -> None:
        rows = collect(runs, swept)
        if not any(grid.metric in row for row in rows):
            return
        title = args.grid.stem
        write_whole(args.work_dir / 'results.csv', as_csv(rows))
        write_whole(args.work_dir / 'results.md', as_markdown(rows, grid, title, made_from))
        write_whole(args.work_dir / 'results.png', plot(rows, grid, swept, title))

    faults = []
    if unfinished:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        jobs = min(args.jobs, len(unfinished))
        places = environments(jobs, args.gpus, visible_devices(), cores, dict(os.environ))
        faults = train_all(unfinished, places, args.gpus, report)
    report()
    rows = collect(runs, swept)
    if rows and not any(grid.metric in row for row in rows):
        raise SweepError(
            f'{args.grid}: metric {grid.metric!r} is none of those of the validation: '
            f'{", ".join(key for key in columns_of(rows) if key not in swept[rows[0]["name"]])}; mend it there and '
            'start the same command again, which keeps what is finished'
        )
    if rows:
        print('\n' + (args.work_dir / 'results.md').read_text() + f'\n{args.work_dir}/results.csv, .md, .png')
    if faults:
        print(f'\n{len(faults)} of {len(chosen)} runs failed; the same command tries them again:', *faults, sep='\n')
    return 1 if faults else 0


def interrupt(*_) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        return sweep(args)
    except (SweepError, ConfigError, OSError) as error:
        print(f'sweep: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('sweep: interrupted; the same command goes on from here', file=sys.stderr)
        return 130


if __name__ == '__main__':
    # A batch system that runs out of time, a closed terminal: ended like Ctrl-C.
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    sys.exit(main())
