from .coco import CocoMultiLabelDataset
from .csv_table import CSVMultiLabelDataset
from .detection import LoadNamedImage
from .formatting import PackMultiLabelInputs
from .herbarium import HerbariumDataset
from .label_index import AnnotationError
from .multi_label import MultiLabelDataset
from .nus_wide import NUSWideDataset
from .open_images import OpenImagesMultiLabelDataset
from .pillow_transforms import PillowAutoContrast, PillowEqualize
from .voc import VOCMultiLabelDataset

__all__ = [
    'AnnotationError',
    'CSVMultiLabelDataset',
    'CocoMultiLabelDataset',
    'HerbariumDataset',
    'LoadNamedImage',
    'MultiLabelDataset',
    'NUSWideDataset',
    'OpenImagesMultiLabelDataset',
    'PackMultiLabelInputs',
    'PillowAutoContrast',
    'PillowEqualize',
    'VOCMultiLabelDataset',
]
