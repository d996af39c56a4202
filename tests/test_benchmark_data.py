import importlib
from types import SimpleNamespace

import cv2
import pytest
from mmengine.config import Config

from tests.conftest import ROOT, run_tool
from tests.test_benchmark_metric import tables

TOOL = 'tools/analysis_tools/benchmark_data.py'


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis_tools')
    return importlib.import_module('benchmark_data')


def test_speed_by_workers_and_the_share_of_every_transform(tmp_path, pictures):
    pictures(tmp_path / 'images', [f'{i}.jpg' for i in range(5)])
    done = run_tool(
        TOOL, '--images', tmp_path / 'images', '--workers', 0, 2, '--batches', 2, '--rounds', 1,
        '--cfg-options', 'train_dataloader.batch_size=4',
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert '5 pictures of ' in done.stdout and 'batches of 4' in done.stdout
    found = tables(done.stdout)
    ((_, rows),) = found['workers']
    assert [row[0] for row in rows] == ['0', '2'] and all(float(row[1]) > 0 for row in rows)
    ((_, rows),) = found['transform']
    config = Config.fromfile(ROOT / 'configs/multi_label/tresnet-m_asl_8xb16-60e_coco2014-224.py')
    names = [transform['type'] for transform in config.train_dataloader.dataset.pipeline]
    assert [row[0] for row in rows[:-1]] == ['reading the file', *names]
    assert sum(float(row[1].removesuffix(' %')) for row in rows[:-1]) == pytest.approx(100, abs=3)


def test_drawn_pictures_are_of_the_usual_size_and_bytes(tool, tmp_path):
    tool.draw_pictures(tmp_path, 2)
    first, second = sorted(tmp_path.iterdir())
    assert cv2.imread(str(first)).shape == (480, 640, 3) and first.read_bytes() != second.read_bytes()
    assert 120e3 < first.stat().st_size < 220e3  # COCO 2017: 164 kB on average


def test_wrong_calls_say_what_is_wrong(tool, tmp_path, monkeypatch):
    voc = ROOT / 'configs/multi_label/tresnet-l_asl_8xb16-60e_voc2007-448.py'
    for arguments, message in (
        (['--images', tmp_path], f'{tmp_path} holds no .jpg, .jpeg or .png'),
        (['--config', voc], f'{voc}: the training set is a VOCMultiLabelDataset, not a CocoMultiLabelDataset'),
    ):
        monkeypatch.setattr('sys.argv', [TOOL, *map(str, arguments)])
        with pytest.raises(SystemExit) as error:
            tool.main()
        assert error.value.code == message


def test_workers_that_would_end_are_refused(tool, monkeypatch):
    monkeypatch.setattr('sys.argv', [TOOL, '--cfg-options', 'train_dataloader.num_workers=0'])
    monkeypatch.setattr('asl_mmdet.command_line.tempfile', SimpleNamespace(gettempdir=lambda: f'/{"x" * 90}'))
    monkeypatch.setattr(tool, 'draw_pictures', None)
    with pytest.raises(SystemExit, match='Set TMPDIR to a shorter one'):
        tool.main()
