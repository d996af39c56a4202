"""Make the environment that `make demo` and `make test` run in: torch, mmcv with its compiled ops, mmdet, the plugin.

Standard library only, and plain enough for any Python 3 to read, so that a Python of the wrong version gets a sentence
and not a SyntaxError. Every step can be killed and run again.
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
OLDEST_PYTHON, NEWEST_PYTHON, OLDEST_TORCH = (3, 10), (3, 12), (2, 4)
# mmcv, the one with compiled ops, comes first.
STACKS = {
    'onedl': ('onedl-mmcv', 'onedl-mmengine', 'onedl-mmdetection'),
    'openmmlab': ('mmcv', 'mmengine', 'mmdet'),
}
SAME_IMPORTS = ('mmcv-full', 'mmcv-lite', 'onedl-mmcv-lite')
# mmcv 2.1.0 imports pkg_resources, which setuptools 81 announced the end of and 82 removed.
BUILD_TOOLS = ('setuptools==80.10.2', 'wheel', 'ninja', 'packaging')
# Only for comparing our TResNet with timm's. Without its dependencies: torchvision, one of them, has no CPU build for
# this torch, and its CUDA build does not import beside a CPU torch.
TIMM = 'timm==1.0.31'
CPU_INDEX, CUDA_INDEX = 'https://download.pytorch.org/whl/cpu', 'https://download.pytorch.org/whl/cu130'

# Runs a command in a process group of its own and ends the whole group when whoever asked for it is gone. Its standard
# input is a pipe that nobody writes to: the kernel closes it however the asker ends, kill -9 included. Ninja gives each
# compiler a group of its own and ends them on SIGTERM, so SIGTERM comes first.
KEEPER = '''
import os, select, signal, subprocess, sys, time
command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
while command.poll() is None:
    if select.select([sys.stdin], [], [], 0.1)[0]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        time.sleep(2)
        os.killpg(0, signal.SIGKILL)
sys.exit(command.returncode if command.returncode >= 0 else 128 - command.returncode)
'''

DESCRIBE = '''
import json, sys, sysconfig
try:
    from importlib.metadata import distributions
except ImportError:  # before Python 3.8, refused anyway
    distributions = tuple
installed = {}
for found in distributions():
    if found.metadata and found.metadata['Name']:
        name = found.metadata['Name'].lower().replace('_', '-').replace('.', '-')
        installed.setdefault(name, found.version)
print(json.dumps(dict(
    version=sys.version_info[:2], headers=sysconfig.get_paths()['include'], site=sysconfig.get_paths()['platlib'],
    platform=sysconfig.get_platform(), abi=sysconfig.get_config_var('SOABI'), installed=installed)))
'''

# The ops alone, without the rest of mmcv and what that imports; prints the CUDA version they were compiled with.
LOAD_OPS = '''
import glob, importlib.util, os, torch
folder = importlib.util.find_spec('mmcv').submodule_search_locations[0]
spec = importlib.util.spec_from_file_location('mmcv._ext', glob.glob(os.path.join(folder, '_ext*.so'))[0])
ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)
print(ops.get_compiling_cuda_version())
'''


class SetupError(Exception):
    """What is wrong and the way out, in a sentence; shown without a traceback."""


def say(text):
    print(text, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# What the machine has


def check_python(version, where='python3', find=None):
    """Refuse a Python that the pinned packages are not made for; name one that is there, or how to get one."""
    if OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        return
    fitting = ['python%d.%d' % (3, minor) for minor in range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1)]
    present = [name for name in fitting if (find or runs)(name)]
    if present:
        remedy = 'this machine has another one: add PYTHON=%s to the make command' % present[0]
    else:
        remedy = 'get one with: %s' % install_command(python='3.11')
    raise SetupError('%s is Python %d.%d, and the pinned packages exist for %d.%d to %d.%d; %s' % (
        (where,) + tuple(version[:2]) + OLDEST_PYTHON + NEWEST_PYTHON + (remedy,)))


def runs(program):
    """A name on PATH is not enough: a version manager's shim may stand there for a Python it will not start."""
    with contextlib.suppress(OSError):
        return subprocess.call([program, '-c', ''], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    return False


def install_command(python=None, compiler=False, headers=None, venv=None):
    """The one command that brings what is missing, in the words of this machine's package manager."""
    if sys.platform == 'darwin':
        steps = ['xcode-select --install'] if compiler else []
        missing_python = python or headers or venv
        return ' && '.join(steps + (['brew install python@%s' % missing_python] if missing_python else []))
    if shutil.which('dnf'):
        names = [compiler and 'gcc-c++', python and 'python%s' % python, headers and 'python%s-devel' % headers]
        return 'sudo dnf install ' + ' '.join(name for name in names if name)
    names = [compiler and 'g++', python and 'python{0} python{0}-venv python{0}-dev'.format(python),
             headers and 'python%s-dev' % headers, venv and 'python%s-venv' % venv]
    return 'sudo apt-get install ' + ' '.join(name for name in names if name)


def check_tools(version, headers, needs_venv, needs_compiler):
    """Name everything that is missing at once, with the one command that brings it."""
    minor = '%d.%d' % tuple(version[:2])
    missing, wanted = [], {}
    if needs_venv and not module_exists('ensurepip'):
        missing.append('the venv module with ensurepip for Python ' + minor)
        wanted['venv'] = minor
    if needs_compiler and not cxx_compiler():
        missing.append('a C++ compiler (%s)' % os.environ.get('CXX', 'c++ or g++'))
        wanted['compiler'] = True
    if needs_compiler and not os.path.exists(os.path.join(headers, 'Python.h')):
        missing.append('the headers of Python %s (%s)' % (minor, os.path.join(headers, 'Python.h')))
        wanted['headers'] = minor
    if missing:
        raise SetupError('missing: %s; get %s with: %s' % (
            ', '.join(missing), 'it' if len(missing) == 1 else 'them', install_command(**wanted)))


def module_exists(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


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
        listed = subprocess.check_output(['nvidia-smi', '--query-gpu=compute_cap', '--format=csv,noheader'],
                                         stderr=subprocess.DEVNULL).decode()
    except (OSError, subprocess.CalledProcessError):
        return []
    return sorted(set(re.findall(r'^\d+\.\d+$', listed, re.M)))


def check_nvcc(torch_cuda):
    """mmcv's CUDA ops need an nvcc of the major version that torch was built with; returns its CUDA_HOME."""
    way_out = ('install the CUDA %s toolkit (https://developer.nvidia.com/cuda-toolkit-archive) and set CUDA_HOME to it, '
               'or leave the GPU out: CUDA_VISIBLE_DEVICES= make ...' % torch_cuda)
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    if not home:
        nvcc = shutil.which('nvcc')
        home = os.path.dirname(os.path.dirname(os.path.realpath(nvcc))) if nvcc else '/usr/local/cuda'
    nvcc = os.path.join(home, 'bin', 'nvcc')
    if not os.path.exists(nvcc):
        raise SetupError("this machine has a GPU, but %s, which compiles mmcv's ops for it, is missing; %s" % (nvcc, way_out))
    found = re.search(r'release (\d+)\.(\d+)', subprocess.check_output([nvcc, '--version']).decode())
    if found and found.group(1) != torch_cuda.split('.')[0]:
        raise SetupError('%s is of CUDA %s.%s and torch of CUDA %s; %s' % (
            (nvcc,) + found.groups() + (torch_cuda, way_out)))
    return home


# ---------------------------------------------------------------------------------------------------------------------
# Running things


def run(command, title, log, env=None, progress=None, beat=30.0):
    """Run a command to its end, its output in `log`, a sign of life on screen every `beat` seconds.

    Killing this process in any way ends the command too. Raises SetupError with the tail of the log.
    """
    say('%s ...' % title)
    start = time.time()
    with open(log, 'ab') as out:
        out.write(('\n$ %s\n' % ' '.join(map(shlex.quote, command))).encode())
        out.flush()
        process = subprocess.Popen([sys.executable, '-c', KEEPER] + command, stdin=subprocess.PIPE, stdout=out,
                                   stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True)
        try:
            while True:
                try:
                    code = process.wait(timeout=beat)
                    break
                except subprocess.TimeoutExpired:
                    say('  %s%s' % (minutes(time.time() - start), ', ' + progress() if progress else ''))
        finally:
            process.stdin.close()
            process.wait()
    if code:
        with open(log, errors='replace') as lines:
            tail = ''.join(lines.readlines()[-30:])
        raise SetupError('%s\n%s failed with exit code %d; the lines above are the end of %s' % (tail, title, code, log))
    return time.time() - start


def minutes(seconds):
    return '%d:%02d' % divmod(int(seconds), 60)


@contextlib.contextmanager
def only_one(name, cache, what):
    """Hold a lock that ends with this process; a second process waits for it."""
    import fcntl
    os.makedirs(os.path.join(cache, 'locks'), exist_ok=True)
    with open(os.path.join(cache, 'locks', name + '.lock'), 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say('waiting for another process that is at work on %s' % what)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------------------------------
# mmcv's compiled ops


def cache_folder():
    default = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache'), 'asl_mmdet')
    return os.path.abspath(os.path.expanduser(os.environ.get('ASL_MMDET_CACHE') or default))


def cache_key(package, version, torch, abi, platform_name, gpu_archs=()):
    """Everything that a compiled wheel depends on. `torch` with its local part: 2.13.0+cpu is not 2.13.0+cu130."""
    gpu = ''.join('-sm' + arch.replace('.', '') for arch in gpu_archs)
    return '%s-%s-torch-%s-%s-%s%s' % (package, version, torch, abi, platform_name, gpu)


def wheel_fault(path):
    """What is wrong with a wheel of mmcv, or None."""
    try:
        with zipfile.ZipFile(path) as wheel:
            broken = wheel.testzip()
            if broken:
                return 'is damaged at ' + broken
            if any(re.match(r'mmcv/_ext[^/]*\.so$', name) for name in wheel.namelist()):
                return None
            return 'has no compiled ops (no mmcv/_ext*.so inside)'
    except (OSError, zipfile.BadZipFile) as fault:
        return 'cannot be read (%s)' % fault


def cached_wheel(folder):
    """The wheel in a folder of the cache, or None. One without ops is removed: it would shadow a good one."""
    for path in sorted(glob.glob(os.path.join(folder, '*.whl'))):
        fault = wheel_fault(path)
        if fault is None:
            return path
        say('%s %s: removed' % (path, fault))
        os.remove(path)
    return None


def wheel_with_ops(key, cache, build):
    """The cached wheel for `key`; made by `build(folder, log)` where there is none yet.

    `build` works in a temporary folder inside the cache and returns the wheel's path; only a wheel that holds compiled
    ops is moved, in one step, to where others look for it.
    """
    folder = os.path.join(cache, 'wheels', key)
    wheel = cached_wheel(folder)
    if wheel:
        return wheel
    with only_one(key, cache, key):
        wheel = cached_wheel(folder)
        if wheel:
            return wheel
        # Whoever made these is dead, for the lock is ours.
        for left_over in glob.glob(os.path.join(cache, 'wheels', '.building-' + glob.escape(key) + '-*')):
            shutil.rmtree(left_over, ignore_errors=True)
        os.makedirs(os.path.join(cache, 'logs'), exist_ok=True)
        os.makedirs(folder, exist_ok=True)
        log = os.path.join(cache, 'logs', key + '.log')
        open(log, 'w').close()
        working = tempfile.mkdtemp(prefix='.building-' + key + '-', dir=os.path.join(cache, 'wheels'))
        try:
            built = build(working, log)
            fault = wheel_fault(built)
            if fault:
                raise SetupError('the wheel just built, %s, %s; nothing is kept of it, the build log is %s' % (
                    os.path.basename(built), fault, log))
            wheel = os.path.join(folder, os.path.basename(built))
            os.replace(built, wheel)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return wheel


def compile_mmcv(python, requirement, archs, cuda_home, working, log):
    """Compile mmcv's source distribution against the torch that `python` imports; returns the wheel."""
    tools, out, scratch = [os.path.join(working, name) for name in ('tools', 'wheel', 'scratch')]
    os.makedirs(scratch)
    # Beside the environment, not in it: a borrowed environment keeps its own setuptools.
    run([python, '-m', 'pip', 'install', '--no-input', '--target', tools] + list(BUILD_TOOLS), 'build tools', log)
    compiler = cxx_compiler()
    env = dict(os.environ, MMCV_WITH_OPS='1', FORCE_CUDA='1' if archs else '0', CXX=compiler, TMPDIR=scratch,
               PYTHONPATH=tools, PATH=os.path.join(tools, 'bin') + os.pathsep + os.environ.get('PATH', ''))
    env.setdefault('MAX_JOBS', str(compile_jobs()))
    if archs:
        env.update(CUDA_HOME=cuda_home, TORCH_CUDA_ARCH_LIST=';'.join(archs))
    say("mmcv's ops have to be compiled for this torch. That takes about 10 minutes on two cores%s\n"
        'and happens once: the wheel is kept in %s. The whole build log: %s' % (
            ' (longer for a GPU)' if archs else '', os.path.dirname(working), log))

    def compiled():
        plan = glob.glob(os.path.join(scratch, '**', 'build.ninja'), recursive=True)
        if not plan:
            return 'preparing'
        with open(plan[0]) as lines:
            planned = sum(bool(re.match(r'build .*: (cuda_)?compile', line)) for line in lines)
        done = len(glob.glob(os.path.join(scratch, '**', '*.o'), recursive=True))
        return '%d of %d files compiled' % (done, planned) if done < planned else 'linking and packing'

    package = requirement.split('==')[0]
    seconds = run([python, '-m', 'pip', 'wheel', '--no-input', '--no-build-isolation', '--no-deps', '--no-cache-dir',
                   '--no-binary', package, '--wheel-dir', out, requirement], 'compiling ' + requirement, log,
                  env=env, progress=compiled)
    say('  compiled in %s' % minutes(seconds))
    return glob.glob(os.path.join(out, '*.whl'))[0]


def compile_jobs():
    """One compiler per core, as long as each can have 2 GB of memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30
    return max(1, min(cores, int(memory // 2)))


# ---------------------------------------------------------------------------------------------------------------------
# The environment


def read_pins(stack):
    with open(os.path.join(ROOT, 'requirements', stack + '.txt')) as lines:
        return dict(re.match(r'([\w.-]+)==(\S+)', line).groups() for line in lines if re.match(r'[\w.-]+==', line))


def describe(python):
    return json.loads(subprocess.check_output([python, '-c', DESCRIBE]).decode())


def check_stack(env, stack, installed):
    """Two distributions of the same imports in one environment overwrite one another's files."""
    others = [name for other, names in STACKS.items() if other != stack for name in names] + list(SAME_IMPORTS)
    found = ['%s %s' % (name, installed[name]) for name in others if name in installed]
    if found:
        raise SetupError('%s holds %s, which serves the same imports as stack %s and would be overwritten; '
                         'choose the other stack with STACK=, or another environment with VENV=' % (
                             env, ', '.join(found), stack))


def check_torch(env, version):
    """An environment's own torch is kept, so it must be one that the plugin runs on."""
    if version and tuple(int(part) for part in re.findall(r'\d+', version)[:2]) < OLDEST_TORCH:
        raise SetupError('%s holds torch %s, and the plugin needs %d.%d or later; it is not upgraded for you: '
                         'do that, or leave VENV= out for an environment of its own' % ((env, version) + OLDEST_TORCH))


def torch_in(python, env):
    """Version of torch, and of the CUDA it was built with (None for a CPU build)."""
    try:
        return tuple(json.loads(ask(
            python, 'import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))')))
    except SetupError as fault:
        raise SetupError('torch in %s does not import: %s; mend it, or use another environment with VENV=' % (env, fault))


def ops_fit(python, gpu):
    """Whether mmcv's ops are there and load beside the installed torch; for a GPU they must have been compiled for it."""
    try:
        return ask(python, LOAD_OPS) != 'not available' or not gpu
    except SetupError:
        return False


def installed_torch(env):
    """The version of torch as its files have it, without the seconds that an import takes; None where there is none."""
    for path in glob.glob(os.path.join(env, 'lib', 'python3*', 'site-packages', 'torch', 'version.py')):
        with open(path) as text:
            found = re.search(r"__version__ = '([^']+)'", text.read())
        if found:
            return found.group(1)
    return None


def stamp_of(env, stack):
    """What a finished installation was made from; another value means that there is something to do."""
    digest = hashlib.sha256()
    for part in ('setup.py', os.path.join('requirements', stack + '.txt'), os.path.join('tools', 'setup_env.py')):
        with open(os.path.join(ROOT, part), 'rb') as content:
            digest.update(content.read())
    ops = sorted(glob.glob(os.path.join(env, 'lib', 'python3*', 'site-packages', 'mmcv', '_ext*.so')))
    return '\n'.join([digest.hexdigest(), stack, str(installed_torch(env)), ROOT] + ops) + '\n'


def is_finished(env, stack):
    try:
        with open(os.path.join(env, '.asl_mmdet', 'stamp')) as stamp:
            return stamp.read() == stamp_of(env, stack)
    except OSError:
        return False


def make_environment(env):
    """A virtual environment of our own; one that was killed half-way is made anew, anybody else's is left alone."""
    notes = os.path.join(env, '.asl_mmdet')
    making, made = os.path.join(notes, 'making'), os.path.join(notes, 'made')
    if os.path.exists(making):
        shutil.rmtree(env)
    if os.path.exists(os.path.join(env, 'bin', 'python')):
        return
    if os.path.isdir(env) and os.listdir(env):
        raise SetupError('%s is neither empty nor an environment (it has no bin/python); '
                         'give another one with VENV=' % env)
    os.makedirs(notes)
    open(making, 'w').close()
    run([sys.executable, '-m', 'venv', env], 'virtual environment %s' % env, os.path.join(notes, 'install.log'))
    os.replace(making, made)


def forget_half_installed(site):
    """pip writes INSTALLER last: a package without it was killed on the way in, and pip would take it for whole."""
    for info in glob.glob(os.path.join(site, '*.dist-info')):
        if not os.path.exists(os.path.join(info, 'INSTALLER')):
            say('%s was left half-installed: once more' % os.path.basename(info))
            shutil.rmtree(info)


def install_torch(pip, version, log, has_gpu):
    """The CPU build where there is no GPU: from the configured indexes first, they may be all that can be reached."""
    if sys.platform == 'darwin' or has_gpu:
        run(pip + ['torch==' + version], 'torch %s' % version, log)
        return
    try:
        run(pip + ['torch==%s+cpu' % version], 'torch %s+cpu' % version, log)
    except SetupError:
        say("  not in pip's configured indexes, so from %s" % CPU_INDEX)
        run(pip + ['torch==%s+cpu' % version, '--index-url', CPU_INDEX], 'torch %s+cpu' % version, log)


def ask(python, code):
    """The last line that a Python program prints, or SetupError with the last line of its error."""
    process = subprocess.Popen([python, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=os.sep)
    out, err = [text.decode(errors='replace').strip() for text in process.communicate()]
    if process.returncode:
        raise SetupError(err.splitlines()[-1] if err else 'exit code %d' % process.returncode)
    return out.splitlines()[-1] if out else ''


def works(python, code):
    try:
        ask(python, code)
    except SetupError:
        return False
    return True


def mend_opencv(python, pip, env, log):
    """opencv-python wants libGL, which a machine without a screen often lacks; the headless build does not."""
    try:
        ask(python, 'import cv2')
        return
    except SetupError as error:
        fault = str(error)
    version = describe(python)['installed'].get('opencv-python')
    if 'libGL' not in fault or not version:
        raise SetupError('import cv2 fails in %s: %s' % (env, fault))
    say('import cv2 fails (%s): replacing opencv-python %s by opencv-python-headless, which needs no libGL' % (
        fault, version))
    uninstall = pip[:pip.index('install')] + ['uninstall', '--yes', 'opencv-python', 'opencv-python-headless']
    run(uninstall, 'removing opencv-python', log)
    run(pip + ['--no-deps', 'opencv-python-headless==' + version], 'opencv-python-headless %s' % version, log)
    ask(python, 'import cv2')


def install(env, stack, cache):
    """Bring `env`, in whatever state it is, to a finished installation of `stack`."""
    notes, python = os.path.join(env, '.asl_mmdet'), os.path.join(env, 'bin', 'python')
    pins, names = read_pins(stack), STACKS[stack]
    mmcv = names[0]
    is_new = not os.path.exists(python) or os.path.exists(os.path.join(notes, 'making'))
    if is_new:
        check_python(sys.version_info, where=sys.executable)
    found = describe(sys.executable if is_new else python)
    ops_needed = is_new or not ops_fit(python, gpu=False)
    if not is_new:
        check_python(found['version'], where=python)
        check_stack(env, stack, found['installed'])
        check_torch(env, found['installed'].get('torch'))
        if not works(python, 'import pip'):
            raise SetupError('%s has no pip, which installs the rest; add it with: %s -m ensurepip' % (env, python))
    cached = glob.glob(os.path.join(cache, 'wheels', cache_key(
        glob.escape(mmcv), pins[mmcv], '*', found['abi'], found['platform']) + '*', '*.whl'))
    check_tools(found['version'], found['headers'], is_new, ops_needed and not cached)

    make_environment(env)
    os.makedirs(notes, exist_ok=True)
    log = os.path.join(notes, 'install.log')
    found = describe(python)
    if os.path.exists(os.path.join(notes, 'made')):
        forget_half_installed(found['site'])
        found = describe(python)
    pip = [python, '-m', 'pip', 'install', '--no-input', '--disable-pip-version-check']
    archs = gpus()
    if 'torch' not in found['installed']:
        install_torch(pip, pins['torch'], log, bool(archs))
        found = describe(python)
    torch, cuda = torch_in(python, env)
    if not cuda:
        archs = []

    if not ops_fit(python, gpu=bool(archs)):
        cuda_home = check_nvcc(cuda) if archs else None
        check_tools(found['version'], found['headers'], False, True)
        key = cache_key(mmcv, pins[mmcv], torch, found['abi'], found['platform'], archs)
        wheel = wheel_with_ops(key, cache, lambda working, build_log: compile_mmcv(
            python, '%s==%s' % (mmcv, pins[mmcv]), archs, cuda_home, working, build_log))
        # By its path: asked for by name, pip may take the wheel without ops that lies on PyPI.
        run(pip + ['--no-deps', '--force-reinstall', wheel], '%s %s with its ops' % (mmcv, pins[mmcv]), log)
        if not ops_fit(python, gpu=bool(archs)):
            raise SetupError('the ops in %s do not load beside torch %s; delete that file and run the command again' % (
                wheel, torch))
        found = describe(python)

    # torch, and what was there of the stack, stay as they are.
    keep = {name: found['installed'][name] for name in ('torch',) + names if name in found['installed']}
    constraints = os.path.join(notes, 'constraints.txt')
    with open(constraints, 'w') as lines:
        lines.writelines('%s==%s\n' % pin for pin in sorted(dict(pins, **keep).items()))
    run(pip + ['-c', constraints, '-e', '%s[%s,test]' % (ROOT, stack)], 'the %s stack, the plugin, the test tools' % stack,
        log)
    mend_opencv(python, pip, env, log)
    if torch_in(python, env)[0] != torch:
        raise SetupError('pip replaced torch %s by %s in %s although it was told to keep it; see %s' % (
            torch, torch_in(python, env)[0], env, log))
    try:
        ask(python, 'import mmcv.ops, mmengine, mmdet')
    except SetupError as fault:
        raise SetupError('all is installed in %s, but it does not import: %s; see %s' % (env, fault, log))
    if 'timm' not in found['installed']:
        try:
            run(pip + ['--no-deps', TIMM], '%s, for comparison in the tests' % TIMM, log)
        except SetupError:
            say('  note: %s could not be had; the tests that compare with it are skipped' % TIMM)

    stamp = os.path.join(notes, 'stamp')
    with open(stamp + '.new', 'w') as text:
        text.write(stamp_of(env, stack))
    os.replace(stamp + '.new', stamp)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--env', required=True, help='the environment: made where there is none, kept where there is')
    parser.add_argument('--stack', default='onedl', help=' or '.join(STACKS))
    options = parser.parse_args(arguments)
    env = os.path.abspath(os.path.expanduser(options.env))
    try:
        if options.stack not in STACKS:
            raise SetupError('STACK=%s is none of: %s' % (options.stack, ', '.join(STACKS)))
        if os.name != 'posix':
            raise SetupError('this set-up runs on Linux and macOS, not on %s; under Windows use WSL' % platform.system())
        if is_finished(env, options.stack):
            return 0
        with only_one('environment-' + hashlib.sha256(env.encode()).hexdigest()[:16], cache_folder(), env):
            if not is_finished(env, options.stack):
                start = time.time()
                install(env, options.stack, cache_folder())
                say('%s is ready (%s)' % (env, minutes(time.time() - start)))
        return 0
    except SetupError as fault:
        print('setup_env: %s' % fault, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('setup_env: interrupted; the same command goes on from here', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
