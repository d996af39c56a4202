"""Make the environment for `make demo` and `make test`: torch, mmcv with compiled ops, mmdet, the plugin.

Standard library only, and plain enough for Python 3.6 to read, so that a Python of the wrong version is told so in a
sentence. Every step can be killed and the same command goes on from there.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST_PYTHON, OLDEST_TORCH = (3, 10), (2, 4)
# OpenMMLab's stack wants numpy 1, which has no wheels for 3.13.
NEWEST_PYTHON = {'onedl': (3, 13), 'openmmlab': (3, 12)}
# mmcv, the one with compiled ops, comes first.
STACKS = {
    'onedl': ('onedl-mmcv', 'onedl-mmengine', 'onedl-mmdetection'),
    'openmmlab': ('mmcv', 'mmengine', 'mmdet'),
}
# Every file of these stacks, on Linux for x86_64 and these Pythons, is checked against a hash.
LOCKED = {'onedl': ((3, 11), (3, 12))}
SAME_IMPORTS = ('mmcv-full', 'mmcv-lite')
# mmcv 2.1.0 is built with pkg_resources, which setuptools 82 no longer has.
BUILD_TOOLS = ('setuptools==80.10.2', 'wheel', 'ninja', 'packaging')
# What mmcv's setup.py asks its compilers for.
MMCV_CXX_STANDARD = 17
# The tests compare our TResNet with timm's. Without timm's dependencies: torchvision, one of them, has no CPU build for
# this torch on PyPI, and its CUDA build does not import beside a CPU torch.
TIMM = 'timm==1.0.31'
# The CUDA that the pinned torch on PyPI is built with, and torch's own indexes for the builds that are not on PyPI.
PINNED_CUDA = '13.0'
CPU_INDEX, CUDA_INDEX = 'https://download.pytorch.org/whl/cpu', 'https://download.pytorch.org/whl/cu130'

# Runs a command in a process group and ends the group when whoever asked for it is gone. Its standard input is a pipe
# that nobody writes to; the kernel closes it however the asker ends, kill -9 included. Ninja gives every compiler a
# group of its own and ends them on SIGTERM, so SIGTERM comes first.
KEEPER = """
import os, select, signal, subprocess, sys, time
command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
while command.poll() is None:
    if select.select([sys.stdin], [], [], 0.1)[0]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        time.sleep(2)
        os.killpg(0, signal.SIGKILL)
sys.exit(command.returncode if command.returncode >= 0 else 128 - command.returncode)
"""

DESCRIBE = """
import json, sys, sysconfig
try:
    from importlib.metadata import distributions
except ImportError:  # Python 3.7 and older, which is refused anyway
    distributions = tuple
installed = {}
for found in distributions():
    if found.metadata and found.metadata['Name']:
        installed.setdefault(found.metadata['Name'].lower().replace('_', '-').replace('.', '-'), found.version)
print(json.dumps(dict(
    version=sys.version_info[:2], headers=sysconfig.get_path('include', 'posix_prefix'),
    site=sysconfig.get_path('platlib'), platform=sysconfig.get_platform(), abi=sysconfig.get_config_var('SOABI'),
    installed=installed)))
