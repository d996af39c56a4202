import importlib
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from asl_mmdet.evaluation import MultiLabelMetric, official_mean_average_precision, rank_positives
from tests.conftest import ROOT, run_tool

TOOL = 'tools/analysis_tools/benchmark_metric.py'


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis_tools')
    return importlib.import_module('benchmark_metric')


def tables(output):
    """The rows of cells below each header, by the header's first cell."""
    found = {}
    for block in re.findall(r'(?:^\|.*\n)+', output, re.MULTILINE):
        header, _, *rows = [[cell.strip() for cell in line.strip('|\n').split('|')] for line in block.splitlines()]
        found.setdefault(header[0], []).append((header, rows))
    return found


def test_the_official_map_is_the_mean_precision_at_the_positives(tool):
    # Positives at ranks 1 and 3 of the first class, 2 of the second, which is ranked the other way round.
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    targets = np.array([[1, 0], [0, 0], [1, 1], [0, 0]])
    assert tool.official_map(scores, targets) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2, abs=1e-7)


def test_the_official_map_and_ours_are_the_same(tool):
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(700, 9, generator=generator, dtype=torch.float64)
    targets = (torch.rand(700, 9, generator=generator) < torch.linspace(0, 0.5, 9)).to(torch.int8)
    assert not targets[:, 0].any()
    official = tool.official_map(scores.numpy(), targets.numpy())
    assert official == pytest.approx(official_mean_average_precision(rank_positives(scores, targets)), abs=1e-12)
    expected = average_precision_score(targets[:, 1:].numpy(), scores[:, 1:].numpy())
    assert official * 9 / 8 == pytest.approx(expected, abs=1e-7)
    assert tool.table_8(scores, targets)['mAP'] == pytest.approx(expected, abs=1e-12)


def test_table_8_is_what_the_metric_reports(tool):
    batches = tool.Batches(300, 7)
    scores = batches.scores(0, 300)
    metric = batches.metric()
    metric.process(None, list(batches.samples(scores, 0)))
    reported = metric.evaluate(300)
    ours = tool.table_8(scores, batches.targets())
    assert len(ours) == 13
    assert reported == {f'multi-label/{name}': pytest.approx(100 * value) for name, value in ours.items()}


def test_a_peer_with_another_result_is_not_timed(tool, monkeypatch):
    monkeypatch.setattr(tool, 'official_map', lambda scores, targets: 0.5)
    with pytest.raises(SystemExit, match=r'90 x 4: the mAP is 0\.5.* by the official code, but .*table 8'):
        tool.compare([(90, 4)], 1)


def test_open_images_size_is_evaluated_on_listed_labels_only(tool, monkeypatch):
    seen = []
    compute = MultiLabelMetric.compute_metrics

    def watched(self, results):
        (_, batches), *_ = results
        seen.append((sum(map(len, batches)), all(batch.partial.all() for batch in batches)))
        return compute(self, results)

    monkeypatch.setattr(MultiLabelMetric, 'compute_metrics', watched)
    ((header, (row,)),) = tables(tool.partial_labels(300, 12) + '\n')['images x classes']
    assert seen == [(300, True)] and row[0] == '300 x 12' and len(header) == len(row) == 5


def test_the_tables_and_the_figure(tmp_path):
    done = run_tool(
        TOOL, '--sizes', '200x6', '130x3', '--rounds', 1, '--partial', '140x5',
        '--growth', tmp_path / 'growth.png', '--growth-images', 50, 100, '--growth-classes', 3, 9,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = tables(done.stdout)
    ((header, rows),) = found['computation']
    assert header == ['computation', '200 x 6', 'memory, MB', '130 x 3', 'memory, MB']
    cells = {name: values for name, *values in rows}
    assert cells['official mAP'][0] == cells['official mAP'][2] == '1.00'
    assert all(float(value) > 0 for value in cells['MultiLabelMetric.evaluate'][::2])
    assert {'scikit-learn mAP', 'mAP', 'table 8, of tensors', 'official mAP, ms'} < cells.keys()
    for name, sizes in dict(images=['50', '100'], classes=['3', '9']).items():
        ((header, rows),) = found[name]
        assert [row[0] for row in rows] == [*sizes, 'slope'] and len(header) == 3
    assert [row[0] for row in found['images x classes'][0][1]] == ['140 x 5']
    assert (tmp_path / 'growth.png').read_bytes().startswith(b'\x89PNG')


def test_wrong_calls_say_what_is_wrong(tool, monkeypatch, capsys):
    for arguments, message in (
        (['--growth-images', '50', '50'], '--growth-images 50 50: give two different sizes or more, from 1 on'),
        (['--growth-classes', '0', '9'], '--growth-classes 0 9: give two different sizes or more, from 1 on'),
        (['--sizes', '64'], '64: write ROWSxCLASSES, such as 128x80'),
        (['--partial', '0x3'], '0x3: write ROWSxCLASSES, such as 128x80'),
    ):
        monkeypatch.setattr('sys.argv', [TOOL, *arguments])
        with pytest.raises(SystemExit):
            tool.main()
        assert message in capsys.readouterr().err
