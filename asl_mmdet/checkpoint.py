"""Reading checkpoint files without running code from them, and finding the one to go on from."""

import hashlib
import io
import logging
import os
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

import mmengine
import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_file_backend, load
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .datasets.label_index import suggestion

TRUST = 'ASL_TRUST_CHECKPOINTS'

_ARRAY_MODULES = ('numpy.core.multiarray', 'numpy._core.multiarray')  # numpy 1 and numpy 2
_ARRAY_DTYPES = ('bool', 'int32', 'int64', 'uint8', 'float32', 'float64')


class CheckpointError(ValueError):
    """A file is damaged, is no checkpoint, or holds what is not admitted; the message is complete."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


def read_checkpoint(path: str | Path, map_location: str | torch.device | None = 'cpu') -> dict:
    """Content of a ``.safetensors`` file, or of any file that ``torch.save`` wrote, here or at an address.

    Pickles are read with ``weights_only=True``: tensors, containers, strings and numbers, and beyond these only what
    mmengine's Runner puts into its checkpoints: the ``HistoryBuffer`` of logged scalars, its numpy arrays, and the
    annealing functions of ``OneCycleLR``. The environment variable ``ASL_TRUST_CHECKPOINTS=1`` lifts this for files
    that you trust.

    Args:
        path: a path, or an address that begins with http:// or https://, whose file is kept where ``torch.hub`` keeps
            its own. The first process downloads it, on other nodes all do.

    Raises:
        MissingCheckpointError: There is no such file; a FileNotFoundError, too.
        CheckpointError: The file is no checkpoint, is damaged, cannot be downloaded, or holds objects other than the
            above.
        ImportError: The file ends in ``.safetensors`` and that package is not installed.
    """
    path = _downloaded(path) if is_address(path) else Path(path)
    if not path.is_file():
        raise MissingCheckpointError(f"no checkpoint file '{path}'")
    if path.suffix == '.safetensors':
        return _read_safetensors(path, map_location)

    return _read_pickle(path, path, map_location)


def is_address(path: str | Path) -> bool:
    return str(path).startswith(('http://', 'https://'))


def _downloaded(address: str) -> Path:
    name = Path(urlparse(address).path)
    if not re.search(r'-[0-9a-f]{8,}$', name.stem):
        # Without a digest in it, as those of OpenMMLab's files have, many files share a name: model.safetensors.
        name = name.with_stem(f'{name.stem}-{hashlib.sha256(address.encode()).hexdigest()[:8]}')
    path = Path(torch.hub.get_dir(), 'checkpoints', name.name)
    for mine in (is_main_process(), not is_main_process()):
        if mine and not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(address, str(path), progress=os.isatty(0))
            except (OSError, HTTPException) as error:  # a URLError is an OSError
                raise CheckpointError(
                    f"'{address}' cannot be downloaded: {error}. Download it elsewhere, and give its path"
                ) from error
        barrier()
    return path


def load_all_weights(model: nn.Module, content: Mapping, path: str | Path) -> None:
    """Load the content of the checkpoint ``path`` into a model, of which nothing may keep its random initial values.

    What the checkpoint has beyond the model is left out.

    Raises:
        CheckpointError: Parameters of the model, or statistics of its BN, are missing or of another shape.
    """
    fitting = fitting_weights(model, content, path)
    model = model.module if is_model_wrapper(model) else model
    # By which parts of a model know what they were called in earlier versions.
    fitting._metadata = getattr(content.get('state_dict', content), '_metadata', OrderedDict())
    absent = model.load_state_dict(fitting, strict=False).missing_keys
    parameters = {name for name, _ in model.named_parameters()}
    lost = [key for key in absent if key in parameters or key.endswith(('running_mean', 'running_var'))]
    if lost:
        key = lost[0]
        there = getattr(_by_name(content).get(key), 'shape', None)
        raise CheckpointError(
            f"'{path}' does not fit the model of the config: {len(lost)} tensors are missing or of another shape, "
            f'{key} among them: {tuple(model.state_dict()[key].shape)} in the model, '
            f'{"missing" if there is None else tuple(there)} in the file. Take the config that stands beside the '
            'checkpoint in its work dir'
        )


def fitting_weights(model: nn.Module, content: Mapping, path: str | Path) -> OrderedDict:
    """What the checkpoint ``path`` holds, by name, without what has another shape in the model.

    Raises:
        CheckpointError: Nothing has name and shape of a tensor of the model; mmengine would only log that.
    """
    own = (model.module if is_model_wrapper(model) else model).state_dict()
    held = _by_name(content)
    fitting = OrderedDict(
        (key, x) for key, x in held.items() if key not in own or own[key].shape == getattr(x, 'shape', None)
    )
    if own.keys().isdisjoint(fitting):
        raise CheckpointError(
            f"'{path}' holds no tensor of the config's model: it has {', '.join([*held][:3]) or 'nothing'} ..., the "
            f"model {', '.join([*own][:3])} .... A backbone's weights belong in model.backbone.init_cfg; "
            'tools/model_converters/tresnet.py --head makes a checkpoint of a whole classifier in the official layout'
        )
    return fitting


def check_start(model: nn.Module, path: str, resume: bool) -> None:
    """Refuse weights to begin with that the model takes nothing of, and a run to go on with of another model.

    mmengine would train from random weights, and stumble over the optimizer. What is sharded is not looked at.

    Raises:
        CheckpointError: neither weights nor run fit the model, or the file cannot be read.
    """
    if not is_model_wrapper(model) or isinstance(model, DistributedDataParallel):
        content = CheckpointLoader.load_checkpoint(path, 'cpu')
        (load_all_weights if resume else fitting_weights)(model, content, path)


def _by_name(content: Mapping) -> OrderedDict:
    """What a checkpoint holds, without the prefix of a model on several GPUs."""
    return OrderedDict((str(key).removeprefix('module.'), x) for key, x in content.get('state_dict', content).items())


def check_classes(content: Mapping, classes: Sequence[str], path: str | Path) -> None:
    """Refuse the content of the checkpoint ``path`` where it numbers the classes of a data set in another order.

    Raises:
        CheckpointError: The checkpoint names the same classes in another order.
    """
    trained = content.get('meta', {}).get('dataset_meta', {}).get('classes') or ()
    if sorted(trained) == sorted(classes) and tuple(trained) != tuple(classes):
        place = next(i for i, (one, other) in enumerate(zip(trained, classes)) if one != other)
        raise CheckpointError(
            f"'{path}' was trained with the same classes in another order: class {place} is {trained[place]!r} there "
            f'and {classes[place]!r} in the data set. Give the data set metainfo=dict(classes=...) in the order of the '
            'checkpoint'
        )


def _read_pickle(file: Path | BinaryIO, name: str | Path, map_location: str | torch.device | None) -> dict:
    trusted = os.environ.get(TRUST) == '1'
    if trusted:
        print_log(f"{TRUST}=1: '{name}' is read without restriction and may run code", 'current', logging.WARNING)
    # Again, and not at import alone: torch.serialization.safe_globals takes off torch's list what others put there.
    admit_runner_checkpoints()
    try:
        content = torch.load(file, map_location=map_location, weights_only=not trusted)
    except Exception as error:  # a damaged pickle makes the unpickler stumble over anything
        raise CheckpointError(f"'{name}' cannot be read as a checkpoint: {_reason(error, file)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"'{name}' holds a {type(content).__name__} where a dict of tensors is expected. Give a file that a Runner "
            'has written, or torch.save(model.state_dict(), ...)'
        )
    return content


def _reason(error: Exception, file: Path | BinaryIO) -> str:
    # Without torch's advice to read the file as a program.
    text = str(error).rpartition('WeightsUnpickler error:')[2].strip()
    refused = isinstance(error, pickle.UnpicklingError) and re.search(
        r'GLOBAL (?P<name>\S+)|reduce for unrecognized function (?P<function>.+)|but got (?P<type>.+)'
        r'|(?P<attribute>getattr\(.+\)) is not admitted',
        text,
    )
    offender = next(filter(None, refused.groups())).strip() if refused else None
    if 'Unsupported operand' in text:
        offender = _newer_global(file)
    if offender:
        return (
            f'it holds {offender}, which is refused, because unpickling anything but tensors and plain values can run '
            'code. Save its state_dict alone, or read it as it is, where you trust who made it, with '
            f'{TRUST}=1 in the environment'
        )
    return (
        'it is damaged, or something else (a web page saved in its place?). If it was downloaded, delete it and '
        f'download it again. torch says: {text.splitlines()[0] if text else type(error).__name__}'
    )


def _newer_global(file: Path | BinaryIO) -> str | None:
    """The first name outside torch and collections in a pickle of protocol 4 or later, which torch does not name."""
    with open(file, 'rb') if isinstance(file, Path) else file as stream:
        if zipfile.is_zipfile(stream):
            archive = zipfile.ZipFile(stream)
            stream = archive.open(next(name for name in archive.namelist() if name.endswith('data.pkl')))
        else:
            stream.seek(0)
        strings = []
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == 'STACK_GLOBAL' and strings[-2].split('.')[0] not in ('torch', 'collections'):
                    return '.'.join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
        except (ValueError, IndexError):
            pass  # no pickle, or a damaged one
    return None


def _read_safetensors(path: Path, map_location: str | torch.device | None) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"'{path}' needs the safetensors package: pip install safetensors") from error
    try:
        return load_file(path, device=str(map_location or 'cpu'))
    except SafetensorError as error:
        raise CheckpointError(f"'{path}' is no safetensors file, or is damaged: {error}") from error


def _runner_types() -> list:
    """What a checkpoint of mmengine's Runner holds besides tensors, for torch's list of safe globals."""
    multiarray = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]  # _reconstruct, scalar
    return [
        HistoryBuffer,
        (_admitted_method, 'builtins.getattr'),
        (_OneCycle, f'{OneCycleParamScheduler.__module__}.{OneCycleParamScheduler.__name__}'),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(name)) for name in _ARRAY_DTYPES),
        *((function, f'{module}.{function.__name__}') for function in multiarray for module in _ARRAY_MODULES),
    ]


def admit_runner_checkpoints() -> None:
    """Let ``torch.load`` with ``weights_only=True``, its default from torch 2.6 on, read what mmengine's Runner wrote.

    Earlier versions of torch know no stand-ins: there, only files without a Runner's history are read.
    """
    if torch.__version__ >= (2, 6):
        torch.serialization.add_safe_globals(_runner_types())


class _OneCycle:
    """Stands in for ``OneCycleParamScheduler`` as the owner of the function that its state names."""


_ADMITTED_METHODS = {
    HistoryBuffer: (HistoryBuffer, ('min', 'max', 'current', 'mean')),
    _OneCycle: (OneCycleParamScheduler, ('_annealing_cos', '_annealing_linear')),
}


def _admitted_method(owner: type, name: str):
    """Stands in for ``getattr``, by which mmengine's states pickle functions of classes; ``getattr`` itself would open
    a way from any admitted object to code outside the list."""
    source, names = _ADMITTED_METHODS.get(owner, (None, ())) if isinstance(owner, type) else (None, ())
    if name not in names:
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not admitted')
    return getattr(source, name)


# ------------------------------------------------------------------------------------- what mmengine and mmdet load
# load_from, resume and init_cfg go through mmengine's CheckpointLoader. The OneDL fork reads there what restricted
# unpickling refuses without restriction, and admits getattr itself; both read downloads without restriction.


def restrict_checkpoint_loader() -> None:
    """Let all that goes through mmengine's ``CheckpointLoader`` be read as by :func:`read_checkpoint`."""
    for prefixes, loader in (
        (('', 'http://', 'https://'), load_from_file),
        (('modelzoo://', 'torchvision://'), load_from_torchvision),
        (('open-mmlab://', 'openmmlab://'), load_from_openmmlab),
        ('mmcls://', load_from_mmcls),
        ((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_ceph),
        ('pavi://', load_from_pavi),
    ):
        CheckpointLoader.register_scheme(prefixes, loader, force=True)


def load_from_file(filename: str, map_location=None) -> dict:
    return _for_runner(read_checkpoint(os.path.expanduser(filename), map_location))


def load_from_torchvision(filename: str, map_location=None) -> dict:
    # Most stand in a file of mmengine's, which it reads where torchvision is installed alone; newer names need that.
    places, where = load(Path(mmengine.__path__[0], 'hub', 'torchvision_0.12.json')), ''
    if filename.partition('://')[2] not in places:
        try:
            places = mmengine_checkpoint.get_torchvision_models()
        except ImportError:
            where = ' where torchvision is not installed'
    return load_from_file(_place(filename, places, where), map_location)


def load_from_openmmlab(filename: str, map_location=None) -> dict:
    newer = mmengine_checkpoint.get_deprecated_model_names()
    scheme, _, name = filename.partition('://')
    place = _place(f'{scheme}://{newer.get(name, name)}', mmengine_checkpoint.get_external_models())
    if not is_address(place):
        place = os.path.join(mmengine_checkpoint._get_mmengine_home(), place)
    return load_from_file(place, map_location)


def load_from_mmcls(filename: str, map_location=None) -> dict:
    place = _place(filename, mmengine_checkpoint.get_mmcls_models())
    return mmengine_checkpoint._process_mmcls_checkpoint(load_from_file(place, map_location))


def load_from_ceph(filename: str, map_location=None) -> dict:
    content = get_file_backend(filename, backend_args=dict(backend='petrel')).get(filename)
    return _for_runner(_read_pickle(io.BytesIO(content), filename, map_location))


def load_from_pavi(filename: str, map_location=None) -> dict:
    raise CheckpointError(f"'{filename}': files of pavi are not read directly; download it and give its path")


def _place(filename: str, places: Mapping[str, str], where: str = '') -> str:
    """Address or path of published weights, by the name that follows ``://``."""
    name = filename.partition('://')[2]
    if name not in places:
        raise CheckpointError(
            f"'{filename}' is no name of published weights{where}{suggestion(name, [*places])}; give their path or "
            'address'
        )
    return places[name]


def _for_runner(content: dict) -> dict:
    """A file that is tensors alone becomes a ``state_dict``, which mmengine's hooks expect. ``meta['config']``, which
    no mmengine writes, goes: ``Runner.resume`` runs it as Python."""
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return dict(state_dict=content)
    if isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


# -------------------------------------------------------------------------------------------------- where to go on


def damage(path: Path) -> str | None:
    """What is wrong with a file that ``torch.save`` wrote, by its directory and checksums; None when it is whole."""
    if not path.is_file():
        return 'is missing'
    if not path.stat().st_size:
        return 'is empty'
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # damage makes zipfile stumble over anything
        return f'is truncated or damaged ({str(error) or type(error).__name__})'
    return f'is damaged ({broken} has another checksum)' if broken else None


def has_begun(work_dir: str | Path) -> bool:
    """Whether a run has saved a checkpoint there; weights of other names are none."""
    traces = ('last_checkpoint', 'epoch_*.pth', 'iter_*.pth')
    return any(path for pattern in traces for path in Path(work_dir).glob(pattern))


def newest_intact(work_dir: str | Path, out_dir: str | Path, patterns: Iterable[str]) -> str | None:
    """The checkpoint of the most iterations among the whole ones; a warning names what it is taken in place of.

    Args:
        work_dir: Folder of the marker ``last_checkpoint``, which names the last one that was written.
        out_dir: Folder of the checkpoints.
        patterns: Their names, as for ``Path.glob``.

    Returns:
        Its path; None when neither a marker nor checkpoints are there.

    Raises:
        CheckpointError: None is whole, or one holds what is refused.
    """
    marker = Path(work_dir, 'last_checkpoint')
    # mmengine's own hook writes in the encoding of the system.
    last = marker.read_text('utf-8', 'replace').strip() if marker.is_file() else None
    if last and '://' in last:
        return last
    if last and (here := Path(out_dir, Path(last).name)).is_file():
        last = str(here)  # of a folder that was moved or copied since
    if last and damage(Path(last)) is None:
        return last
    paths = {path for pattern in patterns for path in Path(out_dir).glob(pattern)} | ({Path(last)} if last else set())
    problems = {path: damage(path) for path in paths}
    whole = [path for path, problem in problems.items() if problem is None]
    damaged = '; '.join(f'{path} {problem}' for path, problem in sorted(problems.items()) if problem)
    if not last:
        damaged = '; '.join(filter(None, [f'{marker} {"is empty" if last == "" else "is missing"}', damaged]))
    if not paths and last is None:
        return None
    if not whole:
        raise CheckpointError(
            f'cannot resume: {damaged}. Put a whole checkpoint back, or start from the beginning without --resume'
        )
    newest = max(whole, key=lambda path: read_checkpoint(path)['meta']['iter'])
    print_log(f'{damaged}: resuming from {newest}', 'current', logging.WARNING)
    return str(newest)
