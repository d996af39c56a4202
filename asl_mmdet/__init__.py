import sys

from .supported_stack import check_supported_stack
from .version import __version__

try:
    check_supported_stack()
except ImportError:
    # The doctor tells more than this line.
    if 'asl_mmdet.doctor' not in sys.orig_argv:
        raise
else:
    from . import datasets, evaluation, hooks, one_cycle, registry, visualization  # noqa: F401
    from .checkpoint import admit_runner_checkpoints, restrict_checkpoint_loader
    from .inferencer import MultiLabelInferencer
    from .models import ASLSingleLabel, AsymmetricLoss, ImageClassifier, MultiLabelLinearClsHead, TResNet

    admit_runner_checkpoints()
    restrict_checkpoint_loader()

__all__ = [
    'ASLSingleLabel',
    'AsymmetricLoss',
    'ImageClassifier',
    'MultiLabelInferencer',
    'MultiLabelLinearClsHead',
    'TResNet',
    '__version__',
]