"""

# Loads the ops without the rest of mmcv and all that it imports; prints the CUDA version they were compiled with.
LOAD_OPS = """
import glob, importlib.util, os, torch
folder = importlib.util.find_spec('mmcv').submodule_search_locations[0]
spec = importlib.util.spec_from_file_location('mmcv._ext', glob.glob(os.path.join(folder, '_ext*.so'))[0])
ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)
print(ops.get_compiling_cuda_version())
"""


class SetupError(Exception):
    """What is wrong and the way out; shown without a traceback."""


def say(text):
    print(text, flush=True)


def minutes(seconds):
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


# ---------------------------------------------------------------------------------------------------------------------
# Running things


def run(command, title, log, env=None, progress=None, beat=30.0):
    """Run a command to its end: its output goes to `log`, a sign of life to the screen every `beat` seconds.

    However this process ends, the command ends with it. Raises SetupError with the tail of the log.
    """
    say(f'{title} ...')
    start = time.time()
    with open(log, 'ab') as out:
        out.write(f'\n$ {" ".join(map(shlex.quote, command))}\n'.encode())
        out.flush()
        process = subprocess.Popen(
            [sys.executable, '-c', KEEPER] + list(command),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            code = None
            while code is None:
                try:
                    code = process.wait(timeout=beat)
                except subprocess.TimeoutExpired:
                    state = ', ' + progress() if progress else ''
                    say(f'  {minutes(time.time() - start)}{state}')
        finally:
            process.stdin.close()
            process.wait()
    if code:
        with open(log, errors='replace') as text:
            lines = text.readlines()
        # What a compiler complains of stands far above the end.
        errors = [line for line in lines if re.search(r':\d+: (fatal )?error: ', line)][:3]
        tail = ''.join(lines[-30:] + ['\nthe first errors in it:\n'] * bool(errors) + errors)
        raise SetupError(f'{tail}\n{title} failed with exit code {code}; above is the end of {log}')
    return time.time() - start


def ask(python, code):
    """The last line that a Python program prints; SetupError with the last line of its complaint when it fails."""
    process = subprocess.Popen([python, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=os.sep)
    out, complaint = [text.decode(errors='replace').strip().splitlines() for text in process.communicate()]
    if process.returncode:
        raise SetupError(complaint[-1] if complaint else f'exit code {process.returncode}')
    return out[-1] if out else ''


def works(python, code):
    try:
        ask(python, code)
    except (SetupError, OSError):
        return False
    return True


@contextlib.contextmanager
def only_one(name, cache, what):
    """Hold a lock that ends with this process; a second process waits for it."""
    import fcntl

    os.makedirs(os.path.join(cache, 'locks'), exist_ok=True)
    with open(os.path.join(cache, 'locks', name + '.lock'), 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f'waiting for another process that is at work on {what}')
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_taken(name, cache):
    """Whether somebody holds the lock of that name."""
    import fcntl

    try:
        with open(os.path.join(cache, 'locks', name + '.lock')) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


# ---------------------------------------------------------------------------------------------------------------------
# What the machine has


def check_python(version, where, stack):
    """Refuse a Python that the pinned packages do not exist for; name one that is there, or how to get one."""
    newest = NEWEST_PYTHON[stack]
    if OLDEST_PYTHON <= tuple(version[:2]) <= newest:
        return
    fitting = [f'python3.{minor}' for minor in range(newest[1], OLDEST_PYTHON[1] - 1, -1)]
    usable = [name for name in fitting if works(name, '')]
    if usable:
        remedy = f'add PYTHON={usable[0]} to the make command'
    else:
        remedy = f'get one with: {command_for_python(fitting)}; then add PYTHON= and its path to the make command'
    raise SetupError(
        f'{where} is Python {version[0]}.{version[1]}, and the pinned packages of stack {stack} exist for '
        f'3.{OLDEST_PYTHON[1]} to 3.{newest[1]}; {remedy}'
    )


def command_for_python(names):
    """What installs the first of these Pythons that this machine's package manager offers."""
    if sys.platform == 'darwin':
        return 'brew install ' + names[0].replace('python', 'python@')
    for name in names:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            if subprocess.check_output(['apt-cache', 'policy', name]):
                return f'sudo apt-get install {name} {name}-venv {name}-dev'
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            if subprocess.check_output(['dnf', '-q', 'list', name], stderr=subprocess.DEVNULL):
                return f'sudo dnf install {name} {name}-devel'
    return 'pip install uv && uv python install ' + names[0].replace('python', '')


