"""tools/analysis_tools/audit_benchmark.py: what it hides, how it counts, and a run with a stand-in for cleanlab."""

import csv
import importlib
import re
import sys
from argparse import Namespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from tests.conftest import ROOT, run_tool

TOOL = 'tools/analysis_tools/audit_benchmark.py'
CONFIG = ROOT / 'configs/multi_label/tresnet-narrow_asl_shapes-64.py'
CLEANLAB = """
import numpy as np

def find_multilabel_issues_per_class(labels, pred_probs, n_jobs):
    has = np.array([[c in row for c in range(pred_probs.shape[1])] for row in labels])
    return ~has & (pred_probs > 0.5)
"""


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis_tools')
    return importlib.import_module('audit_benchmark')


def test_a_perfect_and_the_worst_ranking(tool):
    """Of 300 negatives, 60 are hidden positives."""
    targets = np.zeros((100, 4), dtype=np.int64)
    targets[:, 3] = 1
    hidden = np.zeros((100, 4), dtype=bool)
    hidden[:60, 0] = True
    # Positives do not take part, however probable.
    scores = np.where(targets == 1, 0.99, np.linspace(0.5, 0.4, 400).reshape(100, 4))
    best = tool.recovery(scores + 0.4 * hidden, targets, hidden)
    assert best == {
        'precision at 50': 1.0, 'precision at 200': 60 / 200, 'precision at 1,000': 60 / 300, 'average precision': 1.0
    }  # fmt: skip
    worst = tool.recovery(scores - 0.4 * hidden, targets, hidden)
    assert worst['precision at 50'] == 0 and worst['precision at 200'] == 0
    # The k-th hidden positive stands at place 240 + k.
    expected = np.mean([k / (240 + k) for k in range(1, 61)])
    assert worst['average precision'] == pytest.approx(expected, abs=1e-6)


def test_a_figure_that_seeds_do_not_define_is_no_number(tool):
    assert tool.spread([1.0, 2.0]) == '1.5 ± 0.71'
    assert tool.spread([1.0, np.nan, 2.0]) == '1.5 ± 0.71 (2 of 3 seeds)'
    assert tool.spread([np.nan]) == 'undefined'


def test_hidden_positives_are_those_of_the_file(tool, shapes, tmp_path):
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIG)
    cfg.train_dataloader.dataset.data_root = str(shapes)
    complete = tool.training_set(cfg)
    path = tmp_path / 'hidden.csv'
    hidden = tool.hide(complete, 0.25, np.random.default_rng(0), path)
    number = len(complete.data_list.lists['gt_label'].values)
    assert hidden.sum() == round(number / 4)

    cfg.train_dataloader.dataset.corrections = str(path)
    left = tool.training_set(cfg)
    names, classes = [name.decode() for name in complete.data_list.names], complete.metainfo['classes']
    with open(path, encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert {(names.index(row['image']), classes.index(row['class'])) for row in rows} == set(zip(*hidden.nonzero()))
    for i in range(len(complete)):
        gone = set(complete.get_data_info(i)['gt_label']) - set(left.get_data_info(i)['gt_label'])
        assert gone == set(hidden[i].nonzero()[0])


def test_networks_of_other_settings_are_refused_before_anything_is_trained(tool, tmp_path):
    init_default_scope('mmdet')

    def check(cfg=None, **settings):
        args = Namespace(
            **{**dict(config=str(CONFIG), work_dir=tmp_path / 'out', hide=0.1, epochs=5, folds=3), **settings}
        )
        tool.check_settings(cfg or Config.fromfile(CONFIG), args)

    for _ in range(2):
        check()
    for name, value in (('hide', 0.2), ('epochs', 4), ('folds', 2)):
        with pytest.raises(tool.SweepError, match=f'other settings: --{name} was .* and is {value} now.*--work-dir'):
            check(**{name: value})
    cfg = Config.fromfile(CONFIG)
    cfg.train_dataloader.batch_size = 7
    with pytest.raises(tool.SweepError, match='train_dataloader.batch_size was 16, and is 7 now'):
        check(cfg)
    check(cfg, work_dir=tmp_path / 'other')


def test_a_loss_has_a_p_star_by_default_or_is_refused(tool, tmp_path):
    init_default_scope('mmdet')
    args = Namespace(config='c.py', work_dir=tmp_path / 'out', hide=0.1, epochs=5, folds=3)
    cfg = Config.fromfile(CONFIG)
    cfg.model.head.loss = dict(type='AsymmetricLoss')
    tool.check_settings(cfg, args)
    for loss in (tool.CROSS_ENTROPY, dict(type='CrossEntropyLoss', use_sigmoid=True)):
        cfg.model.head.loss = loss
        with pytest.raises(ValueError, match=f'c.py: model.head.loss is {loss["type"]}.* no p\\*: give a config'):
            tool.check_settings(cfg, args)
    detector = Config.fromfile(ROOT / 'configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py')
    with pytest.raises(ValueError, match='c.py: FCOS is no ImageClassifier'):
        tool.check_settings(detector, args)


def write_cleanlab(folder):
    """A stand-in for the package."""
    package = folder / 'cleanlab/multilabel_classification'
    package.mkdir(parents=True)
    (package.parent / '__init__.py').touch()
    (package / '__init__.py').touch()
    (package / 'filter.py').write_text(CLEANLAB)


def test_confident_learning_puts_first_what_cleanlab_finds(tool, monkeypatch, tmp_path):
    write_cleanlab(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split('.')[0] == 'cleanlab']:
        monkeypatch.delitem(sys.modules, name)
    probabilities = np.array([[0.9, 0.1], [0.6, 0.7]])
    scores = tool.confident_learning(probabilities, np.array([[1, 0], [0, 1]]))
    np.testing.assert_allclose(scores, [[0.9, 0.1], [1.6, 0.7]])


def test_the_table_has_means_and_deviations_in_percent(tool):
    seeds = [
        {
            'ASL': {'precision at 50': share, 'average precision': 0.5},
            'beyond p*': dict(hidden=10, negatives=90, suspects=4, precision=share, recall=0.25),
        }
        for share in (0.4, 0.6)
    ]
    assert re.search(r'\| ASL \| 50 ± 14 +\| 50 ± 0 ', tool.report(seeds))
    assert '2 seeds. 10 ± 0 positives hidden among 90 ± 0 negatives' in tool.report(seeds)


@pytest.mark.slow
def test_a_run(shapes, tmp_path):
    write_cleanlab(tmp_path)
    command = [
        TOOL, CONFIG, '--work-dir', tmp_path / 'out', '--seeds', '3', '4', '--folds', '2', '--epochs', '1',
        '--cfg-options', f'train_dataloader.dataset.data_root={shapes}/', 'train_cfg.max_epochs=1',
        'param_scheduler.0.total_steps=1', 'train_dataloader.batch_size=8',
    ]  # fmt: skip
    env = dict(PYTHONPATH=str(tmp_path))
    done = run_tool(*command, env=env)
    assert done.returncode == 0, done.stdout
    text = (tmp_path / 'out/results.md').read_text()
    assert text in done.stdout and text.count('\n| ') == 8 and '2 seeds. ' in text
    # Networks are not trained again.
    again = run_tool(*command, env=env)
    assert again.returncode == 0 and text in again.stdout and 'Epoch(train)' not in again.stdout
