import importlib
import re
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, run_tool

TOOL = 'tools/analysis_tools/benchmark_loss.py'
INSTALLED = {'timm ASL', 'mmpretrain ASL'}


def test_the_table_has_every_loss_and_a_peer_from_a_file(tmp_path):
    peer = tmp_path / 'peer.py'
    peer.write_text(
        'import torch\n'
        'class Twice(torch.nn.Module):\n'
        '    def forward(self, logits, labels):\n'
        '        loss = torch.nn.functional.binary_cross_entropy_with_logits\n'
        '        return loss(logits, labels) + loss(logits, labels)\n'
    )
    done = run_tool(TOOL, '--sizes', '64x10', '7x3', '--rounds', 3, '--threads', 1, '--peer', f'twice={peer}:Twice')
    assert done.returncode == 0, done.stdout
    rows = {
        cells[0]: cells[1:] for cells in re.findall(r'^\| (.+?) \| ([\d.]+) \| ([\d.]+) \|', done.stdout, re.MULTILINE)
    }
    assert rows['BCE'] == ('1.00', '1.00') and '64 x 10, float32' in done.stdout
    names = {
        f'ASL, {name}{kind}'
        for name in ('fused', 'single operations')
        for kind in ('', ', indices', ', watched', ', adaptive')
    }
    assert rows.keys() - INSTALLED == names | {
        'BCE',
        'BCE, ms',
        'mmdet FocalLoss',
        'mmdet FocalLoss, indices',
        'twice',
    }
    assert all(float(ratio) > 0 for ratio in rows['twice'])


def test_installed_peers_take_part_without_what_their_packages_import(tmp_path):
    losses = {
        'timm/loss/asymmetric_loss.py': 'class AsymmetricLossMultiLabel(Twice):\n    pass\n',
        'mmpretrain/models/losses/asymmetric_loss.py': 'class AsymmetricLoss(Twice):\n    pass\n',
    }
    for name, text in losses.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        for package in list(path.parents)[: name.count('/')]:
            (package / '__init__.py').write_text('import a_torchvision_that_does_not_fit\n')
        path.write_text(f'from {name.split("/")[0]}.layers import Twice\nfrom .weights import weigh\n{text}')
        (path.parent / 'weights.py').write_text('weigh = None\n')
        (tmp_path / name.split('/')[0] / 'layers.py').write_text(
            'import torch\n'
            'class Twice(torch.nn.Module):\n'
            '    def forward(self, logits, labels):\n'
            '        return 2 * torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)\n'
        )
    done = run_tool(TOOL, '--sizes', '7x3', '--rounds', 3, '--threads', 1, env=dict(PYTHONPATH=str(tmp_path)))
    assert done.returncode == 0, done.stdout
    assert all(re.search(rf'^\| {name} \| [\d.]+ ', done.stdout, re.MULTILINE) for name in INSTALLED), done.stdout


def test_a_gpu_is_compared_with_reading_and_writing_once(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis_tools')
    tool = importlib.import_module('benchmark_loss')
    logits, labels, indices = tool.make_batch(100, 8, 'float16', 'cpu')
    assert tool.least_bytes('BCE', logits, labels, indices) == 2 * 1600 + 3200
    assert tool.least_bytes('ASL, fused, indices', logits, labels, indices) == 2 * 1600 + 800
    # At 4 GB/s, what has to be read and written takes 1.6 and 1 microseconds.
    monkeypatch.setattr(tool, 'time_of_kernels', lambda function, logits: 3.2e-6)
    monkeypatch.setattr(tool, 'peak_memory', lambda function, logits: function())
    functions = {'BCE': lambda: 3200, 'ASL, fused, indices': lambda: 1600}
    cells = tool.on_a_gpu(dict.fromkeys(functions, 1e-4), functions, (logits, labels, indices), 4e9)
    assert cells == {'BCE': ('100, 3 (2)', '2.00'), 'ASL, fused, indices': ('100, 3 (3.2)', '1.00')}

    monkeypatch.setattr(tool, 'copy_bandwidth', lambda device: 4e12)
    monkeypatch.setattr(tool, 'median_times', lambda functions, logits, rounds: dict.fromkeys(functions, 1e-4))
    monkeypatch.setattr(tool, 'contestants', lambda logits, *_: {'BCE': lambda: logits.sum()})
    monkeypatch.setattr(tool, 'make_batch', lambda *_: (logits, labels, indices))
    monkeypatch.setattr(tool, 'peak_memory', lambda function, logits: 1600)
    tool.compare(SimpleNamespace(device='cuda', dtypes=['float16'], sizes=[(100, 8)], peer=[], rounds=1), 'nowhere')
    times, memory = re.findall(r'^\| BCE \| (.*?) \|', capsys.readouterr().out, re.MULTILINE)
    assert times == '100, 3 (2e+03)' and memory == '1.00'


@pytest.mark.slow
def test_growth_is_drawn_with_its_slope(tmp_path):
    figure = tmp_path / 'growth.png'
    sizes = ('--growth-rows', 8, 64, '--growth-classes', 4, 40, '--rounds', 3, '--threads', 1)
    done = run_tool(TOOL, '--sizes', '--growth', figure, *sizes)
    assert done.returncode == 0 and figure.stat().st_size > 5000, done.stdout
    tables = re.findall(r'^\| (rows|classes) \| BCE, ms \|(?:.*\n)+?\| slope \| (-?[\d.]+) ', done.stdout, re.MULTILINE)
    assert [name for name, _ in tables] == ['rows', 'classes']


def test_wrong_calls_say_what_is_wrong(tmp_path):
    done = run_tool(TOOL, '--sizes', '64')
    assert done.returncode == 2 and '64: write ROWSxCLASSES' in done.stdout
    done = run_tool(TOOL, '--peer', f'x={tmp_path}/none.py:Loss')
    assert done.returncode == 2 and 'write NAME=FILE.py:CLASS with a file that exists' in done.stdout