def check_tools(version, headers, needs_venv, needs_compiler):
    """Name everything that is missing at once, with the one command that brings it."""
    python = f'python{version[0]}.{version[1]}'
    header = os.path.join(headers, 'Python.h')
    brew_python = 'brew install ' + python.replace('python', 'python@')
    missing = []  # what it is, its package for apt, its package for dnf, the command on macOS
    if needs_venv and not works(sys.executable, 'import venv, ensurepip; ensurepip.version()'):
        missing.append((f'the module ensurepip of {python}', f'{python}-venv', python, brew_python))
    if needs_compiler and not cxx_compiler():
        wanted = os.environ.get('CXX') or 'c++'
        missing.append((f'a C++ compiler ({wanted})', 'g++', 'gcc-c++', 'xcode-select --install'))
    if needs_compiler and not os.path.exists(header):
        missing.append((header, f'{python}-dev', f'{python}-devel', brew_python))
    if not missing:
        return
    names, apt, dnf, mac = zip(*missing)
    if sys.platform == 'darwin':
        remedy = ' && '.join(mac)
    elif shutil.which('dnf'):
        remedy = 'sudo dnf install ' + ' '.join(dnf)
    else:
        remedy = 'sudo apt-get install ' + ' '.join(apt)
    raise SetupError(f'missing: {", ".join(names)}; install with: {remedy}')


def cxx_compiler():
    for name in [os.environ['CXX']] if os.environ.get('CXX') else ['c++', 'g++', 'clang++']:
        if shutil.which(shlex.split(name)[0]):
            return name
    return None


def gpus():
    """Compute capabilities of the NVIDIA GPUs, such as ['9.0']; an empty CUDA_VISIBLE_DEVICES hides them."""
    if os.environ.get('CUDA_VISIBLE_DEVICES', 'all').strip() in ('', '-1'):
        return []
    try:
        listed = subprocess.check_output(
            ['nvidia-smi', '--query-gpu=compute_cap', '--format=csv,noheader'], stderr=subprocess.DEVNULL
        ).decode()
    except (OSError, subprocess.CalledProcessError):
        return []
    return sorted(set(re.findall(r'^\d+\.\d+$', listed, re.MULTILINE)))


def check_nvcc(torch_cuda):
    """mmcv's ops for a GPU need an nvcc of the major version that torch was built with; returns its CUDA_HOME."""
    way_out = (
        f'install the CUDA {torch_cuda} toolkit (https://developer.nvidia.com/cuda-toolkit-archive) and set '
        'CUDA_HOME to it, or leave the GPU out: CUDA_VISIBLE_DEVICES= make ...'
    )
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    if not home:
        nvcc = shutil.which('nvcc')
        home = os.path.dirname(os.path.dirname(nvcc)) if nvcc else '/usr/local/cuda'
    nvcc = os.path.join(home, 'bin', 'nvcc')
    if not os.path.exists(nvcc):
        raise SetupError(f"there is a GPU, but {nvcc}, which compiles mmcv's ops for it, is missing; {way_out}")
    found = re.search(r'release (\d+)\.(\d+)', subprocess.check_output([nvcc, '--version']).decode())
    if found and found.group(1) != torch_cuda.split('.')[0]:
        raise SetupError(
            f'{nvcc} is of CUDA {found.group(1)}.{found.group(2)}, and torch of CUDA {torch_cuda}; {way_out}'
        )
    return home


# ---------------------------------------------------------------------------------------------------------------------
# mmcv's compiled ops


def cache_folder():
    default = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache'), 'asl_mmdet')
    return os.path.abspath(os.path.expanduser(os.environ.get('ASL_MMDET_CACHE') or default))


def cache_key(package, version, torch, abi, system, archs=()):
    """All that a compiled wheel depends on; `torch` with its local part, for 2.13.0+cpu is not 2.13.0+cu130."""
    gpu = ''.join('-sm' + arch.replace('.', '') for arch in archs)
    return f'{package}-{version}-torch-{torch}-{abi}-{system}{gpu}'


def wheel_fault(path):
    """What is wrong with a wheel of mmcv, or None."""
    try:
        with zipfile.ZipFile(path) as wheel:
            damaged = wheel.testzip()
            if damaged:
                return f'is damaged at {damaged}'
            if any(re.match(r'mmcv/_ext[^/]*\.so$', name) for name in wheel.namelist()):
                return None
            return 'has no compiled ops (no mmcv/_ext*.so inside)'
    except (OSError, zipfile.BadZipFile) as fault:
        return f'cannot be read ({fault})'


def cached_wheel(folder):
    """The good wheel in a folder of the cache, or None; a bad one is removed."""
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), '*.whl'))):
        fault = wheel_fault(path)
        if fault is None:
            return path
        say(f'{path} {fault}: removed')
        os.remove(path)
    return None


def wheel_with_ops(key, cache, build):
    """The cached wheel for `key`, made by `build(working_folder, log)` where there is none yet.

    Only a wheel that holds compiled ops is published, in one step, from a working folder beside it. A build that was
    killed with -9 leaves its working folder behind; the next build, of whatever key, removes it.
    """
    folder = os.path.join(cache, 'wheels', key)
    with only_one(key, cache, key):
        wheel = cached_wheel(folder)
        if wheel:
            return wheel
        for left_over in glob.glob(os.path.join(glob.escape(cache), 'wheels', '.building-*')):
            its_key = re.match(r'\.building-(.*)-', os.path.basename(left_over)).group(1)
            if its_key == key or not is_taken(its_key, cache):
                shutil.rmtree(left_over)
        os.makedirs(os.path.join(cache, 'logs'), exist_ok=True)
        os.makedirs(folder, exist_ok=True)
        log = os.path.join(cache, 'logs', key + '.log')
        open(log, 'w').close()
        working = tempfile.mkdtemp(prefix=f'.building-{key}-', dir=os.path.join(cache, 'wheels'))
        try:
            built = build(working, log)
            fault = wheel_fault(built)
            if fault:
                raise SetupError(
                    f'the wheel just built, {os.path.basename(built)}, {fault}; it is not kept, and {log} '
                    'tells how it was built'
                )
            wheel = os.path.join(folder, os.path.basename(built))
            os.replace(built, wheel)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return wheel


def compile_mmcv(python, requirement, archs, cuda_home, working, log, locked=False):
    """Compile mmcv's source distribution against the torch of `python`; returns the wheel."""
    name = requirement.split('==')[0]
    source = ['-r', lock_file(name)] if os.path.exists(lock_file(name)) else [requirement]
    build_tools = ['--require-hashes', '-r', lock_file('build')] if locked else list(BUILD_TOOLS)
    tools, out, scratch = [os.path.join(working, name) for name in ('tools', 'wheel', 'scratch')]
    os.makedirs(scratch)
    # Beside the environment, not in it: a borrowed one keeps its own setuptools.
    run([python, '-m', 'pip', 'install', '--no-input', '--target', tools] + build_tools, 'build tools', log)
    env = dict(
        os.environ,
        MMCV_WITH_OPS='1',
        FORCE_CUDA='1' if archs else '0',
        CXX=cxx_compiler(),
        TMPDIR=scratch,
        PYTHONPATH=tools,
        PATH=os.path.join(tools, 'bin') + os.pathsep + os.environ.get('PATH', ''),
    )
    env.setdefault('MAX_JOBS', str(compile_jobs()))
    if archs:
        env.update(CUDA_HOME=cuda_home, TORCH_CUDA_ARCH_LIST=';'.join(archs))
    standard = cxx_standard(python)
    if standard > MMCV_CXX_STANDARD:
        # mmcv's own choice stands behind all that the environment could say, and the last one counts.
        compiler = os.path.join(working, 'c++')
        with open(compiler, 'w') as script:
            script.write(f'#!/bin/sh\nexec {env["CXX"]} "$@" -std=c++{standard}\n')
        os.chmod(compiler, 0o755)
        of_nvcc = f'{os.environ.get("NVCC_APPEND_FLAGS", "")} -std=c++{standard}'.strip()
        env.update(CXX=shlex.quote(compiler), NVCC_APPEND_FLAGS=of_nvcc)
    gpu = ', longer for a GPU' if archs else ''
    say(
        f"mmcv's ops must be compiled for this torch: 10 to 40 minutes on two cores{gpu}. It happens once, the wheel\n"
        f'is kept in {os.path.dirname(working)}; {log} has the details'
    )

    def compiled():
        plans = glob.glob(os.path.join(glob.escape(scratch), '**', 'build.ninja'), recursive=True)
        if not plans:
            return 'preparing'
        with open(plans[0]) as lines:
            planned = sum(bool(re.match(r'build .*: (cuda_)?compile', line)) for line in lines)
        done = len(glob.glob(os.path.join(glob.escape(scratch), '**', '*.o'), recursive=True))
        return f'{done} of {planned} files compiled' if done < planned else 'linking and packing'

    seconds = run(
        [
            python,
            '-m',
            'pip',
            'wheel',
            '--no-input',
            '--no-build-isolation',
            '--no-deps',
            '--no-cache-dir',
            '--no-binary',
            name,
            '--wheel-dir',
            out,
        ]
        + source,
        'compiling ' + requirement,
        log,
        env=env,
        progress=compiled,
    )
    say(f'  compiled in {minutes(seconds)}')
    return glob.glob(os.path.join(glob.escape(out), '*.whl'))[0]


