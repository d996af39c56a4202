import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import settings
from mmengine.config import config as mmengine_config
from mmengine.logging import MMLogger
from yapf.yapflib import yapf_api

# The same cases in every run: a change that passes here passes elsewhere. HYPOTHESIS_PROFILE=random draws new ones.
settings.register_profile('fixed', derandomize=True, deadline=None)
settings.register_profile('random', deadline=None, print_blob=True)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'fixed'))

# A suite that a shell runs in the background ignores Ctrl-C, and so would every tool that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


def start_tool(*command, cwd=ROOT, env=None, stdout=subprocess.PIPE):
    """Start a tool as its user does; stdout and stderr are one stream of text."""
    command = [str(part) for part in command]
    if command[0].endswith('.py'):
        command.insert(0, sys.executable)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    env = {**os.environ, 'PATH': path, **(env or {})}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=stdout, stderr=subprocess.STDOUT)


def run_tool(*command, cwd=ROOT, env=None, timeout=600):
    """Run a tool to its end; returns the finished process with its output."""
    with start_tool(*command, cwd=cwd, env=env) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output)


@pytest.fixture
def new_loggers(monkeypatch):
    """mmengine's loggers write to what was stderr when they were made, which pytest replaces for every test."""
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())


# Forks of a process that has done nothing but imports, which take seconds. Where torch is built for a GPU, autograd
# does not work in a fork of a process that has used it.
mp.set_forkserver_preload(['asl_mmdet', 'tests.conftest'])


def in_processes(function, folder, number=2):
    """What ``function(rank)`` returns in each of so many processes that form a group, in a new folder each call.

    ``function`` is pickled, so that it is one of a module, or a partial of one.
    """
    folder = tempfile.mkdtemp(dir=folder)
    mp.start_processes(_run_rank, (function, folder, number), nprocs=number, start_method='forkserver')
    return [pickle.loads(Path(folder, f'{rank}.pkl').read_bytes()) for rank in range(number)]


def _run_rank(rank, function, folder, number):
    torch.set_num_threads(1)
    os.chdir(folder)  # where mmengine collects results
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=number)
    Path(folder, f'{rank}.pkl').write_bytes(pickle.dumps(function(rank)))


@pytest.fixture(autouse=True)
def no_workers_left():
    """A loader that is collected in a cycle cannot tell its workers to end any more, and waits 5 s for each of them."""
    yield
    for worker in mp.active_children():
        worker.terminate()


@pytest.fixture(autouse=True, scope='session')
def no_network():
    """Nothing in the suite connects to another machine."""
    connect = socket.socket.connect

    def connect_to_loopback(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ('127.0.0.1', '::1', 'localhost'):
            raise AssertionError(f'a test connects to {address}')
        return connect(self, address)

    socket.socket.connect = socket.socket.connect_ex = connect_to_loopback
    yield
    del socket.socket.connect, socket.socket.connect_ex


@pytest.fixture(autouse=True, scope='session')
def no_layout_of_configs():
    """yapf lays out a config five times for each Runner, for longer than many a test trains. Tools do it as ever."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (yapf_api, mmengine_config):  # of which the one or the other is asked, by version
            patch.setattr(module, 'FormatCode', lambda text, **style: (text, True), raising=False)
        yield


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A data set of shapes: 16 training and 6 validation images of 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp('shapes')
    done = run_tool('tools/make_shapes.py', folder, '--train', 16, '--val', 6, '--size', 64)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def pictures():
    """Writes JPEGs of 20 x 10 pixels, each of one colour that follows from its place in the list."""

    def write(folder, names):
        for i, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name), np.full((10, 20, 3), 20 * i % 256, dtype=np.uint8))

    return write


@pytest.fixture(scope='session')
def chromium(tmp_path_factory):
    if not (shutil.which('chromium') and shutil.which('chromedriver')):
        pytest.skip('Chromium is missing: apt-get install chromium chromium-driver')
    from tests.browser import Browser  # selenium takes a while to import

    chromium = Browser(tmp_path_factory.mktemp('chromium'))
    yield chromium
    chromium.driver.quit()


@pytest.fixture
def browser(chromium, tmp_path):
    """A :class:`tests.browser.Browser`; what is opened in it asks nobody for anything and has no console errors.

    Files that a page saves land in ``tmp_path``.
    """
    chromium.save_to(tmp_path)
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []
