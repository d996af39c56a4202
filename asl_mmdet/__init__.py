from .supported_stack import check_supported_stack

check_supported_stack()

from . import datasets, evaluation, hooks, one_cycle, visualization  # noqa: E402, F401
from .checkpoint import admit_runner_checkpoints  # noqa: E402
from .inferencer import MultiLabelInferencer  # noqa: E402
from .models import ASLSingleLabel, AsymmetricLoss, ImageClassifier, MultiLabelLinearClsHead, TResNet  # noqa: E402
from .version import __version__  # noqa: E402

admit_runner_checkpoints()

__all__ = [
    'ASLSingleLabel',
    'AsymmetricLoss',
    'ImageClassifier',
    'MultiLabelInferencer',
    'MultiLabelLinearClsHead',
    'TResNet',
    '__version__',
]
