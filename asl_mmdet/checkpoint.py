"""Reading checkpoint files without running code from them."""

import pickle
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_ARRAY_MODULES = ('numpy.core.multiarray', 'numpy._core.multiarray')  # numpy 1 and numpy 2
_ARRAY_DTYPES = ('bool', 'int32', 'int64', 'uint8', 'float32', 'float64')


def read_checkpoint(path: str | Path, map_location: str | torch.device | None = 'cpu') -> dict:
    """Content of a ``.safetensors`` file, or of any file that ``torch.save`` wrote.

    Pickles are read with ``weights_only=True``: tensors, containers, strings and numbers, and beyond these only what
    mmengine's Runner puts into its checkpoints, the ``HistoryBuffer`` of logged scalars and its numpy arrays.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint, is damaged, or holds objects other than the above.
        ImportError: The file ends in ``.safetensors`` and that package is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}'")
    if path.suffix == '.safetensors':
        return _read_safetensors(path, map_location)

    # Again, and not at import alone: OneDL's mmengine takes them off torch's list after each checkpoint that it loads.
    admit_runner_checkpoints()
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged pickle makes the unpickler stumble over anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint: it is damaged, something else (a web page saved in its place?), "
            'or holds objects other than tensors and plain values, which are refused because unpickling them can run '
            f'code. Download it again, or save its state_dict alone where you trust the file. torch says: {reason}'
        ) from error


def _read_safetensors(path: Path, map_location: str | torch.device | None) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"'{path}' needs the safetensors package: pip install safetensors") from error
    try:
        return load_file(path, device=str(map_location or 'cpu'))
    except SafetensorError as error:
        raise ValueError(f"'{path}' is no safetensors file, or is damaged: {error}") from error


def _runner_types() -> list:
    """What a checkpoint of mmengine's Runner holds besides tensors, for torch's list of safe globals."""
    multiarray = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]  # _reconstruct, scalar
    return [
        HistoryBuffer,
        (_history_buffer_method, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(name)) for name in _ARRAY_DTYPES),
        *((function, f'{module}.{function.__name__}') for function in multiarray for module in _ARRAY_MODULES),
    ]


def admit_runner_checkpoints() -> None:
    """Let ``torch.load`` with ``weights_only=True``, its default from torch 2.6 on, read what mmengine's Runner wrote.

    mmengine 0.10.7 relies on that default and cannot resume without this. Earlier versions of torch know no stand-ins:
    there, only files without a Runner's history are read.
    """
    if torch.__version__ >= (2, 6):
        torch.serialization.add_safe_globals(_runner_types())


def _history_buffer_method(owner: type, name: str):
    """Stands in for ``getattr``, by which ``HistoryBuffer`` pickles its statistics; ``getattr`` itself would open a way
    from any admitted object to code outside the list."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not admitted')
    return getattr(HistoryBuffer, name)
