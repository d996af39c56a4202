import importlib
import sys

import pytest

from asl_mmdet.datasets import CocoMultiLabelDataset
from tests.conftest import ROOT, run_tool
from tests.test_benchmark_metric import tables

TOOL = 'tools/analysis_tools/benchmark_startup.py'


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis_tools')
    return importlib.import_module('benchmark_startup')


def test_the_plugin_does_not_import_the_compiler():
    code = (
        'import sys; from mmdet.utils import register_all_modules; register_all_modules(); '
        'assert "torch._dynamo" not in sys.modules; import asl_mmdet; assert "torch._dynamo" not in sys.modules'
    )
    done = run_tool(sys.executable, '-c', code)
    assert done.returncode == 0, done.stdout


def test_the_written_set_is_of_the_given_size(tool, tmp_path):
    tool.write_coco(tmp_path, 'val2014', 100)
    dataset = CocoMultiLabelDataset(
        ann_file='annotations/instances_val2014.json',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='val2014/'),
        expected_images=100,
    )
    assert len(dataset.metainfo['classes']) == 80
    assert (tmp_path / 'annotations/instances_val2014.json').read_text().count('"segmentation"') == 737


def test_files_are_parsed_in_one_case_only(tool, tmp_path, monkeypatch):
    import asl_mmdet.datasets.coco as coco

    parsed, read = [], coco.read_coco_json
    monkeypatch.setattr(coco, 'read_coco_json', lambda path: parsed.append(path) or read(path))
    tool.write_coco(tmp_path, 'val2014', 10)
    times = tool.data_set_times(tmp_path, 'val2014', 2)
    assert len(parsed) == 3 and times.keys() == {'parsed', 'cached'}


@pytest.mark.slow
def test_the_tables_and_the_figure(tmp_path):
    figure = tmp_path / 'growth.png'
    done = run_tool(TOOL, '--images', 6, 4, '--rounds', 1, '--growth', figure, '--growth-images', 3, 9)
    assert done.returncode == 0, done.stdout
    found = tables(done.stdout)
    ((_, rows),) = found['step']
    assert len(rows) == 5 and all(float(seconds) >= 0 for _, seconds in rows)
    assert rows[-1][0].startswith('tools/train.py') and float(rows[-1][1]) > float(rows[0][1])
    assert [row[0] for row in found['images'][0][1]] == ['3', '9', 'slope']
    assert figure.read_bytes().startswith(b'\x89PNG')
