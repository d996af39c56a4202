"""What import asl_mmdet and the doctor say on stacks that cannot work, each faked by packages before the real ones."""

import os
import socket
import subprocess
import sys

import pytest

FAKED = ('torch', 'mmengine', 'mmcv', 'mmdet', 'cv2')


def fake(folder, **contents):
    """Packages of these contents, and beside them such that nothing is wrong with."""
    for package in FAKED:
        (folder / package).mkdir()
        (folder / package / '__init__.py').write_text(contents.get(package, "__version__ = '99.0'"))
    if 'mmcv' not in contents:
        (folder / 'mmcv/_ext.py').write_text(contents.get('ops', ''))


def run(folder, *arguments):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(folder), os.environ.get('PYTHONPATH', '')])}
    return subprocess.run([sys.executable, *arguments], text=True, capture_output=True, env=env)


def test_import_needs_no_network_and_tests_have_none():
    code = (
        'import socket, sys\n'
        'def refuse(*_, **__): sys.exit("network")\n'
        'for name in ("connect", "connect_ex", "sendto"): setattr(socket.socket, name, refuse)\n'
        'socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse\n'
        'import asl_mmdet, asl_mmdet.doctor; print(asl_mmdet.__version__)'
    )
    done = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    with socket.socket() as probe, pytest.raises(AssertionError, match='connects to'):
        probe.connect(('192.0.2.1', 80))


@pytest.mark.parametrize(
    'contents, message',
    [
        (dict(mmdet="__version__ = '2.28.0'"), 'needs mmdet 3.3.0 or later, and 2.28.0 is installed'),
        (dict(torch="__version__ = '1.13.1+cu117'"), 'needs torch 2.4 or later, and 1.13.1+cu117 is installed'),
        (
            dict(mmengine="raise ModuleNotFoundError('mmengine')"),
            'needs mmengine 0.10.7 or later, and it is not installed',
        ),
        (dict(mmengine='import addict_of_none'), 'addict_of_none, which it imports, is not installed'),
        (dict(mmcv="__version__ = '2.3.6'"), 'mmcv is installed without its compiled ops'),
        (
            dict(ops="raise ImportError('undefined symbol: _ZN5torch3jit')"),
            'the ops of mmcv do not load beside this torch',
        ),
        (
            dict(mmdet="raise AssertionError('MMCV==2.3.6 is used but incompatible.\\nPlease install mmcv')"),
            'mmdet is installed but cannot be imported (AssertionError: MMCV==2.3.6 is used but incompatible. Please',
        ),
        (
            dict(torch="raise OSError('libcudart.so.12: cannot open')"),
            'torch is installed but cannot be imported (OSErr',
        ),
        (dict(cv2="raise ImportError('libGL.so.1: cannot open shared object file')"), 'apt-get install libgl1'),
    ],
)
def test_import_is_refused_in_one_line_and_the_doctor_says_the_same(contents, message, tmp_path):
    fake(tmp_path, **contents)
    done = run(tmp_path, '-c', 'import asl_mmdet')
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith('ImportError: asl_mmdet') and message in last
    assert 'make install' in last or 'opencv' in last
    done = run(tmp_path, '-m', 'asl_mmdet.doctor')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert message in done.stdout.split('to mend:')[1]


def test_the_doctor_lists_all_faults_at_once(tmp_path):
    fake(tmp_path, torch="__version__ = '1.8'", mmcv="__version__ = '2.3.6'", mmdet="__version__ = '2.28.0'")
    lines = run(tmp_path, '-m', 'asl_mmdet.doctor').stdout.split('to mend:')[1].strip().splitlines()
    assert [line.split()[:2] for line in lines] == [['needs', 'torch'], ['mmcv', 'is'], ['needs', 'mmdet']]


def test_the_doctor_finds_nothing_to_mend_where_the_tests_run():
    done = subprocess.run([sys.executable, '-m', 'asl_mmdet.doctor'], text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.endswith('nothing to mend\n'), done.stdout
    for part in ('stack: o', 'torch 2.', "mmcv's ops: GCC", 'cpu, '):
        assert part in done.stdout


def test_the_doctor_sees_two_stacks_in_one_environment(tmp_path):
    for name in ('mmdet-3.3.0', 'onedl_mmdetection-3.5.1'):
        (tmp_path / f'{name}.dist-info').mkdir()
        (tmp_path / f'{name}.dist-info/METADATA').write_text(f'Name: {name.split("-")[0]}\nVersion: 3\n')
    done = run(tmp_path, '-m', 'asl_mmdet.doctor')
    assert done.returncode == 1 and 'two stacks write over the same imports' in done.stdout
