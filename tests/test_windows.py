"""The tools where Python lacks what it lacks on Windows (tests/windows.py)."""

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_tool
from tests.test_tools import CLASSIFIER, CONFIG, classifier_on, on

pytestmark = pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='/proc of Linux tells which files are open')
# Workers are spawned, which imports everything once more.
SETTINGS = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=1', 'train_dataloader.num_workers=1']


def on_windows(*command, returncode=0):
    done = run_tool('tests/windows.py', *command)
    assert done.returncode == returncode, done.stdout
    assert 'Traceback' not in done.stdout, done.stdout
    return done.stdout


def test_what_windows_lacks_is_missing_or_refused(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import os, pathlib, signal, sys\n'
        'os.chdir(sys.path[0])\n'
        'with open("a", "w") as file:\n'
        '    for function in (os.unlink, lambda path: os.replace("b", path), lambda path: os.open(".", os.O_RDONLY)):\n'
        '        try:\n'
        '            function("a")\n'
        '        except PermissionError as error:\n'
        '            print(error.strerror)\n'
        'os.unlink("a")\n'
        'pathlib.Path("b").write_text("é")\n'
        'assert pathlib.Path("b").read_bytes() == b"\\xe9"\n'
        'from asl_mmdet.datasets.whole_file import whole_file\n'
        'try:\n'
        '    with whole_file("c"):\n'
        '        raise KeyError\n'
        'except KeyError:\n'
        '    assert sorted(os.listdir()) == ["b", "script.py"]\n'
        'print(file.encoding, [hasattr(os, "fork"), hasattr(signal, "pthread_sigmask"), sys.modules["fcntl"]])\n'
    )
    lines = on_windows(script).splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ['The', 'The', 'Permission', 'cp1252']
    assert lines[-1].endswith('[False, False, None]')


def test_a_run_is_tried_and_trained(shapes, tmp_path):
    options = classifier_on(shapes, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1')
    train = ['tools/train.py', CLASSIFIER, '--work-dir', tmp_path / 'work_dir']
    assert 'fit to be trained' in on_windows(*train, '--check', *options)
    on_windows(*train, *options)
    assert (tmp_path / 'work_dir/epoch_1.pth').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('config', [CLASSIFIER, CONFIG], ids=['classifier', 'detector'])
def test_a_run_is_tried_trained_resumed_and_tested(config, shapes, tmp_path):
    is_classifier = config == CLASSIFIER
    options = classifier_on(shapes, *SETTINGS) if is_classifier else on(shapes, *SETTINGS)
    work_dir = tmp_path / 'work_dir'
    train = ['tools/train.py', config, '--work-dir', work_dir]
    assert 'fit to be trained' in on_windows(*train, '--check', *options)
    assert not work_dir.exists()
    on_windows(*train, *options)
    on_windows(*train, '--resume', *options, 'train_cfg.max_epochs=3')
    assert {'epoch_2.pth', 'epoch_3.pth'} <= {path.name for path in work_dir.iterdir()}
    report = ['--report', tmp_path / 'report'] if is_classifier else []
    on_windows('tools/test.py', config, work_dir / 'epoch_3.pth', '--work-dir', tmp_path / 'test', *report, *options)
    (metrics,) = (tmp_path / 'test').glob('*/*.json')
    assert json.loads(metrics.read_text())
    if is_classifier:
        assert (tmp_path / 'report/report.html').is_file()
        table = tmp_path / 'probabilities.csv'
        on_windows('tools/infer.py', shapes / 'val', config, work_dir / 'epoch_3.pth', '--out', table)
        with open(table, newline='') as file:
            assert len(list(csv.reader(file))) == 1 + 6


@pytest.mark.slow
@pytest.mark.parametrize('tool', ['sweep', 'benchmark_metric'])
def test_tools_of_linux_and_macos_say_so(tool):
    said = on_windows(ROOT / f'tools/analysis_tools/{tool}.py', returncode=1)
    assert said.splitlines()[-1].startswith(f'{tool}.py') and said.endswith('on Windows run it in WSL\n')
