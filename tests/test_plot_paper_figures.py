import csv
import json
import runpy
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from asl_mmdet.training_log import logged_lines
from tests.conftest import ROOT, run_tool

TOOL = 'tools/analysis_tools/plot_paper_figures.py'
LOSS = 'model.head.loss'


@pytest.fixture(scope='module')
def tool():
    return SimpleNamespace(**runpy.run_path(str(ROOT / TOOL)))


@pytest.fixture
def fail(tool, monkeypatch, capsys):
    """What the command line says when it ends with an error."""

    def call(*arguments):
        monkeypatch.setattr('sys.argv', [TOOL, *map(str, arguments)])
        with pytest.raises(SystemExit) as error:
            tool.main()
        assert error.value.code not in (0, None)
        return str(error.value.code) if isinstance(error.value.code, str) else capsys.readouterr().err

    return call


def curve(figure, label, x):
    """Value of a drawn line at x, between its points."""
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label().startswith(label)]
    return np.interp(x, *line.get_data())


def write_log(work_dir, time, lines, resume=False):
    path = work_dir / time / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name('config.py').write_text(f'load_from = None\nresume = {resume}\nseed = 0\n')
    path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines))


def write_sweep(path, columns, rows):
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def contrast(picture):
    return cv2.imread(str(picture)).std()


# ------------------------------------------------------------------------------------------ figures 2 and 3: the loss


def test_figure_2_draws_the_three_losses_of_its_caption(tool):
    figure = tool.draw_losses(2.0, 0.2)
    # -ln(0.4), -0.6^2 ln(0.4), -0.4^2 ln(0.6)
    assert curve(figure, 'cross-entropy', 0.6) == pytest.approx(0.916290732, abs=1e-5)
    assert curve(figure, 'focal loss', 0.6) == pytest.approx(0.36 * 0.916290732, abs=1e-5)
    assert curve(figure, 'probability-shifted', 0.6) == pytest.approx(0.16 * 0.510825624, abs=1e-5)
    assert curve(figure, 'probability-shifted', 0.19) == 0


def test_figure_3_draws_four_gradients_that_peak_at_1(tool):
    figure = tool.draw_gradients(2.0, 0.2)
    (cross_entropy,) = [line for line in figure.axes[0].get_lines() if line.get_label() == 'CE']
    assert cross_entropy.get_ydata() == pytest.approx(cross_entropy.get_xdata(), rel=1e-12)
    # CE+PS: p (1 - p) / (1.2 - p) is 0.4 at p = 0.6, and 1.2 + 0.2 - 2 sqrt(0.24) = 0.420204103 at its p*
    assert curve(figure, 'CE+PS', 0.6) == pytest.approx(0.4 / 0.420204103, abs=1e-5)
    # it jumps from 0 to 0.16 at m
    assert curve(figure, 'CE+PS', 0.1999999) == 0
    assert curve(figure, 'CE+PS', 0.2000001) == pytest.approx(0.16 / 0.420204103, abs=1e-4)
    # AF and ASL by their ratios at two points: p^3 - 2 p^2 (1 - p) ln(1 - p), and eq. 8 with p_m 0.2 and 0.4
    assert curve(figure, 'AF', 0.6) / curve(figure, 'AF', 0.5) == pytest.approx(0.479891731 / 0.298286795, abs=1e-4)
    asl_at = {0.6: 0.0384 * (1 / 0.6 + 2 * 0.510825624 / 0.4), 0.4: 0.0096 * (1 / 0.8 + 2 * 0.223143551 / 0.2)}
    assert curve(figure, 'ASL', 0.6) / curve(figure, 'ASL', 0.4) == pytest.approx(asl_at[0.6] / asl_at[0.4], rel=1e-3)
    for name in ('CE+PS', 'AF', 'ASL'):
        (line,) = [line for line in figure.axes[0].get_lines() if line.get_label().startswith(name)]
        assert line.get_ydata().max() == pytest.approx(1, abs=1e-5)


def test_figures_2_and_3_are_drawn_from_the_command_line(tmp_path):
    done = run_tool(TOOL, 'figure2', '--out', tmp_path / 'new/figure2.svg')
    assert done.returncode == 0, done.stdout
    assert '<svg' in (tmp_path / 'new/figure2.svg').read_text()
    done = run_tool(ROOT / TOOL, 'figure3', '--gamma-neg', 4, '--clip', 0.05, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert contrast(tmp_path / 'figure3.png') > 10
    table = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line[:1] in 'CA'}
    assert table['CE'] == ['-', '-', '-', '+', '-']
    assert table['AF'][:4] == ['-', '+', '-', '+'] and table['CE+PS'][:4] == ['+', '-', '+', '-']
    assert table['ASL'] == ['+', '+', '+', '+', '0.9001']


