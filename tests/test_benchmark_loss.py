import re

import pytest

from tests.conftest import run_tool

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
    assert rows.keys() - INSTALLED == names | {'BCE', 'BCE, ms', 'mmdet FocalLoss', 'twice'}
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
