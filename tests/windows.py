"""Stands for Windows: ``python tests/windows.py TOOL …`` runs a tool without what Python and Windows lack there.

Files that are open cannot be replaced or removed, folders cannot be opened, links cannot be made, text is cp1252 where
no encoding is given, and processes are spawned; what is spawned lacks nothing. Packages of others are imported before.
It is no Windows: paths have slashes, and everything of the C libraries is Linux's.
"""

import builtins
import errno
import io
import multiprocessing.popen_spawn_posix
import multiprocessing.resource_tracker
import os
import platform
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import filelock  # noqa: F401
import mmdet.apis  # noqa: F401
import mmdet.datasets.transforms  # noqa: F401
import mmdet.models  # noqa: F401
import mmengine.runner  # noqa: F401
import platformdirs.unix  # noqa: F401
import torch._dynamo  # noqa: F401
import torch._inductor.compile_fx  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from torch.utils.data._utils import signal_handling

MISSING = {
    os: (
        'fork forkpty register_at_fork killpg getpgid getpgrp setpgid setsid getsid getuid geteuid getgid chown fchmod '
        'fchown sched_getaffinity sched_setaffinity statvfs fstatvfs uname sysconf nice mkfifo sync O_DIRECTORY '
        'O_NOFOLLOW O_CLOEXEC O_NONBLOCK WNOHANG wait3 wait4 getloadavg openpty'
    ),
    signal: (
        'pthread_sigmask sigwait sigwaitinfo sigtimedwait sigpending pthread_kill setitimer alarm pause SIGKILL SIGHUP '
        'SIGUSR1 SIGUSR2 SIGCHLD SIGALRM SIGQUIT SIG_BLOCK SIG_UNBLOCK SIG_SETMASK'
    ),
}


def _is_open(path: str | bytes | os.PathLike) -> bool:
    path = os.path.realpath(os.fsdecode(path))
    return any(os.path.realpath(descriptor) == path for descriptor in Path('/proc/self/fd').iterdir())


def _refusing(function, refused, reason):
    def call(path, *args, **kwargs):
        if refused(path, *args):
            raise PermissionError(errno.EACCES, reason, path)
        return function(path, *args, **kwargs)

    return call


def become_windows() -> None:
    # These go by the name of the system.
    for module in (
        multiprocessing.popen_fork,
        multiprocessing.resource_tracker,
        multiprocessing.util,
        signal_handling,
        subprocess,
        *[module for name, module in sys.modules.items() if name.partition('.')[0] == 'filelock'],
    ):
        for name in {'os', 'signal'} & vars(module).keys():
            setattr(module, name, SimpleNamespace(**vars(vars(module)[name])))
    for module, names in MISSING.items():
        for name in names.split():
            vars(module).pop(name, None)
    for name in 'fcntl resource pwd grp termios tty pty syslog'.split():
        sys.modules[name] = None
    in_use = 'The process cannot access the file because it is being used by another process'
    for name in ('replace', 'rename'):
        setattr(os, name, _refusing(getattr(os, name), lambda path, to, *_: _is_open(path) or _is_open(to), in_use))
    for name in ('unlink', 'remove'):
        setattr(os, name, _refusing(getattr(os, name), lambda path, *_: _is_open(path), in_use))
    os.open = _refusing(os.open, lambda path, *_: os.path.isdir(path), 'Permission denied')
    os.symlink = _refusing(os.symlink, lambda *_: True, 'A required privilege is not held by the client')
    shutil._use_fd_functions = False
    platform.system = lambda: 'Windows'
    multiprocessing.set_start_method('spawn')

    open_file = builtins.open

    def open_as_cp1252(file, mode='r', buffering=-1, encoding=None, *args, **kwargs):
        if 'b' not in mode and encoding is None:
            encoding = 'cp1252'
        return open_file(file, mode, buffering, encoding, *args, **kwargs)

    builtins.open = io.open = open_as_cp1252
    # pathlib and logging ask it first, and it says 'locale'.
    io.text_encoding = lambda encoding, stacklevel=2: encoding or 'cp1252'


if __name__ == '__main__':
    become_windows()
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name='__main__')
