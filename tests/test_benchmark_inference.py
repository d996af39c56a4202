import re

import pytest

from tests.conftest import run_tool


@pytest.mark.slow
def test_the_table_has_every_path_of_classifier_and_detector():
    configs = [
        f'configs/{name}_shapes.py' for name in ('multi_label/tresnet-narrow_asl', 'fcos/fcos_tresnet-narrow_fpn_asl')
    ]
    size = ('--size', 128, 160, '--rounds', 1, '--threads', 1)
    done = run_tool('tools/analysis_tools/benchmark_inference.py', *configs, *size)
    assert done.returncode == 0, done.stdout
    header, _, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in re.findall(r'^\|.*\|$', done.stdout, re.M)
    ]
    assert header == ['', 'tresnet-narrow_asl_shapes', 'fcos_tresnet-narrow_fpn_asl_shapes']
    assert [name for name, *_ in rows] == ['PyTorch', 'BN folded', 'BN folded, compiled (--fast)', 'onnxruntime']
    assert rows[0][1:] == ['1.00', '1.00'] and all(float(cell) > 0 for _, *cells in rows for cell in cells)


def test_a_config_that_is_not_there_is_named_before_others_are_measured():
    here = 'configs/multi_label/tresnet-narrow_asl_shapes.py'
    done = run_tool('tools/analysis_tools/benchmark_inference.py', here, 'configs/absent.py')
    assert done.returncode == 1 and done.stdout.strip().endswith('no config file configs/absent.py'), done.stdout
    assert 'Traceback' not in done.stdout
