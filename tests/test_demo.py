import re

import pytest

from tests.conftest import run_tool


@pytest.mark.slow
def test_the_demo_reaches_its_goal_and_leaves_its_pictures(tmp_path):
    done = run_tool('tools/demo.py', '--work-dir', tmp_path, timeout=1800)
    assert done.returncode == 0, done.stdout
    assert float(re.search(r'bbox_mAP_50 +([\d.]+)', done.stdout)[1]) >= 0.70
    assert (tmp_path / 'losses.png').stat().st_size > 10_000
    assert len(list(tmp_path.glob('test/*/detections/*.png'))) == 150
    for path in (tmp_path / 'losses.png', tmp_path / 'test', tmp_path / 'epoch_20.pth'):
        assert str(path) in done.stdout
