"""Refuse, at import and in one line, what cannot work later; the reasons come from users' reports."""

import importlib
import importlib.util

MINIMUM_VERSIONS = dict(torch='2.4', mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0')
INSTALL = "see 'Install' in the README, or run make install in a clone of asl_mmdet"


def check_supported_stack() -> None:
    """Import what the plugin stands on.

    Raises:
        ImportError: a package is missing or older than in ``MINIMUM_VERSIONS``, mmcv lacks its compiled ops, or
            OpenCV libGL.
    """
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        if 'libGL' in str(error):
            raise ImportError(
                'asl_mmdet: OpenCV does not find libGL: apt-get install libgl1, or replace opencv-python by '
                'opencv-python-headless of the same version'
            ) from error
        raise ImportError(
            f'asl_mmdet: OpenCV cannot be imported ({error}): pip install opencv-python-headless'
        ) from error
    for name, minimum in MINIMUM_VERSIONS.items():
        try:
            version = importlib.import_module(name).__version__
        except ModuleNotFoundError as error:
            raise ImportError(
                f'asl_mmdet needs {name} {minimum} or later, and it is not installed: {INSTALL}'
            ) from error
        if _release(version) < _release(minimum):
            raise ImportError(f'asl_mmdet needs {name} {minimum} or later, and {version} is installed: {INSTALL}')
    if importlib.util.find_spec('mmcv._ext') is None:
        raise ImportError(
            "asl_mmdet: mmcv is installed without its compiled ops (pip's ready-made wheel has none), which "
            f'mmdet needs; they are compiled against the installed torch: {INSTALL}'
        )


def _release(version: str) -> tuple:
    return tuple(int(part) for part in version.split('+')[0].split('.')[:3] if part.isdigit())
