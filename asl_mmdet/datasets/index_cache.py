"""A label index kept beside the annotation files it was read from, so that only the first start parses them."""

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
from mmengine.logging import print_log

from .label_index import LabelIndex
from .whole_file import whole_file

try:
    import fcntl
except ImportError:  # Windows: several ranks may parse at once, which costs time only.
    fcntl = None

FORMAT = 1


def cache_file(source: str, cache: bool | str) -> str:
    """Of the first annotation file: beside it (True), or in a folder, by name and a hash of the path."""
    if cache is True:
        return source + '.labels.npz'
    path = hashlib.sha256(os.path.realpath(source).encode()).hexdigest()[:16]
    return os.path.join(cache, f'{os.path.basename(source)}.{path}.labels.npz')


def cached_index(path: str, sources: Sequence[str], options: dict, read: Callable[[], LabelIndex]) -> LabelIndex:
    """``read()``, or what it gave when the sources and options were the same.

    The cache is an npz file that is read without pickle, and is replaced whole. It counts as the same when size and
    modification time of every source, the options (JSON) and the format number agree. Where the folder cannot be
    written, the log says so and every start parses. Of several processes on one machine, one parses and the others
    wait.
    """
    key = json.dumps(
        [FORMAT, options]
        + [[os.path.basename(source), os.stat(source).st_size, os.stat(source).st_mtime_ns] for source in sources]
    )
    index = _load(path, key)
    if index is not None:
        return index
    if not os.access(os.path.dirname(path) or '.', os.W_OK):
        print_log(
            f'{path} cannot be written, so that {sources[0]} is parsed at every start', 'current', logging.WARNING
        )
        return read()
    with _one_process_at_a_time(sources[0]):
        index = _load(path, key)
        if index is None:
            index = read()
            _save(path, key, index)
    return index


def _load(path, key):
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if arrays['key'].item() != key:
                return None
            return LabelIndex.from_arrays({name: arrays[name] for name in arrays.files})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        print_log(f'{path} is not a cache of labels and is built anew: {error}', 'current', logging.WARNING)
        return None


def _save(path, key, index):
    try:
        with whole_file(path) as file:
            np.savez(file, key=np.array(key), **index.to_arrays())
    except OSError as error:
        print_log(f'{path} was not written: {error}', 'current', logging.WARNING)


@contextlib.contextmanager
def _one_process_at_a_time(path):
    """Holds a lock on the file that ends with the process; goes on without where the file system has none."""
    with open(path, 'rb') as file:
        with contextlib.suppress(OSError):
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
