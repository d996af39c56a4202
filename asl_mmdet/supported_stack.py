"""Refuse, at import and in one line, what cannot work later; the reasons come from users' reports."""

import importlib
from collections.abc import Iterator

MINIMUM_VERSIONS = dict(torch='2.4', mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0')
INSTALL = "see 'Install' in the README, or run make install in a clone of asl_mmdet"


def check_supported_stack() -> None:
    """Import what the plugin stands on.

    Raises:
        ImportError: the first of ``stack_faults``.
    """
    for fault, error in stack_faults():
        raise ImportError(f'asl_mmdet: {fault}') from error


def stack_faults() -> Iterator[tuple[str, Exception | None]]:
    """What cannot work and the way out, each with the exception that showed it: a package is missing, older than in
    ``MINIMUM_VERSIONS`` or does not import, mmcv lacks its compiled ops, or OpenCV libGL."""
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        if 'libGL' in str(error):
            yield (
                (
                    'OpenCV does not find libGL: apt-get install libgl1, or replace opencv-python by '
                    'opencv-python-headless of the same version'
                ),
                error,
            )
        else:
            yield f'OpenCV cannot be imported ({error}): pip install opencv-python-headless', error
    for name, minimum in MINIMUM_VERSIONS.items():
        try:
            version = importlib.import_module(name).__version__
        except ModuleNotFoundError as error:
            missing = error.name or name
            yield f'needs {name} {minimum} or later, and {_not_installed(name, missing)}: {INSTALL}', error
        except Exception as error:  # mmdet asserts the versions of mmcv; a torch or numpy of another build: OSError ...
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            yield f'{name} is installed but cannot be imported ({reason}): {INSTALL}', error
        else:
            if _release(version) < _release(minimum):
                yield f'needs {name} {minimum} or later, and {version} is installed: {INSTALL}', None
            elif name == 'mmcv':
                yield from _ops_faults()


def _ops_faults():
    try:
        importlib.import_module('mmcv._ext')
    except ModuleNotFoundError as error:
        yield (
            (
                "mmcv is installed without its compiled ops (pip's ready-made wheel has none), which mmdet needs; they "
                f'are compiled against the installed torch: {INSTALL}'
            ),
            error,
        )
    except ImportError as error:
        reason = ' '.join(str(error).split())
        yield (
            f'the ops of mmcv do not load beside this torch, compiled for another ({reason}): {INSTALL}',
            error,
        )


def _not_installed(name: str, missing: str) -> str:
    return 'it is not installed' if missing == name else f'{missing}, which it imports, is not installed'


def _release(version: str) -> tuple:
    return tuple(int(part) for part in version.split('+')[0].split('.')[:3] if part.isdigit())
