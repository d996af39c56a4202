"""Write requirements/*.lock: the default stack as it is installed here, with the hash of each file on PyPI.

    .venv/bin/python tools/lock.py

Run it in an environment of the default stack whose tests pass. pip is asked for each of the Pythons of
setup_env.LOCKED on Linux for x86_64; torch is left out, as its builds for the CPU and CUDA come from different indexes.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import licences
import setup_env

FOLDER = Path(setup_env.ROOT) / 'requirements'
# pip does not derive the older names of a platform from the newer.
GLIBC = ('_2_28', '_2_27', '_2_26', '_2_24', '_2_17', '2014', '_2_12', '2010', '_2_5', '1')
HEAD = '# Written by tools/lock.py: Python 3.11 and 3.12 on Linux for x86_64.\n'


def files(requirements: list[str], *options: str) -> dict[str, str]:
    """The SHA-256 of the file that pip would take for each requirement, by name==version."""
    with tempfile.TemporaryDirectory() as folder:
        report, wanted = Path(folder, 'report.json'), Path(folder, 'wanted.txt')
        wanted.write_text('\n'.join(requirements))
        pip = [sys.executable, '-m', 'pip', 'install', '--isolated', '--index-url', 'https://pypi.org/simple']
        pip += ['--dry-run', '--ignore-installed', '--no-deps', '--quiet', '--target', folder]
        subprocess.run([*pip, *options, '--report', report, '-r', wanted], check=True)
        return {
            f'{licences.normal(item["metadata"]["name"])}=={item["metadata"]["version"]}': item['download_info'][
                'archive_info'
            ]['hashes']['sha256']
            for item in json.loads(report.read_text())['install']
        }


def wheels(requirements: list[str], options: list[str]) -> dict[str, set[str]]:
    found = {}
    for major, minor in setup_env.LOCKED['onedl']:
        target = ['--only-binary=:all:', f'--python-version={major}.{minor}', '--implementation=cp']
        target += [f'--abi={abi}' for abi in (f'cp{major}{minor}', 'abi3', 'none')]
        target += [f'--platform=manylinux{glibc}_x86_64' for glibc in GLIBC]
        for name, digest in files(requirements, *target, *options).items():
            found.setdefault(name, set()).add(digest)
    return found


def write(name: str, entries: dict[str, set[str]]) -> None:
    lines = [
        ' \\\n'.join([entry, *(f'    --hash=sha256:{d}' for d in sorted(entries[entry]))]) for entry in sorted(entries)
    ]
    (FOLDER / f'{name}.lock').write_text(HEAD + '\n'.join(lines) + '\n')


def main() -> None:
    options = sys.argv[1:]  # for pip, such as --cert
    if '--help' in options or '-h' in options:
        sys.exit(__doc__)
    mmcv, _, mmdet = setup_env.STACKS['onedl']
    pins = setup_env.read_pins('onedl')
    sources = {  # PyPI has no wheel of mmdet, and none of mmcv with compiled ops
        name: {f'{name}=={pins[name]}': set(files([f'{name}=={pins[name]}'], f'--no-binary={name}', *options).values())}
        for name in (mmcv, mmdet)
    }
    others = [f'{name}=={version(name)}' for name in licences.dependencies() if name not in ('torch', *sources)]
    write('onedl', wheels(others, options) | sources[mmdet])
    write('build', wheels(list(setup_env.BUILD_TOOLS), options))
    write(mmcv, sources[mmcv])


if __name__ == '__main__':
    main()