def cxx_standard(python):
    """Of the C++ in the headers of the torch of `python`: 17 up to 2.13, 20 from 2.14 on."""
    headers = os.path.join(ask(python, 'import torch; print(torch.__path__[0])'), 'include')
    with open(os.path.join(headers, 'ATen', 'ATen.h')) as lines:
        return int(re.search(r'C\+\+(\d+) or later', lines.read()).group(1))


def compile_jobs():
    """One compiler per core, as far as each can have 2 GB of memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return max(1, min(cores, memory // 2**31))


# ---------------------------------------------------------------------------------------------------------------------
# The environment


def read_pins(stack):
    with open(os.path.join(ROOT, 'requirements', stack + '.txt')) as lines:
        return dict(re.match(r'([\w.-]+)==(\S+)', line).groups() for line in lines if re.match(r'[\w.-]+==', line))


def lock_file(name):
    return os.path.join(ROOT, 'requirements', name + '.lock')


def is_locked(stack, found):
    """Whether requirements/<stack>.lock was made for this Python and this kind of machine."""
    return found['platform'] == 'linux-x86_64' and tuple(found['version'][:2]) in LOCKED.get(stack, ())


def describe(python):
    """Version, folders, ABI and installed packages of a Python."""
    return json.loads(ask(python, DESCRIBE))


def check_stack(env, stack, installed):
    """Two distributions of the same imports in one environment overwrite one another's files."""
    others = [name for other, names in STACKS.items() if other != stack for name in names] + list(SAME_IMPORTS)
    found = [f'{name} {installed[name]}' for name in others if name in installed]
    if found:
        raise SetupError(
            f'{env} holds {", ".join(found)}, and stack {stack} would write over the same imports; choose '
            'another environment with VENV=, or the other stack with STACK='
        )


def check_torch(env, version):
    """A borrowed environment's torch is kept, so it must be one that the plugin runs on."""
    if tuple(int(part) for part in re.findall(r'\d+', version)[:2]) < OLDEST_TORCH:
        oldest = '.'.join(map(str, OLDEST_TORCH))
        raise SetupError(
            f'{env} holds torch {version}, and the plugin needs {oldest} or later; '
            'upgrade it there, or leave VENV= out for an environment of its own'
        )


def torch_in(env):
    """Version of torch, with its local part, and of the CUDA it was built with (None for a CPU build)."""
    try:
        return tuple(
            json.loads(
                ask(
                    os.path.join(env, 'bin', 'python'),
                    ('import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))'),
                )
            )
        )
    except SetupError as fault:
        raise SetupError(f'torch in {env} does not import ({fault}); mend it, or name another environment with VENV=')


def ops_fit(python, for_gpu):
    """Whether mmcv's ops are there, load beside the installed torch, and were compiled for a GPU where one is."""
    try:
        return ask(python, LOAD_OPS) != 'not available' or not for_gpu
    except SetupError:
        return False