def test_settings_out_of_range_are_named(fail, tmp_path):
    assert '--clip: 1 does not lie in [0, 1)' in fail('figure2', '--clip', 1)
    assert '--gamma-neg: -1 is not a finite number of 0 or more' in fail('figure3', '--gamma-neg', -1)
    assert 'figure.txt does not end in one of' in fail('figure3', '--out', tmp_path / 'figure.txt')


# --------------------------------------------------------------------------------- figures 4 and 9: training logs


def test_runs_stand_side_by_side(tmp_path):
    for name, gap in (('ce', -0.25), ('asl', 0.0)):
        lines = [dict(loss=1.0, step=10 * i, p_t_pos=0.5 + gap, p_t_neg=0.5, gap=gap, gamma_neg=i) for i in range(1, 6)]
        write_log(tmp_path / name, '20260101_000000', [*lines, {'multi-label/mAP': 80.0, 'step': 1}])
    done = run_tool(ROOT / TOOL, 'figure4', f'cross-entropy={tmp_path / "ce"}', tmp_path / 'asl', cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert 'cross-entropy: p_t_pos is 0.25 at step 50' in done.stdout and 'asl: p_t_pos is 0.5' in done.stdout
    assert contrast(tmp_path / 'figure4.png') > 10
    done = run_tool(ROOT / TOOL, 'figure9', 'asl', '--gap-target', 0.1, '--out', 'adaptive.svg', cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert 'asl: gamma_neg is 5 at step 50' in done.stdout and (tmp_path / 'adaptive.svg').exists()


def test_panels_hold_the_logged_scalars(tool, tmp_path):
    write_log(tmp_path, '1', [dict(loss=1.0, step=s, gamma_neg=s / 10, gap=-s) for s in (1, 2)])
    figure = tool.draw_training([str(tmp_path)], ['gamma_neg', 'gap'], None, 0.1)
    gamma, gap = figure.axes
    assert gamma.get_lines()[0].get_xydata().tolist() == [[1, 0.1], [2, 0.2]]
    assert gap.get_lines()[0].get_xydata().tolist() == [[1, -1], [2, -2]]
    assert list(gap.get_lines()[1].get_ydata()) == [0.1, 0.1]


def test_a_resumed_run_continues_and_a_new_one_replaces(tool, tmp_path):
    def steps():
        return [(line['step'], line['loss']) for line in tool.training_lines(tmp_path)]

    write_log(tmp_path, '20260101_000000', [dict(loss=1, step=s) for s in (10, 20, 30)] + ['{"loss": 1, "st'])
    assert steps() == [(10, 1), (20, 1), (30, 1)]
    write_log(tmp_path, '20260102_000000', [dict(loss=2, step=s) for s in (30, 40)], resume=True)
    assert steps() == [(10, 1), (20, 1), (30, 2), (40, 2)]
    write_log(tmp_path, '20260103_000000', [{'multi-label/mAP': 80.0, 'step': 4}])  # of tools/test.py
    assert steps() == [(10, 1), (20, 1), (30, 2), (40, 2)]
    last = {'multi-label/mAP': 90.0, 'step': 4}
    write_log(tmp_path, '20260103_120000', [last], resume=True)  # was stopped in its last validation
    assert steps() == [(10, 1), (20, 1), (30, 2), (40, 2)] and logged_lines(tmp_path)[-1] == last
    write_log(tmp_path, '20260104_000000', [dict(loss=3, step=25)])
    assert steps() == [(25, 3)]
    assert tool.training_lines(tmp_path / '20260102_000000')[0] == dict(loss=2, step=30)


def test_several_losses_are_told_apart_by_their_module(tool, fail, tmp_path):
    line = {'loss': 1, 'step': 1, 'rpn_head.loss_cls/gap': -0.1, 'bbox_head.loss_cls/gap': 0.2}
    write_log(tmp_path / 'two', '1', [line])
    message = fail('figure9', tmp_path / 'two', '--rows', 'gap')
    assert "'gap' is logged for bbox_head.loss_cls, rpn_head.loss_cls; choose one with --module" in message
    figure = tool.draw_training([str(tmp_path / 'two')], ['gap'], 'rpn_head.loss_cls', None)
    assert figure.axes[0].get_lines()[0].get_ydata()[0] == -0.1
    write_log(tmp_path / 'one', '1', [{'loss': 1, 'step': 1, 'bbox_head.loss_cls/gap': 0.2}])
    figure = tool.draw_training([str(tmp_path / 'one')], ['gap'], None, None)
    assert figure.axes[0].get_lines()[0].get_ydata()[0] == 0.2


def test_errors_of_logs_name_the_place_and_the_way_out(fail, tmp_path):
    assert f'{tmp_path}/absent: no such folder; name the work dir' in fail('figure4', f'a={tmp_path}/absent')
    (tmp_path / 'empty').mkdir()
    assert 'no line with a training loss in the files' in fail('figure4', tmp_path / 'empty')
    write_log(tmp_path / 'plain', '1', [dict(loss=1, step=1)])
    message = fail('figure4', tmp_path / 'plain')
    assert "no training line has 'p_t_pos', only loss, step; train with ProbabilityGapHook" in message
    assert '--gap-target 0.1: no row draws gap' in fail('figure4', tmp_path / 'plain', '--gap-target', 0.1)
    write_log(tmp_path / 'broken', '1', ['{"loss": 1,', dict(loss=1, step=1)])
    assert 'scalars.json, line 1: \'{"loss": 1,\' is not a JSON object' in fail('figure4', tmp_path / 'broken')


# --------------------------------------------------------------------------------------- figures 5 to 8: sweep results


COLUMNS = ['name', f'{LOSS}.gamma_neg', f'{LOSS}.gamma_pos', f'{LOSS}.clip', 'seed', 'multi-label/mAP']


def test_figure_5_shows_mean_and_range_over_seeds(tool, tmp_path):
    rows = [[f'g{g}', g, g, 0, seed, 80 + g + [0, 1, 5][seed]] for g in (4, 0, 2) for seed in range(3)]
    path = write_sweep(tmp_path / 'sweep.csv', COLUMNS, rows)
    done = run_tool(TOOL, 'figure5', path, '--out', tmp_path / 'figure5.png')
    assert done.returncode == 0, done.stdout
    assert f'{LOSS}.gamma_neg=2: 84 (82 to 87, n = 3)' in done.stdout
    assert contrast(tmp_path / 'figure5.png') > 10
    axes = tool.draw_lines(tool.Sweep(path, []), f'{LOSS}.gamma_neg', COLUMNS[-1], None, None).axes[0]
    (container,) = axes.containers
    assert container[0].get_xydata().tolist() == [[0, 82], [2, 84], [4, 86]]
    assert container[2][0].get_segments()[1].tolist() == [[2, 82], [2, 87]]
    assert axes.get_ylabel() == 'mAP, mean and range of 3 seeds'


@pytest.mark.parametrize('figure, x, lines', [('figure6', 'gamma_pos', 'gamma_neg'), ('figure7', 'clip', 'gamma_neg')])
def test_figures_6_and_7_draw_a_line_for_each_gamma(tool, monkeypatch, capsys, tmp_path, figure, x, lines):
    cells = {
        'gamma_neg': lambda g, v: g,
        'gamma_pos': lambda g, v: v if x == 'gamma_pos' else g,
        'clip': lambda g, v: v,
    }
    rows = [
        [f'{g} {v}', *(cells[key](g, v) for key in ('gamma_neg', 'gamma_pos', 'clip')), 0, 80 + float(g) - v]
        for g in ('4', '2.0')
        for v in (0, 0.5)
    ]
    path = write_sweep(tmp_path / 'sweep.csv', COLUMNS, rows)
    monkeypatch.setattr('sys.argv', [TOOL, figure, str(path), '--out', str(tmp_path / 'figure.png')])
    tool.main()
    printed = capsys.readouterr().out
    assert f'{LOSS}.{lines}=2, {LOSS}.{x}=0.5: 81.5 (81.5 to 81.5, n = 1)' in printed
    axes = tool.draw_lines(tool.Sweep(path, []), f'{LOSS}.{x}', COLUMNS[-1], f'{LOSS}.{lines}', None).axes[0]
    drawn = {c.get_label(): c[0].get_xydata().tolist() for c in axes.containers}
    assert drawn == {'$\\gamma_-$ = 2': [[0, 82], [0.5, 81.5]], '$\\gamma_-$ = 4': [[0, 84], [0.5, 83.5]]}
    assert axes.get_ylabel() == 'mAP, one seed each'


def test_figure_8_names_losses_by_their_settings(tmp_path, tool):
    columns = ['model.backbone.type', *COLUMNS]
    losses = dict(ce=(0, 0, 0), fl=(2, 2, 0.0), asl=(4, 0, 0.05))
    rows = [
        [b, f'{b} {n}', *setting, seed, 80 + i + seed]
        for b in ('OFA595', 'TResNet')
        for i, (n, setting) in enumerate(losses.items())
        for seed in range(2)
    ]
    path = write_sweep(tmp_path / 'sweep.csv', columns, rows)
    done = run_tool(TOOL, 'figure8', path, '--out', tmp_path / 'figure8.png')
    assert done.returncode == 0, done.stdout
    for line in ('OFA595, CE: 80.5 (80 to 81', 'TResNet, focal loss: 81.5 (81', 'TResNet, ASL: 82.5 (82 to 83'):
        assert line in done.stdout
    sweep = tool.Sweep(path, ['model.backbone.type=TResNet'])
    axes = tool.draw_bars(sweep, 'model.backbone.type', 'name', COLUMNS[-1]).axes[0]
    heights = [bar.get_height() for c in axes.containers if hasattr(c, 'patches') for bar in c.patches]
    assert heights == [80.5, 81.5, 82.5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['TResNet ce', 'TResNet fl', 'TResNet asl']


def test_any_columns_can_be_drawn_and_rows_chosen(tool, tmp_path):
    rows = [[f'lr={lr}', lr, seed, seed + lr] for lr in (1, 2) for seed in range(4)]
    path = write_sweep(tmp_path / 'sweep.csv', ['name', 'lr', 'seed', 'coco/bbox_mAP'], rows)
    sweep = tool.Sweep(path, ['seed=1', 'seed=3.0', 'name=lr=2'])
    axes = tool.draw_lines(sweep, 'lr', 'coco/bbox_mAP', 'seed', None).axes[0]
    assert [c[0].get_xydata().tolist() for c in axes.containers] == [[[2, 3]], [[2, 5]]]


def test_errors_of_sweeps_name_the_place_and_the_way_out(fail, tmp_path):
    row = ['a', 2, 2, 0, 0, 80]

    def message(*rows, columns=COLUMNS, options=()):
        return fail('figure5', write_sweep(tmp_path / 'sweep.csv', columns, rows), *options)

    path = tmp_path / 'sweep.csv'
    assert f'{path}.x: no such file' in fail('figure5', f'{path}.x')
    assert f'{path}: no rows; wait' in message()
    assert f"{path}: no column 'multi-label/mAP'; choose another with --x, --y" in message(
        row[:-1], columns=COLUMNS[:-1]
    )
    assert f"{path}, line 2: multi-label/mAP is 'nan', not a finite number; repeat" in message([*row[:-1], 'nan'])
    assert f"line 3: {LOSS}.gamma_neg is '', not a" in message(row, ['b', '', *row[2:]])
    assert f'{path}, line 2: not 6 cells as in the header' in message(row[:-1])
    assert f'{path}, lines 2 and 3: both are name=a, seed=0; delete one' in message(row, row)
    text = message(row, ['b', 2, 0, 0.05, 0, 81])
    assert (
        f"{path}, lines 2 and 3: the settings 'a' and 'b' fall on the same place, 2.0; keep" in text
        and '--where' in text
    )
    assert f'{path}: no row has seed=7' in message(row, options=('--where', 'seed=7'))
    assert '--where seed: is not COLUMN=VALUE' in message(row, options=('--where', 'seed'))
    assert "no column 'sed'" in message(row, options=('--where', 'sed=7'))
    path.write_bytes(b'\xff\xfe\x00')
    assert f'{path}: not a CSV file' in fail('figure5', path)
    assert '--x' in fail('lines', path)


def test_an_error_ends_the_tool_in_one_line(tmp_path):
    done = run_tool(TOOL, 'figure7', tmp_path / 'absent.csv')
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert done.stdout.splitlines()[-1] == f'{tmp_path}/absent.csv: no such file; name the CSV of a sweep'
