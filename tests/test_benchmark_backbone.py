import re

from tests.conftest import run_tool

TOOL = 'tools/analysis_tools/benchmark_backbone.py'
SMALL = ('--sizes', 64, '--batch-size', 2, '--layers', 1, 1, 1, 1, '--width', 0.25, '--rounds', 1, '--threads', 1)


def test_the_table_has_every_network_and_a_peer_from_a_file(tmp_path):
    peer = tmp_path / 'peer.py'
    peer.write_text(
        'import torch\n'
        'class Stride32(torch.nn.Conv2d):\n'
        '    def __init__(self):\n'
        '        super().__init__(3, 8, 32, 32)\n'
    )
    done = run_tool(TOOL, *SMALL, '--device', 'cpu', '--peer', f'stride 32={peer}:Stride32')
    assert done.returncode == 0, done.stdout
    header, _, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in re.findall(r'^\|.*\|$', done.stdout, re.M)
    ]
    assert header == ['network', 'training, 64', 'inference, 64']
    speeds = {name: cells for name, *cells in rows}
    paths = ['', ', channels last', ', fast_inference', ', fast_inference, compiled']
    assert {f'TResNet{path}' for path in paths} | {'mmdet ResNet-50', 'stride 32'} <= speeds.keys()
    base = 'timm TResNet' if 'timm TResNet' in speeds else 'TResNet'
    assert speeds[base] == ['1.00', '1.00']
    for name, (training, inference) in speeds.items():
        assert float(inference) > 0 and (float(training) > 0 if training else 'fast_inference' in name)
    agreeing = re.findall(r'^(.*): features agree', done.stdout, re.M)
    assert set(agreeing) == {name for name in speeds if 'TResNet' in name}