def recipe(stack):
    """A hash of everything that says what is installed, and how."""
    digest = hashlib.sha256(ROOT.encode())
    locks = sorted(glob.glob(os.path.join(glob.escape(ROOT), 'requirements', '*.lock')))
    parts = ['setup.py', os.path.join('requirements', stack + '.txt'), os.path.join('tools', 'setup_env.py')]
    for part in parts + (locks if stack in LOCKED else []):
        with open(os.path.join(ROOT, part), 'rb') as content:
            digest.update(content.read())
    return digest.hexdigest()


def stamp_of(env, followed):
    """What a finished environment is known by: the recipe it followed, and its torch and ops as the files show."""
    site = os.path.join(glob.escape(env), 'lib', 'python3*', 'site-packages')
    lines = [followed] + sorted(glob.glob(os.path.join(site, 'mmcv', '_ext*.so')))
    for path in glob.glob(os.path.join(site, 'torch', 'version.py')):
        with open(path) as text:
            lines += re.findall(r'^__version__ = .*', text.read(), re.MULTILINE)
    return '\n'.join(lines) + '\n'


def is_finished(env, stack):
    """Quick: nothing is imported and nothing is run."""
    try:
        with open(os.path.join(env, '.asl_mmdet', 'stamp')) as stamp:
            return stamp.read() == stamp_of(env, recipe(stack))
    except OSError:
        return False


def is_ours(env):
    """Whether this script made the environment; any other one is borrowed."""
    return os.path.exists(os.path.join(env, '.asl_mmdet', 'made'))


def make_environment(env):
    """A virtual environment of our own; one that was killed half-way is made anew, anybody else's is left alone."""
    notes = os.path.join(env, '.asl_mmdet')
    making = os.path.join(notes, 'making')
    has_python = os.path.exists(os.path.join(env, 'bin', 'python'))
    if os.path.exists(making) or is_ours(env) and not has_python:
        shutil.rmtree(env)
    elif has_python:
        os.makedirs(notes, exist_ok=True)
        return
    elif os.path.isdir(env) and os.listdir(env):
        raise SetupError(f'{env} is neither empty nor an environment (no bin/python); name another with VENV=')
    os.makedirs(notes)
    open(making, 'w').close()
    run([sys.executable, '-m', 'venv', env], f'virtual environment {env}', os.path.join(notes, 'install.log'))
    os.replace(making, os.path.join(notes, 'made'))


def forget_half_installed(site):
    """pip writes INSTALLER last: a package without it was killed on its way in, and pip would take it for whole."""
    for info in glob.glob(os.path.join(glob.escape(site), '*.dist-info')):
        if not os.path.exists(os.path.join(info, 'INSTALLER')):
            say(f'{os.path.basename(info)} was left half-installed: once more')
            shutil.rmtree(info)


def install_torch(pip, version, log, has_gpu):
    """The build for CUDA or for the CPU: from pip's configured indexes, and where they lack it from torch's own."""
    if sys.platform == 'darwin':
        run(pip + ['torch==' + version], f'torch {version}', log)
        return
    # PyPI's build is for CUDA and has no local part: with == pip would prefer a +cpu build if it saw one.
    if has_gpu:
        wanted, build, index = f'torch==={version}', 'CUDA', CUDA_INDEX
    else:
        wanted, build, index = f'torch=={version}+cpu', 'the CPU', CPU_INDEX
    try:
        run(pip + [wanted], f'torch {version} for {build}', log)
    except SetupError:
        say(f"  not to be had from pip's configured indexes: trying {index}")
        run(pip + ['torch==' + version, '--index-url', index], f'torch {version} for {build}', log)


def mend_opencv(env, pip, log):
    """opencv-python wants libGL, which a machine without a screen often lacks; the headless build does not."""
    python = os.path.join(env, 'bin', 'python')
    try:
        ask(python, 'import cv2')
        return
    except SetupError as error:
        fault = str(error)
    version = describe(python)['installed'].get('opencv-python')
    if 'libGL' not in fault or not version:
        raise SetupError(f'import cv2 fails in {env}: {fault}')
    say(f'import cv2 fails ({fault}): replacing opencv-python {version} by its headless build, which needs no libGL')
    run(
        pip[: pip.index('install')] + ['uninstall', '--yes', 'opencv-python', 'opencv-python-headless'],
        'removing opencv-python',
        log,
    )
    run(pip + ['--no-deps', 'opencv-python-headless==' + version], f'opencv-python-headless {version}', log)
    ask(python, 'import cv2')


