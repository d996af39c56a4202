"""tools/setup_env.py: what it refuses, what it caches, what survives a kill. No network, nothing is installed."""

import hashlib
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools/setup_env.py')
setup_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_env)
KEY = 'onedl-mmcv-2.3.6-torch-2.13.0+cpu-cpython-311-x86_64-linux-gnu-linux-x86_64'


def make_wheel(path, with_ops=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as wheel:
        wheel.writestr('mmcv/__init__.py', '')
        if with_ops:
            wheel.writestr('mmcv/_ext.cpython-311-x86_64-linux-gnu.so', 'machine code ' * 99)
    return str(path)


def fake_environment(env, torch='2.13.0+cpu', ops=True):
    """The files by which setup_env knows an environment, without a Python in it."""
    site = env / 'lib/python3.11/site-packages'
    (site / 'torch').mkdir(parents=True)
    (site / 'torch/version.py').write_text(f"__version__ = '{torch}'\ncuda = None\n")
    (site / 'mmcv').mkdir()
    if ops:
        (site / 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so').touch()
    (env / '.asl_mmdet').mkdir()
    return site


# -- the machine


@pytest.mark.parametrize(
    'version, stack', [((3, 10), 'onedl'), ((3, 13, 1), 'onedl'), ((3, 10), 'openmmlab'), ((3, 12), 'openmmlab')]
)
def test_accepts_the_pythons_that_the_pins_exist_for(version, stack):
    setup_env.check_python(version, 'python3', stack)


@pytest.mark.parametrize(
    'version, stack, newest',
    [
        ((3, 6, 15), 'onedl', 13),
        ((3, 9), 'onedl', 13),
        ((3, 14), 'onedl', 13),
        ((4, 0), 'onedl', 13),
        ((3, 13), 'openmmlab', 12),
    ],
)
def test_wrong_python_names_one_that_is_there(version, stack, newest, monkeypatch):
    monkeypatch.setattr(setup_env, 'works', lambda python, code: python in ('python3.11', 'python3.10'))
    with pytest.raises(setup_env.SetupError) as refusal:
        setup_env.check_python(version, '/usr/bin/python3', stack)
    assert str(refusal.value) == (
        f'/usr/bin/python3 is Python {version[0]}.{version[1]}, and the pinned packages of stack {stack} exist for '
        f'3.10 to 3.{newest}; add PYTHON=python3.11 to the make command'
    )


def test_wrong_python_names_the_command_that_brings_one(monkeypatch):
    monkeypatch.setattr(setup_env, 'works', lambda python, code: False)
    monkeypatch.setattr(setup_env.sys, 'platform', 'linux')

    def only_python_3_11_is_offered(command, **kwargs):
        if command[0] == 'dnf':
            raise FileNotFoundError('dnf')
        return b'Candidate: 3.11.2' if command[-1] == 'python3.11' else b''

    monkeypatch.setattr(setup_env.subprocess, 'check_output', only_python_3_11_is_offered)
    with pytest.raises(
        setup_env.SetupError,
        match=re.escape(
            'get one with: sudo apt-get install python3.11 python3.11-venv python3.11-dev; then add PYTHON='
        ),
    ):
        setup_env.check_python((3, 14), 'python3', 'onedl')


def test_old_pythons_can_read_the_script():
    """Syntax that Python 3.6 lacks would turn the message about the version into a SyntaxError."""
    import ast

    ast.parse((ROOT / 'tools/setup_env.py').read_text(), feature_version=(3, 6))


def test_everything_missing_is_named_at_once_with_one_command(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.sys, 'platform', 'linux')
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    monkeypatch.setattr(setup_env, 'works', lambda python, code: False)
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(setup_env.SetupError) as refusal:
        setup_env.check_tools((3, 12), str(tmp_path), needs_venv=True, needs_compiler=True)
    assert str(refusal.value) == (
        f'missing: the module ensurepip of python3.12, a C++ compiler (c++), {tmp_path}/Python.h; '
        'install with: sudo apt-get install python3.12-venv g++ python3.12-dev'
    )
    setup_env.check_tools((3, 12), str(tmp_path), needs_venv=False, needs_compiler=False)


def test_gpu_without_nvcc_is_refused_with_both_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv('CUDA_HOME', str(tmp_path))
    with pytest.raises(setup_env.SetupError) as refusal:
        setup_env.check_nvcc('13.0')
    assert f'{tmp_path}/bin/nvcc' in str(refusal.value)
    assert 'install the CUDA 13.0 toolkit' in str(refusal.value) and 'CUDA_VISIBLE_DEVICES= make' in str(refusal.value)


def test_nvcc_of_another_major_version_is_refused(monkeypatch, tmp_path):
    nvcc = tmp_path / 'bin/nvcc'
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\necho Cuda compilation tools, release 12.4, V12.4.131\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv('CUDA_HOME', str(tmp_path))
    with pytest.raises(setup_env.SetupError, match=r'is of CUDA 12\.4, and torch of CUDA 13\.0'):
        setup_env.check_nvcc('13.0')
    assert setup_env.check_nvcc('12.6') == str(tmp_path)


def test_gpus_are_asked_of_nvidia_smi_and_can_be_hidden(monkeypatch, tmp_path):
    tool = tmp_path / 'nvidia-smi'
    tool.write_text('#!/bin/sh\nprintf "9.0\\n9.0\\n8.6\\n"\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path) + os.pathsep + os.environ['PATH'])
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert setup_env.gpus() == ['8.6', '9.0']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert setup_env.gpus() == []
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    tool.write_text('#!/bin/sh\necho "NVIDIA-SMI has failed"; exit 9\n')
    assert setup_env.gpus() == []


# -- the cache of compiled ops


def test_cache_key_tells_apart_all_that_a_wheel_depends_on():
    same = ('onedl-mmcv', '2.3.6', '2.13.0+cpu', 'cpython-311-x86_64-linux-gnu', 'linux-x86_64')
    assert setup_env.cache_key(*same) == KEY
    changes = [
        (0, 'mmcv'),
        (1, '2.3.7'),
        (2, '2.13.0+cu130'),
        (2, '2.12.0+cpu'),
        (3, 'cpython-312-x86_64-linux-gnu'),
        (4, 'macosx-14.0-arm64'),
    ]
    keys = {setup_env.cache_key(*same[:i], other, *same[i + 1 :]) for i, other in changes}
    keys |= {setup_env.cache_key(*same, archs) for archs in ([], ['9.0'], ['8.6', '9.0'])}
    assert len(keys) == len(changes) + 3


def test_cache_lies_where_the_user_says_and_never_in_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', '/home/somebody')
    monkeypatch.delenv('ASL_MMDET_CACHE', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    assert setup_env.cache_folder() == '/home/somebody/.cache/asl_mmdet'
    monkeypatch.setenv('XDG_CACHE_HOME', '/caches')
    assert setup_env.cache_folder() == '/caches/asl_mmdet'
    monkeypatch.setenv('ASL_MMDET_CACHE', str(tmp_path))
    assert setup_env.cache_folder() == str(tmp_path)


def test_wheel_faults(tmp_path):
    assert setup_env.wheel_fault(make_wheel(tmp_path / 'good.whl')) is None
    without = make_wheel(tmp_path / 'onedl_mmcv-2.3.6-py3-none-any.whl', with_ops=False)
    assert setup_env.wheel_fault(without) == 'has no compiled ops (no mmcv/_ext*.so inside)'
    cut = tmp_path / 'cut.whl'
    cut.write_bytes((tmp_path / 'good.whl').read_bytes()[:500])
    assert setup_env.wheel_fault(str(cut)).startswith('cannot be read')
    damaged = tmp_path / 'damaged.whl'
    content = (tmp_path / 'good.whl').read_bytes()
    damaged.write_bytes(content.replace(b'machine', b'nothing', 1))
    assert setup_env.wheel_fault(str(damaged)) == 'is damaged at mmcv/_ext.cpython-311-x86_64-linux-gnu.so'


def test_wheel_is_built_once_and_published_whole(tmp_path):
    seen, built = [], []

    def build(working, log):
        seen.append(sorted(path.name for path in (tmp_path / 'wheels' / KEY).iterdir()))
        wheel = make_wheel(Path(working) / 'wheel/a-cp311.whl')
        built.append(os.stat(wheel).st_ino)
        return wheel

    wheel = setup_env.wheel_with_ops(KEY, str(tmp_path), build)
    assert wheel == str(tmp_path / 'wheels' / KEY / 'a-cp311.whl') and setup_env.wheel_fault(wheel) is None
    assert setup_env.wheel_with_ops(KEY, str(tmp_path), build) == wheel
    assert seen == [[]]
    assert [os.stat(wheel).st_ino] == built, 'moved in one step, not copied byte by byte'
    assert os.listdir(tmp_path / 'wheels') == [KEY]


def test_built_wheel_without_ops_is_refused_and_not_kept(tmp_path):
    with pytest.raises(setup_env.SetupError, match=r'a-py3-none-any\.whl, has no compiled ops .*; it is not kept'):
        setup_env.wheel_with_ops(
            KEY, str(tmp_path), lambda working, log: make_wheel(Path(working) / 'a-py3-none-any.whl', with_ops=False)
        )
    assert os.listdir(tmp_path / 'wheels' / KEY) == []
    assert os.listdir(tmp_path / 'wheels') == [KEY]


def test_bad_wheel_in_the_cache_is_replaced(tmp_path, capsys):
    bad = make_wheel(tmp_path / 'wheels' / KEY / 'a-py3-none-any.whl', with_ops=False)
    wheel = setup_env.wheel_with_ops(KEY, str(tmp_path), lambda working, log: make_wheel(Path(working) / 'b-cp311.whl'))
    assert os.path.basename(wheel) == 'b-cp311.whl' and not os.path.exists(bad)
    assert f'{bad} has no compiled ops (no mmcv/_ext*.so inside): removed' in capsys.readouterr().out


def test_what_killed_builds_left_is_removed_and_a_living_one_is_not(tmp_path):
    other_key = 'mmcv-2.1.0-torch-2.13.0+cpu-cpython-311-x86_64-linux-gnu-linux-x86_64'
    dead, other, alive = [tmp_path / 'wheels' / f'.building-{key}-abc_12' for key in (KEY, other_key, KEY + '-sm90')]
    for folder in (dead, other, alive):
        (folder / 'scratch').mkdir(parents=True)

    def build(working, log):
        assert not dead.exists() and not other.exists() and alive.exists()
        return make_wheel(Path(working) / 'a.whl')

    with setup_env.only_one(other_key, str(tmp_path), 'a build that ends here'):
        pass
    with setup_env.only_one(KEY + '-sm90', str(tmp_path), 'a build for a GPU'):
        setup_env.wheel_with_ops(KEY, str(tmp_path), build)
    assert sorted(os.listdir(tmp_path / 'wheels')) == sorted([alive.name, KEY])


@pytest.mark.parametrize('fault', [KeyboardInterrupt, setup_env.SetupError])
def test_interrupted_build_leaves_nothing_half_made(fault, tmp_path):
    def build(working, log):
        make_wheel(Path(working) / 'a.whl')
        raise fault

    with pytest.raises(fault):
        setup_env.wheel_with_ops(KEY, str(tmp_path), build)
    assert os.listdir(tmp_path / 'wheels') == [KEY] and os.listdir(tmp_path / 'wheels' / KEY) == []


def test_second_build_at_once_waits_and_takes_the_first_ones_wheel(tmp_path, capsys):
    building, go_on, wheels = threading.Event(), threading.Event(), []

    def first(working, log):
        building.set()
        assert go_on.wait(20)
        return make_wheel(Path(working) / 'a.whl')

    def second(working, log):
        raise AssertionError('built twice')

    threads = [
        threading.Thread(target=lambda build=build: wheels.append(setup_env.wheel_with_ops(KEY, str(tmp_path), build)))
        for build in (first, second)
    ]
    threads[0].start()
    assert building.wait(20)
    threads[1].start()
    said = ''
    for _ in range(200):
        said += capsys.readouterr().out
        if 'waiting' in said:
            break
        time.sleep(0.05)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert f'waiting for another process that is at work on {KEY}' in said
    assert wheels == [str(tmp_path / 'wheels' / KEY / 'a.whl')] * 2


@pytest.mark.parametrize('standard', [17, 20])
def test_ops_are_compiled_in_the_cxx_that_torch_asks_for(standard, monkeypatch, tmp_path):
    """mmcv's setup.py says -std=c++17, behind what the environment says; pip stands for it here."""
    headers = tmp_path / 'a torch/include/ATen'
    headers.mkdir(parents=True)
    (headers / 'ATen.h').write_text(f'#error C++{standard} or later compatible compiler is required to use ATen.\n')
    monkeypatch.setattr(setup_env, 'ask', lambda python, code: str(tmp_path / 'a torch'))
    monkeypatch.setenv('NVCC_APPEND_FLAGS', '-O3')
    told = {}

    def run(command, title, log, env=None, progress=None):
        if env is None:
            return
        (tmp_path / 'a.cpp').write_text('long standard = __cplusplus;')
        line = f'{env["CXX"]} -std=c++17 -E -P {tmp_path}/a.cpp'
        told['c++'] = subprocess.check_output(line, shell=True, env=env, text=True).strip()
        told['nvcc'] = env['NVCC_APPEND_FLAGS']
        make_wheel(Path(command[command.index('--wheel-dir') + 1]) / 'a.whl')
        return 0

    monkeypatch.setattr(setup_env, 'run', run)
    working = tmp_path / 'a cache'
    setup_env.compile_mmcv(sys.executable, 'onedl-mmcv==2.3.6', [], None, str(working), 'log')
    assert (
        told
        == {
            17: {'c++': 'long standard = 201703L;', 'nvcc': '-O3'},
            20: {'c++': 'long standard = 202002L;', 'nvcc': '-O3 -std=c++20'},
        }[standard]
    )


# -- running things


def test_run_keeps_the_output_and_shows_its_end_on_failure(tmp_path, capsys):
    log = str(tmp_path / 'log')
    setup_env.run([sys.executable, '-c', 'print("went well")'], 'a step', log)
    assert 'went well' in Path(log).read_text() and 'went well' not in capsys.readouterr().out
    with pytest.raises(setup_env.SetupError) as failure:
        setup_env.run([sys.executable, '-c', 'print("no such thing"); raise SystemExit(3)'], 'a step', log)
    assert str(failure.value).endswith(f'no such thing\n\na step failed with exit code 3; above is the end of {log}')


def test_run_shows_what_a_compiler_complained_of_first(tmp_path):
    program = (
        "[print('a.h:%d:%d: error: number' % (line, 2)) for line in range(5)]; "
        "print('b.h:1:1: warning: none' + '\\nninja: stopped' * 40); raise SystemExit(1)"
    )
    log = str(tmp_path / 'log')
    with pytest.raises(setup_env.SetupError) as failure:
        setup_env.run([sys.executable, '-c', program], 'a step', log)
    errors = ''.join(f'a.h:{line}:2: error: number\n' for line in range(3))
    end = f'ninja: stopped\n\nthe first errors in it:\n{errors}\na step failed with exit code 1'
    assert str(failure.value).endswith(f'{end}; above is the end of {log}')


def test_run_gives_a_sign_of_life_with_progress(tmp_path, capsys):
    setup_env.run(
        [sys.executable, '-c', 'import time; time.sleep(0.5)'],
        'a step',
        str(tmp_path / 'log'),
        progress=lambda: '3 of 77 files compiled',
        beat=0.1,
    )
    assert '  0:00, 3 of 77 files compiled\n' in capsys.readouterr().out


# Like ninja: it has to hear SIGTERM to end the compilers, which it keeps in process groups of their own.
LIKE_NINJA = """
import os, signal, subprocess, sys
compiler = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)
def end(*_):
    compiler.kill()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
with open('pids.new', 'w') as text:
    text.write('%d %d' % (os.getpid(), compiler.pid))
os.rename('pids.new', 'pids')
compiler.wait()
"""


def started(folder):
    for _ in range(400):
        if (folder / 'pids').exists():
            return [int(pid) for pid in (folder / 'pids').read_text().split()]
        time.sleep(0.05)
    raise AssertionError('the command never started')


def heed_ctrl_c():
    """A shell starts what runs in its background deaf to it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize('sent', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_command_ends_with_whoever_ran_it(sent, tmp_path):
    """kill -9 of the set-up must not leave compilers at work for ten minutes."""
    runner = subprocess.Popen(
        [
            sys.executable,
            '-c',
            (
                f'import sys; sys.path.insert(0, {str(ROOT / "tools")!r}); import setup_env; '
                f'setup_env.ROOT = {str(tmp_path)!r}; '
                f'setup_env.run([sys.executable, "-c", {LIKE_NINJA!r}], "a step", {str(tmp_path / "log")!r})'
            ),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=heed_ctrl_c,
    )
    pids = started(tmp_path)
    assert all(map(is_running, pids))
    runner.send_signal(sent)
    runner.wait(20)
    for _ in range(200):
        if not any(map(is_running, pids)):
            break
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_interrupted_run_returns_only_when_the_command_has_ended(tmp_path, monkeypatch):
    """What it works on is removed next."""
    monkeypatch.setattr(setup_env, 'ROOT', str(tmp_path))

    def interrupt():
        started(tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        setup_env.run([sys.executable, '-c', LIKE_NINJA], 'a step', str(tmp_path / 'log'), progress=interrupt, beat=0.1)
    assert not any(map(is_running, started(tmp_path)))


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ended_from_outside_it_ends_like_after_ctrl_c(sent, tmp_path):
    env = str(tmp_path / 'env')
    name = 'environment-' + hashlib.sha256(env.encode()).hexdigest()[:16]
    with setup_env.only_one(name, str(tmp_path), env):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / 'tools/setup_env.py'), '--env', env],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, ASL_MMDET_CACHE=str(tmp_path)),
            preexec_fn=heed_ctrl_c,
        )
        assert process.stdout.readline().decode() == f'waiting for another process that is at work on {env}\n'
        process.send_signal(sent)
        complaint = process.communicate(timeout=20)[1].decode()
    assert (process.returncode, complaint) == (130, 'setup_env: interrupted; the same command goes on from here\n')


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f'/proc/{pid}/stat')
    return not (stat.exists() and stat.read_text().rsplit(')', 1)[1].split()[0] == 'Z')


# -- the environment


@pytest.mark.parametrize(
    'stack, installed, named',
    [
        ('onedl', {'mmcv': '2.1.0', 'mmdet': '3.3.0', 'torch': '2.13.0'}, 'mmcv 2.1.0, mmdet 3.3.0'),
        ('openmmlab', {'onedl-mmcv': '2.3.6', 'mmcv-lite': '2.1.0'}, 'onedl-mmcv 2.3.6, mmcv-lite 2.1.0'),
    ],
)
def test_the_other_stack_is_refused(stack, installed, named):
    with pytest.raises(setup_env.SetupError) as refusal:
        setup_env.check_stack('/env', stack, installed)
    assert str(refusal.value) == (
        f'/env holds {named}, and stack {stack} would write over the same imports; choose another environment with '
        'VENV=, or the other stack with STACK='
    )


def test_the_stack_itself_is_no_other_stack():
    setup_env.check_stack('/env', 'onedl', {'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1', 'numpy': '2.2.6'})
    setup_env.check_stack('/env', 'openmmlab', {'mmcv': '2.1.0', 'mmengine': '0.10.7', 'mmdet': '3.3.0'})


@pytest.mark.parametrize('version', ['2.4.0', '2.13.0+cu130', '3.0.0'])
def test_torch_that_the_plugin_runs_on_is_kept(version):
    setup_env.check_torch('/env', version)


@pytest.mark.parametrize('version', ['1.13.1', '2.3.1+cu121'])
def test_older_torch_is_refused(version):
    with pytest.raises(setup_env.SetupError, match=re.escape(f'/env holds torch {version}, and the plugin needs 2.4')):
        setup_env.check_torch('/env', version)


def test_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / 'thesis.txt').write_text('precious')
    with pytest.raises(setup_env.SetupError, match=r'is neither empty nor an environment \(no bin/python\)'):
        setup_env.make_environment(str(tmp_path))
    assert os.listdir(tmp_path) == ['thesis.txt']


def test_environment_killed_half_way_is_made_anew_and_a_borrowed_one_is_not(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(setup_env, 'run', lambda command, *rest: made.append(command[-1]))
    half, borrowed = tmp_path / 'half', tmp_path / 'borrowed'
    for env in (half, borrowed):
        (env / 'bin').mkdir(parents=True)
        (env / 'bin/python').touch()
        (env / 'pyvenv.cfg').touch()
    (half / '.asl_mmdet').mkdir()
    (half / '.asl_mmdet/making').touch()
    setup_env.make_environment(str(half))
    setup_env.make_environment(str(borrowed))
    assert made == [str(half)]
    assert (borrowed / '.asl_mmdet').is_dir()
    assert not (half / 'pyvenv.cfg').exists() and (borrowed / 'pyvenv.cfg').exists()
    assert setup_env.is_ours(str(half)) and not setup_env.is_ours(str(borrowed))


def test_half_installed_packages_are_forgotten(tmp_path):
    for name in ('whole-1.0', 'half-1.0'):
        (tmp_path / f'{name}.dist-info').mkdir()
        (tmp_path / f'{name}.dist-info/METADATA').touch()
    (tmp_path / 'whole-1.0.dist-info/INSTALLER').write_text('pip')
    setup_env.forget_half_installed(str(tmp_path))
    assert os.listdir(tmp_path) == ['whole-1.0.dist-info']


def write_stamp(env, stack='onedl'):
    (env / '.asl_mmdet/stamp').write_text(setup_env.stamp_of(str(env), setup_env.recipe(stack)))


def test_stamp_holds_as_long_as_nothing_changed(tmp_path):
    site = fake_environment(tmp_path)
    assert not setup_env.is_finished(str(tmp_path), 'onedl')
    write_stamp(tmp_path)
    assert setup_env.is_finished(str(tmp_path), 'onedl')
    assert not setup_env.is_finished(str(tmp_path), 'openmmlab')
    (site / 'torch/version.py').write_text("__version__ = '2.14.0+cpu'\n")
    assert not setup_env.is_finished(str(tmp_path), 'onedl')
    write_stamp(tmp_path)
    assert setup_env.is_finished(str(tmp_path), 'onedl')
    (site / 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so').unlink()
    assert not setup_env.is_finished(str(tmp_path), 'onedl')


def test_stamp_of_another_recipe_or_checkout_does_not_hold(tmp_path, monkeypatch):
    env, checkout = tmp_path / 'env', tmp_path / 'checkout'
    fake_environment(env)
    for part in ('setup.py', 'requirements/onedl.txt', 'tools/setup_env.py'):
        (checkout / part).parent.mkdir(parents=True, exist_ok=True)
        (checkout / part).write_bytes((ROOT / part).read_bytes())
    write_stamp(env)
    monkeypatch.setattr(setup_env, 'ROOT', str(checkout))
    assert not setup_env.is_finished(str(env), 'onedl')
    write_stamp(env)
    assert setup_env.is_finished(str(env), 'onedl')
    for part in ('setup.py', 'requirements/onedl.txt', 'tools/setup_env.py'):
        with open(checkout / part, 'a') as text:
            text.write('# changed\n')
        assert not setup_env.is_finished(str(env), 'onedl'), part
        write_stamp(env)


def test_finished_environment_costs_no_time(tmp_path):
    """Processor time: the clock on the wall also counts what else the machine does."""
    fake_environment(tmp_path)
    write_stamp(tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.call([sys.executable, str(ROOT / 'tools/setup_env.py'), '--env', str(tmp_path)])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0 and after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_finished_environment_waits_for_nobody(tmp_path, monkeypatch):
    def lock(*_):
        raise AssertionError('asked for the lock')

    fake_environment(tmp_path)
    write_stamp(tmp_path)
    monkeypatch.setattr(setup_env, 'only_one', lock)
    assert setup_env.main(['--env', str(tmp_path)]) == 0


def test_unknown_stack_is_refused_in_one_line(tmp_path, capsys):
    assert setup_env.main(['--env', str(tmp_path / 'env'), '--stack', 'mmlab']) == 1
    assert capsys.readouterr().err == 'setup_env: STACK=mmlab is none of: onedl, openmmlab\n'
    assert not (tmp_path / 'env').exists()


def test_borrowed_environment_is_refused_before_anything_changes(tmp_path, monkeypatch, capsys):
    """A real venv, made without pip, that pretends to hold the other stack."""
    import venv

    env = tmp_path / 'env'
    venv.create(env, with_pip=False, symlinks=True)
    monkeypatch.setenv('ASL_MMDET_CACHE', str(tmp_path / 'cache'))
    assert setup_env.main(['--env', str(env)]) == 1
    assert capsys.readouterr().err == (
        f'setup_env: {env} has no pip, which installs the rest; add it with: {env}/bin/python -m ensurepip\n'
    )
    site = next(env.glob('lib/python3*/site-packages'))
    (site / 'mmdet-3.3.0.dist-info').mkdir()
    (site / 'mmdet-3.3.0.dist-info/METADATA').write_text('Metadata-Version: 2.1\nName: mmdet\nVersion: 3.3.0\n')
    assert setup_env.main(['--env', str(env)]) == 1
    assert capsys.readouterr().err.startswith(f'setup_env: {env} holds mmdet 3.3.0, and stack onedl would write over')
    assert not (env / '.asl_mmdet').exists()


# -- the pins


def test_the_lock_holds_the_pins_and_a_hash_for_each_package():
    from packaging.requirements import Requirement

    def read(name):
        text = re.sub(r' \\\n +', ' ', (ROOT / f'requirements/{name}.lock').read_text())
        entries = [line.split(' --hash=sha256:') for line in text.splitlines() if line[:1] != '#']
        assert all(re.fullmatch('[0-9a-f]{64}', digest) for _, *digests in entries for digest in digests)
        assert all(len(digests) >= 1 for _, *digests in entries)
        return dict(entry[0].split('==') for entry in entries)

    pins, lock = setup_env.read_pins('onedl'), read('onedl')
    mmcv = setup_env.STACKS['onedl'][0]
    assert {**lock, **read(mmcv)}.items() >= {name: pins[name] for name in pins if name != 'torch'}.items()
    # torch is installed before, for the CPU or CUDA; mmcv is compiled.
    assert 'torch' not in lock and mmcv not in lock and setup_env.TIMM.split('==') == ['timm', lock['timm']]
    built_with = read('build')
    for tool in setup_env.BUILD_TOOLS:
        assert built_with[tool.split('==')[0]] in Requirement(tool).specifier
    # Nothing that a locked package asks for is missing.
    sys.path.insert(0, str(ROOT / 'tools'))
    import licences

    if (3, 11) <= sys.version_info[:2] and 'onedl-mmdetection' in licences.dependencies():
        not_locked = licences.dependencies().keys() - {licences.normal(name) for name in lock}
        # With torch, its builds for CUDA bring what they need.
        assert {name for name in not_locked if not name.startswith(('cuda-', 'nvidia-', 'triton'))} == {'torch', mmcv}


@pytest.mark.parametrize(
    'stack, version, platform, locked',
    [
        ('onedl', (3, 11), 'linux-x86_64', True),
        ('onedl', [3, 12], 'linux-x86_64', True),
        ('onedl', (3, 10), 'linux-x86_64', False),
        ('onedl', (3, 11), 'linux-aarch64', False),
        ('openmmlab', (3, 11), 'linux-x86_64', False),
    ],
)
def test_the_lock_is_for_what_it_was_made_on(stack, version, platform, locked):
    assert setup_env.is_locked(stack, dict(version=version, platform=platform)) == locked


@pytest.mark.parametrize('stack', ['onedl', 'openmmlab'])
def test_pins_are_exact_and_lie_in_the_ranges_of_setup_py(stack):
    from packaging.requirements import Requirement

    pins = setup_env.read_pins(stack)
    assert pins['torch'] == '2.13.0' and 'torchvision' not in pins
    lines = [line for line in (ROOT / 'requirements' / f'{stack}.txt').read_text().splitlines() if line[:1] != '#']
    assert lines == [f'{name}=={version}' for name, version in pins.items()]
    ranges = {}
    setup_py = (ROOT / 'setup.py').read_text()
    section = re.search(rf"'{stack}': \[(.*?)\]", setup_py, re.DOTALL).group(1)
    for text in re.findall(r"'([^']+)'", section):
        ranges[Requirement(text).name] = Requirement(text).specifier
    assert set(setup_env.STACKS[stack]) <= set(ranges) & set(pins)
    for name in set(ranges) & set(pins):
        assert pins[name] in ranges[name], name
