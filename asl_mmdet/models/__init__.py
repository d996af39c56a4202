from .asl_single_label import ASLSingleLabel
from .asymmetric_loss import AsymmetricLoss
from .image_classifier import ImageClassifier
from .multi_label_head import MultiLabelLinearClsHead
from .multi_tensor_ema import MultiTensorEMA
from .ofa595 import OFA595
from .tresnet import TResNet

__all__ = [
    'ASLSingleLabel',
    'AsymmetricLoss',
    'ImageClassifier',
    'MultiLabelLinearClsHead',
    'MultiTensorEMA',
    'OFA595',
    'TResNet',
]