def check_all(env, stack, cache, archs):
    """Refuse everything that can be refused before anything is changed; returns what the Python describes itself as."""
    python = os.path.join(env, 'bin', 'python')
    is_new = not os.path.exists(python) or os.path.exists(os.path.join(env, '.asl_mmdet', 'making'))
    if is_new:
        check_python(sys.version_info, sys.executable, stack)
    found = describe(sys.executable if is_new else python)
    has_torch = not is_new and works(python, 'import torch')
    if not is_new:
        check_python(found['version'], python, stack)
        check_stack(env, stack, found['installed'])
        if not works(python, 'import pip'):
            raise SetupError(f'{env} has no pip, which installs the rest; add it with: {python} -m ensurepip')
        if not is_ours(env) and has_torch and 'torch' not in found['installed']:
            raise SetupError(
                f'torch in {env} has no package metadata, so pip would install a second one over it; '
                'install torch there with pip or conda'
            )
        if not is_ours(env) and 'torch' in found['installed']:
            check_torch(env, found['installed']['torch'])
            torch_in(env)
    any_torch = cache_key(STACKS[stack][0], read_pins(stack)[STACKS[stack][0]], '*', found['abi'], found['platform'])
    cached = glob.glob(os.path.join(glob.escape(os.path.join(cache, 'wheels')), any_torch + '*', '*.whl'))
    may_compile = not cached and (is_new or not ops_fit(python, for_gpu=False))
    check_tools(found['version'], found['headers'], is_new, may_compile)
    if may_compile and archs and not has_torch:
        check_nvcc(PINNED_CUDA)
    return found


def install_ops(env, stack, cache, torch, cuda, archs, pip, log):
    """mmcv with ops that were compiled for this torch and CUDA; returns whether it was installed anew."""
    python, note = os.path.join(env, 'bin', 'python'), os.path.join(env, '.asl_mmdet', 'ops')
    found = describe(python)
    archs = archs if cuda else []
    mmcv, version = STACKS[stack][0], read_pins(stack)[STACKS[stack][0]]
    key = cache_key(mmcv, version, torch, found['abi'], found['platform'], archs)
    if os.path.exists(note):
        with open(note) as text:
            are_there = text.read() == key
    else:
        are_there = not is_ours(env)
    if are_there and ops_fit(python, bool(archs)):
        return False

    def build(working, build_log):
        check_tools(found['version'], found['headers'], False, True)
        cuda_home = check_nvcc(cuda) if archs else None
        requirement, locked = f'{mmcv}=={version}', is_locked(stack, found)
        return compile_mmcv(python, requirement, archs, cuda_home, working, build_log, locked)

    wheel = wheel_with_ops(key, cache, build)
    # By its path: asked for by name, pip may take the wheel without ops that lies on PyPI.
    run(pip + ['--no-deps', '--force-reinstall', wheel], f'{mmcv} {version} with its ops', log)
    if not ops_fit(python, bool(archs)):
        raise SetupError(f'the ops in {wheel} do not load beside torch {torch}; delete it and run this again')
    with open(note, 'w') as text:
        text.write(key)
    return True


