import re

import pytest

from tests.conftest import run_tool


@pytest.mark.slow
def test_the_demo_reaches_its_goals_and_leaves_its_pictures(tmp_path):
    done = run_tool('tools/demo.py', '--work-dir', tmp_path, timeout=1800)
    assert done.returncode == 0, done.stdout
    assert float(re.search(r'bbox_mAP_50 +([\d.]+)', done.stdout)[1]) >= 0.70
    assert float(re.search(r'multi-label/mAP +([\d.]+)', done.stdout)[1]) >= 85
    for task in ('detector', 'classifier'):
        assert (tmp_path / task / 'losses.png').stat().st_size > 10_000
        assert len(list((tmp_path / task).glob('test/*/pictures/*.png'))) == 150
    for path in re.findall(r'^  (?:loss curve|pictures|checkpoint|AP by class) +(.*)$', done.stdout, re.MULTILINE):
        assert path.startswith(str(tmp_path)) and (tmp_path / path).exists()
    assert len(list(tmp_path.glob('classifier/test/*/vis_data/vis_image/multi-label_AP_*.png'))) == 1