def install_stack(env, stack, torch, kept, pip, log):
    """The other packages, the plugin, and what the tests need; of torch, mmcv and what is `kept` no other version."""
    notes, python = os.path.join(env, '.asl_mmdet'), os.path.join(env, 'bin', 'python')
    constraints = os.path.join(notes, 'constraints.txt')
    with open(constraints, 'w') as lines:
        lines.writelines(f'{name}=={version}\n' for name, version in sorted(dict(read_pins(stack), **kept).items()))
    what = f'the {stack} stack, the plugin, what the tests need'
    if is_ours(env) and is_locked(stack, describe(python)):
        run(pip + ['--require-hashes', '--no-deps', '-r', lock_file(stack)], what + ', each checked by its hash', log)
        run(pip + ['--no-deps', '--no-build-isolation', '-e', ROOT], 'the plugin', log)
    else:
        run(pip + ['-c', constraints, '-e', f'{ROOT}[{stack},test]'], what, log)
    mend_opencv(env, pip, log)
    torch_now = torch_in(env)[0]
    if torch_now != torch:
        raise SetupError(f'pip replaced torch {torch} by {torch_now} in {env} against its constraints; see {log}')
    try:
        ask(python, 'import mmcv.ops, mmengine, mmdet')
    except SetupError as fault:
        raise SetupError(f'all is installed in {env}, but does not import: {fault}; see {log}')
    if 'timm' not in describe(python)['installed']:
        try:
            run(pip + ['--no-deps', TIMM], f'{TIMM}, for a comparison in the tests', log)
        except SetupError:
            say(f'  note: {TIMM} could not be installed; the tests that compare with it are skipped')


def install(env, stack, cache):
    """Bring `env`, in whatever state it is, to a finished installation of `stack`."""
    followed, pins, archs = recipe(stack), read_pins(stack), gpus()
    before = check_all(env, stack, cache, archs)
    make_environment(env)
    notes, python = os.path.join(env, '.asl_mmdet'), os.path.join(env, 'bin', 'python')
    log = os.path.join(notes, 'install.log')
    pip = [python, '-m', 'pip', 'install', '--no-input', '--disable-pip-version-check']
    kept = {}
    if is_ours(env):
        forget_half_installed(describe(python)['site'])
    installed = describe(python)['installed']
    if not is_ours(env):
        # What a borrowed environment has of torch and of the stack stays as it is.
        kept = {name: installed[name] for name in ('torch',) + STACKS[stack] if name in installed}
    if 'torch' not in kept:
        if installed.get('torch', '').split('+')[0] != pins['torch']:
            install_torch(pip, pins['torch'], log, bool(archs))
            installed = describe(python)['installed']
        kept['torch'] = installed['torch']
    torch, cuda = torch_in(env)
    if install_ops(env, stack, cache, torch, cuda, archs, pip, log):
        kept.pop(STACKS[stack][0], None)
    install_stack(env, stack, torch, kept, pip, log)
    now = describe(python)['installed']
    changed = [
        f'{name} {version} -> {now.get(name, "removed")}'
        for name, version in sorted(before['installed'].items())
        if now.get(name) != version
    ]
    if changed and not is_ours(env):
        say(f'changed in {env}: {", ".join(changed)}')

    stamp = os.path.join(notes, 'stamp')
    with open(stamp + '.new', 'w') as text:
        text.write(stamp_of(env, followed))
    os.replace(stamp + '.new', stamp)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--env', required=True, help='the environment: made where there is none, kept where there is')
    parser.add_argument('--stack', default='onedl', help=' or '.join(STACKS))
    options = parser.parse_args(arguments)
    env = os.path.abspath(os.path.expanduser(options.env))
    try:
        if options.stack not in STACKS:
            raise SetupError(f'STACK={options.stack} is none of: {", ".join(STACKS)}')
        if os.name != 'posix':
            raise SetupError(f'this script runs on Linux and macOS, not on {platform.system()}; there use WSL')
        if is_finished(env, options.stack):
            return 0
        cache = cache_folder()
        with only_one('environment-' + hashlib.sha256(env.encode()).hexdigest()[:16], cache, env):
            if not is_finished(env, options.stack):
                start = time.time()
                install(env, options.stack, cache)
                say(f'{env} is ready ({minutes(time.time() - start)})')
        return 0
    except SetupError as fault:
        print(f'setup_env: {fault}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('setup_env: interrupted; the same command goes on from here', file=sys.stderr)
        return 130


def interrupt(*_):
    raise KeyboardInterrupt


if __name__ == '__main__':
    # A CI that runs out of time, a closed terminal: cleaned up after like Ctrl-C.
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    sys.exit(main())
